"""Bundles and checkpoints on the Hugging Face hub. huggingface_hub is imported only when it is needed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

from berxit.devices import install_command
from berxit.runtime.errors import BerxitError, InputError, first_line

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Name of a repository: owner/name."""


def hub_library() -> ModuleType:
    """The module ``huggingface_hub``. Raises BerxitError with the pip command if it is not installed."""
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise BerxitError(f"the hub needs huggingface_hub, which is not installed: {install_command('hub')}") from None
    return huggingface_hub


def check_repository(name: str) -> None:
    """Raises InputError unless ``name`` is "owner/name"."""
    if not REPOSITORY.fullmatch(name):
        raise InputError(f"'{name}' is not a repository on the hub: give owner/name")


def pretrained_folder(model: Path | str, revision: str | None = None) -> Path:
    """The folder ``model``, or the local copy of the repository ``model``, downloaded to the hub's cache.

    Raises InputError for a name that is neither, or a folder with a ``revision``; BerxitError if the download fails.
    """
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"model is {model!r} ({type(model).__name__}): give a folder or a repository owner/name")
    if Path(model).is_dir():
        if revision is not None:
            raise InputError(f"revision is '{revision}', but {model} is a folder: only a repository has revisions")
        return Path(model)
    if isinstance(model, os.PathLike) or not REPOSITORY.fullmatch(model):
        raise InputError(f"'{model}' is neither a folder nor a repository: give a folder, or owner/name on the hub")
    hub = hub_library()
    try:
        return Path(hub.snapshot_download(model, revision=revision))
    except Exception as error:  # huggingface_hub, httpx and the operating system raise unrelated types
        raise BerxitError(
            f"cannot download {model} from the hub: {first_line(error)}. Check the name and the network, or give a"
            " folder"
        ) from error
