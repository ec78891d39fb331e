"""Publication of a checkpoint or bundle on the Hugging Face hub, with a model card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from berxit.runtime.bundle import files_of, read_manifest
from berxit.runtime.bundle_files import MANIFEST
from berxit.runtime.errors import BerxitError, InputError, first_line
from berxit.runtime.hub import check_repository, hub_library
from berxit.toolkit.model_card import CardFacts, facts_of_bundle, facts_of_checkpoint, model_card

CARD = "README.md"


@dataclass(frozen=True)
class Published:
    """Result of ``push_to_hub``."""

    repository: str
    url: str
    """Address of the commit."""
    files: tuple[str, ...]
    """Uploaded files, relative to the repository."""


def push_to_hub(
    folder: Path | str,
    repository: str,
    *,
    bench: Path | str | None = None,
    public: bool = False,
    include_data: bool = False,
    message: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Published:
    """Uploads a checkpoint or a bundle to the repository "owner/name", which is created if it does not exist.

    The card is the folder's README.md; without one it is generated (``model_card``). ``bench``: a bench.json of this
    model, for the card's line about latency. ``public``: create a public repository; by default, a new repository is
    private. ``include_data``: also upload a checkpoint's files with texts of the data (samples, calibration texts,
    held-out rows). A bundle always contains texts: its golden inputs. ``report`` receives one line about them. Log in
    first: ``hf auth login``.

    Raises InputError for a bad repository name, for a folder that is neither checkpoint nor bundle, for a bench of
    another model, and for ``include_data`` with a bundle; BerxitError for a damaged folder, if huggingface_hub is not
    installed, or if the upload fails.
    """
    folder = Path(folder)
    check_repository(repository)
    hub = hub_library()
    if (folder / MANIFEST).is_file():
        if include_data:
            raise InputError(
                f"--include-data goes with a checkpoint, and {folder} is a bundle, which always contains its golden"
                " inputs: omit --include-data"
            )
        facts, files = _bundle(folder, report)
    elif (folder / "config.json").is_file():
        facts, files = _checkpoint(folder, report, include_data=include_data)
    else:
        raise InputError(f"{folder} is neither a checkpoint nor a bundle: give the folder of one")
    card = None
    if not (folder / CARD).is_file():
        card = model_card(facts, repository, None if bench is None else Path(bench))
    elif bench is not None:
        raise InputError(f"{folder / CARD} is the card, so --bench has no effect: delete the file, or omit --bench")
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        names = _stage(folder, files, staged)
        if card is not None:
            (staged / CARD).write_text(card, encoding="utf-8")
        try:
            hub.HfApi().create_repo(repository, private=not public, exist_ok=True)
            commit = hub.HfApi().upload_folder(
                repo_id=repository,
                folder_path=str(staged),
                commit_message=message or f"berxit: {facts.format}",
                delete_patterns=["segments/*"],  # segments of an earlier bundle
            )
        except Exception as error:  # huggingface_hub, httpx and the operating system raise unrelated types
            raise BerxitError(
                f"cannot upload {folder} to {repository}: {first_line(error)}. Check name, network and login"
                " (hf auth login)"
            ) from error
    return Published(repository, commit.commit_url, tuple(sorted({*names, CARD})))


def _bundle(folder: Path, report: Callable[[str], None]) -> tuple[CardFacts, list[Path]]:
    """Facts and files of a bundle, whose checksums are verified."""
    manifest = read_manifest(folder)
    report(f"{manifest.golden.file} contains sample texts of the data, and will be uploaded with the bundle")
    return facts_of_bundle(manifest), [folder / MANIFEST, *(folder / name for name in files_of(manifest))]


def _checkpoint(folder: Path, report: Callable[[str], None], *, include_data: bool) -> tuple[CardFacts, list[Path]]:
    """Facts and files of a checkpoint, without folders (results of berxit-eval)."""
    from berxit.train.calibration import TEXTS_FILE
    from berxit.train.checkpoint import DEV_FILE, SAMPLES_FILE

    facts = facts_of_checkpoint(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    data = [path for path in files if path.name in (TEXTS_FILE, DEV_FILE, SAMPLES_FILE)]
    if data and not include_data:
        names = ", ".join(path.name for path in data)
        report(f"not uploaded, because they contain texts of the data: {names}. --include-data uploads them")
        files = [path for path in files if path not in data]
    return facts, files


def _stage(folder: Path, files: Sequence[Path], staged: Path) -> list[str]:
    """Links ``files``, and those in folders among them (.mlpackage), below ``staged``; their relative names."""
    if (folder / CARD).is_file():
        files = [*files, folder / CARD]
    names = []
    for path in files:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            name = file.relative_to(folder).as_posix()
            link = staged / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if name in names:
                continue
            try:
                link.symlink_to(file.resolve())
            except OSError:  # Windows without the right to create links
                shutil.copyfile(file, link)
            names.append(name)
    return names
