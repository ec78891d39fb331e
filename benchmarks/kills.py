"""Stress test: a command that is killed at any moment must leave a complete artifact and must succeed when rerun.

    python benchmarks/kills.py MODEL DATA [--kills 200] [--minutes 60] --output kills

MODEL is the folder of a pre-trained encoder, DATA a custom task with the columns text and label. A tiny model is
enough, because the test is about the order of file operations. ``train``, ``calibrate``, ``export``, ``score`` and
``build`` run in forked child processes, with and without --force, and are killed by SIGKILL. Half of the kills occur at
a random moment, the others before one of the last moves (rename, replace, exchange, removal) that put the artifact in
place. Half of the latter replace folders by two renames.

- ``score`` runs on an engine in its own process, which reads and writes the files as Ray and Spark do.
  ``benchmarks/corpus.py`` kills the workers of Ray and Spark.
- ``build`` builds engines with TensorRT for RTX, which needs no GPU. Its artifact is the cache folder: every engine in
  it must be complete. It is left out if TensorRT for RTX is not installed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pyarrow
from pyarrow import dataset, parquet
from transformers.utils.logging import disable_progress_bar

from berxit.runtime import storage
from berxit.runtime.bundle import read_manifest
from berxit.runtime.console import debug_option, progress_bar, run, status_of
from berxit.runtime.data_files import read_records
from berxit.runtime.errors import BerxitError
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.toolkit.cli import load
from berxit.toolkit.scoring.engines import ENGINES, Engine, Job
from berxit.train.calibration import PASS_FILE, read_policy
from berxit.train.checkpoint import load_checkpoint, read_record
from berxit.train.evaluation import Predictions

FEW_ROWS = 8
"""Rows of the corpus of ``score`` whose output is the old artifact, and of each of its files."""
TENSORRT_RTX = "tensorrt_rtx_bindings"
LAST = 8
"""Number of moves at the end of a command before which kills occur."""
MISUSE = 2
"""Exit status of a command that does not overwrite an existing artifact."""


@dataclass(frozen=True)
class Case:
    """Command to kill, with a function that identifies its artifact."""

    name: str
    command: str
    old: tuple[object, ...] | None
    """Arguments that create the artifact that exists before; None: there is none."""
    new: tuple[object, ...]
    which: Callable[[Path], str]
    """Returns "old" or "new" for a complete artifact. Raises an error for an incomplete one."""
    artifact: str


@dataclass
class Counts:
    """Results of one case."""

    name: str
    kills: int = 0
    at_a_move: int = 0
    """Number of kills before a move."""
    none: int = 0
    """Number of kills after which there was no artifact yet, in cases without an old artifact."""
    old: int = 0
    """Number of kills after which the old artifact was in place."""
    new: int = 0
    """Number of kills after which the new artifact was in place."""
    finished: int = 0
    """Number of kills after which a rerun of the command succeeded."""
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.faults and self.finished == self.kills


def which_checkpoint(checkpoint: Path) -> str:
    load_checkpoint(checkpoint)
    return "old" if read_record(checkpoint)["options"]["seed"] == 1 else "new"


def which_policy(checkpoint: Path) -> str:
    """Checks that the checkpoint loads and that its policy and stored pass match."""
    load_checkpoint(checkpoint)
    policy = read_policy(checkpoint)
    if policy is None:
        raise BerxitError(f"{checkpoint} has no policy")
    examples = len(Predictions.load(checkpoint / PASS_FILE).labels)
    if examples != policy.calibration.examples:
        raise BerxitError(
            f"the policy was calibrated on {policy.calibration.examples} examples, the stored pass has {examples}"
        )
    return "old" if policy.calibration.criterion == "entropy" else "new"


def which_bundle(bundle: Path) -> str:
    return "old" if len(read_manifest(bundle).exits) == 1 else "new"


def which_output(output: Path) -> str:
    """An output of ``berxit score`` is complete if its rows can be counted: the old corpus has fewer."""
    return "old" if dataset.dataset(output, format="parquet").count_rows() == FEW_ROWS else "new"


def score_here(job: Job) -> int:
    """An engine in this process: scores a corpus in batches, and writes a Parquet file after each."""
    columns = job.scorer.text_columns
    records = [record for path in job.files for _, record in read_records(path, columns)]
    for start in range(0, len(records), FEW_ROWS):
        table = pyarrow.Table.from_pylist(records[start : start + FEW_ROWS])
        parquet.write_table(job.scorer(table), job.output / f"{start:08}.parquet")
    return len(records)


def which_engines(size: dict[str, int], cache: Path) -> str:
    """``size``: name of an engine -> its size. An incomplete engine is an error, a missing one is built later. A file
    that was being written has a hidden name, under which no reader looks for an engine."""
    found = {path.name: path.stat().st_size for path in cache.rglob("*.engine") if not path.name.startswith(".")}
    for name, each in found.items():
        if each != size[name]:
            raise BerxitError(f"{name} has {each} bytes of {size[name]}")
    return "new" if found == size else "old"


def cases(place: Path, model: Path, data: Path) -> list[Case]:
    """Cases that write below ``place``. Trains the checkpoint that calibrate and export need first."""
    sizes = ("--max-steps", 4, "--batch-size", 8, "--max-length", 16, "--limit-train", 32, "--quiet")
    output = place / "work" / "artifact"
    training = ("--model", model, "--task", "custom", "--data", data, "--output", output, *sizes)
    ready = place / "checkpoint"
    finish(forked("train", ("--model", model, "--task", "custom", "--data", data, "--output", ready, *sizes)))
    short = place / "short"
    short.mkdir()
    lines = (data / "dev.tsv").read_text(encoding="utf-8").splitlines()
    (short / "dev.tsv").write_text("\n".join(lines[: len(lines) // 2]) + "\n", encoding="utf-8")
    calibrating = (output, "--criterion", "entropy", "--data", short, "--quiet")
    exporting = ("--target", "onnxruntime", ready, "--output", output, "--quiet")
    layers = int(json.loads((ready / "config.json").read_text(encoding="utf-8"))["backbone"]["num_hidden_layers"])
    bundle = place / "bundle"
    finish(forked("export", ("--target", "onnxruntime", ready, "--output", bundle, "--quiet")))
    ENGINES["here"] = Engine("pyarrow", score_here)
    few = place / "few.tsv"
    few.write_text("".join(f"{line}\n" for line in lines[: FEW_ROWS + 1]), encoding="utf-8")
    scoring = ("--engine", "here", "--output", output, "--text-column", "text", "--quiet")
    return [
        Case("train", "train", None, (*training, "--seed", 2), which_checkpoint, "artifact"),
        Case(
            "train --force",
            "train",
            (*training, "--seed", 1),
            (*training, "--seed", 2, "--force"),
            which_checkpoint,
            "artifact",
        ),
        Case("calibrate", "calibrate", calibrating, (output, "--data", data, "--quiet"), which_policy, "artifact"),
        Case("export", "export", None, exporting, which_bundle, "artifact"),
        Case(
            "export --force",
            "export",
            (*exporting, "--exits", layers),
            (*exporting, "--force"),
            which_bundle,
            "artifact",
        ),
        Case("score", "score", None, (bundle, data / "dev.tsv", *scoring), which_output, "artifact"),
        Case(
            "score --force",
            "score",
            (bundle, few, *scoring),
            (bundle, data / "dev.tsv", *scoring, "--force"),
            which_output,
            "artifact",
        ),
        *_build_case(place, ready, output),
    ]


def _build_case(place: Path, checkpoint: Path, output: Path) -> list[Case]:
    """The case of ``build``, if TensorRT for RTX is installed."""
    if find_spec(TENSORRT_RTX) is None:
        return []
    import_module(TENSORRT_RTX)  # once, not in every fork
    bundle, whole = place / "tensorrt", place / "engines"
    finish(forked("export", ("--target", "tensorrt", checkpoint, "--output", bundle, "--quiet")))
    building = (bundle, "--builder", "tensorrt-rtx", "--sm", "86", "--quiet", "--output")
    finish(forked("build", (*building, whole)))
    size = {path.name: path.stat().st_size for path in whole.rglob("*.engine")}
    return [Case("build", "build", None, (*building, output), partial(which_engines, size), "artifact")]


def forked(command: str, arguments: Sequence[object], *, at: int | None = None, two_renames: bool = False) -> int:
    """Runs a command in a fork of this process, in which everything is imported. Returns its process id.

    ``at``: the process kills itself before its move of this number. It writes the number of its moves to the file
    ``moves`` in the current folder.
    """
    process = os.fork()
    if process:
        return process
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 2)
    moves = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def move(*given: Any) -> Any:
            nonlocal moves
            if moves == at:
                os.kill(os.getpid(), signal.SIGKILL)
            moves += 1
            return real(*given)

        return move

    if two_renames:
        storage._exchange = lambda one, other: False
    Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)  # type: ignore[method-assign]
    storage._exchange, storage._remove = counted(storage._exchange), counted(storage._remove)
    status = status_of(load(command), [str(argument) for argument in arguments])
    Path("moves").write_text(str(moves), encoding="utf-8")
    os._exit(status)


def finish(process: int) -> int:
    """Waits for a command. Returns its exit status; negative if a signal ended it."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status > 0 and status != MISUSE:
        raise BerxitError(f"a command ended with status {status}: {Path('log').read_text(encoding='utf-8')}")
    return status


def prepare(case: Case, place: Path) -> Path:
    """Path of the artifact, in a new folder that contains the old artifact if the case has one."""
    work, kept = place / "work", place / f"old {case.name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    artifact = work / case.artifact
    if case.old is not None:
        if not kept.exists():
            if case.command == "calibrate":
                shutil.copytree(place / "checkpoint", artifact)
            finish(forked(case.command, case.old))
            shutil.copytree(artifact, kept)
        else:
            shutil.copytree(kept, artifact)
    return artifact


def kill_once(case: Case, place: Path, rng: random.Random, seconds: float, moves: int | None, counts: Counts) -> None:
    """Kills a command once, and checks the artifact and a rerun.

    ``moves``: number of moves of the command, to kill it before one of the last; None: kill it at a random moment
    within ``seconds``.
    """
    artifact = prepare(case, place)
    if moves is None:
        process = forked(case.command, case.new)
        time.sleep(rng.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
    else:
        process = forked(
            case.command, case.new, at=rng.randrange(max(0, moves - LAST), moves + 1), two_renames=rng.random() < 0.5
        )
    if finish(process) == 0:
        return  # the command ended before the kill
    counts.kills += 1
    counts.at_a_move += moves is not None
    try:
        storage.recover(artifact)
        if not artifact.exists():
            if case.old is not None:
                raise BerxitError("neither the old nor the new artifact exists")
            counts.none += 1
        elif case.which(artifact) == "old":
            counts.old += 1
        else:
            counts.new += 1
        before = artifact.exists()
        status = finish(forked(case.command, case.new))
        if status not in ((0, MISUSE) if before and "--force" not in case.new else (0,)):
            raise BerxitError(f"the rerun ended with status {status}")
        if case.which(artifact) != "new":
            raise BerxitError("the rerun did not create the new artifact")
        inside = [path.name for path in artifact.rglob(".*")]
        left = [path.name for path in artifact.parent.iterdir() if path.name != case.artifact]
        if status == 0 and (left or inside):
            raise BerxitError(f"the rerun did not remove the scratch files {left + inside}")
        counts.finished += 1
    except Exception as error:
        counts.faults.append(f"{type(error).__name__}: {error}")


def campaign(model: Path, data: Path, kills: int, seconds: float, seed: int, each: Callable[[], None]) -> list[Counts]:
    """Kills all cases in rotation until ``kills`` kills are done or ``seconds`` are over; half of them at a move."""
    rng = random.Random(seed)
    start = time.monotonic()
    back = Path.cwd()
    model, data = model.resolve(), data.resolve()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        os.chdir(place)
        try:
            known = []
            for case in cases(place, model, data):
                prepare(case, place)
                began = time.monotonic()
                finish(forked(case.command, case.new))
                known.append((case, time.monotonic() - began, int(Path("moves").read_text(encoding="utf-8"))))
            found = [Counts(case.name) for case, _, _ in known]
            turn = 0
            while sum(counts.kills for counts in found) < kills and time.monotonic() - start < seconds:
                case, took, moves = known[turn % len(known)]
                before = found[turn % len(known)].kills
                aimed = (turn // len(known)) % 2 == 0
                kill_once(case, place, rng, took, moves if aimed else None, found[turn % len(known)])
                if found[turn % len(known)].kills > before:
                    each()
                turn += 1
        finally:
            os.chdir(back)
    return found


@click.command("kills")
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--kills", default=200, show_default=True)
@click.option("--minutes", default=60.0, show_default=True, help="Maximum duration.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--quiet", is_flag=True)
@debug_option
def command(model: Path, data: Path, kills: int, minutes: float, seed: int, output: Path, quiet: bool) -> int:
    """Kill commands on MODEL and DATA. The exit status is 1 if a kill damages an artifact."""
    with progress_bar("killing", quiet)(kills) as bar:
        found = campaign(model, data, kills, 60 * minutes, seed, lambda: bar.update(1))
    rows = [
        [c.name, str(c.kills), str(c.at_a_move), str(c.none), str(c.old), str(c.new), str(c.finished)] for c in found
    ]
    header = ["command", "kills", "at a move", "none yet", "old one", "new one", "then finished"]
    text = markdown_table(header, rows)
    write_results(output, "kills", {"cases": [asdict(counts) for counts in found], "seed": seed}, text)
    click.echo(text)
    for fault in sorted({fault for counts in found for fault in counts.faults}):
        click.echo(fault, err=True)
    return 0 if all(counts.good for counts in found) else 1


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    if sys.platform == "win32":
        sys.exit("kills.py needs fork and SIGKILL: run it on Linux or macOS")
    disable_progress_bar()
    run(command)
