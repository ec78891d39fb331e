"""State of a training run in ``.OUTPUT.training``, next to the output, from which an interrupted run resumes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from transformers import TrainerCallback

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import parse, read_json, write_json
from berxit.runtime.storage import used_alone, write_errors
from berxit.train.epoch_scores import EpochScore
from berxit.train.modeling import MultiExitModel

LAST_WRITTEN = "trainer_state.json"
"""The last file that Trainer writes into a checkpoint: a checkpoint with this file is complete."""
SECONDS = "seconds.json"
RUN_FILE = "run.json"
"""File with the run's key."""
KEY = ("options", "task", "model_sha256", "train_sha256", "processes")
"""Fields of a run's key: those fields of a training record on which the weights depend."""


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences between two keys, or records that contain one: "seed 42, now 1". A missing field is a difference."""
    found = []
    for field in KEY:
        old, new = (json.loads(json.dumps(each.get(field))) for each in (before, now))  # A file has lists, no tuples.
        if isinstance(old, dict) and isinstance(new, dict):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            found += [f"{name} {old.get(name)}, now {new.get(name)}" for name in names]
        elif old != new:
            found.append(f"other {field}" if field.endswith("sha256") else f"{field} {old}, now {new}")
    return found


@dataclass(frozen=True)
class StageResult:
    """Content of done.json: the result of a finished stage."""

    steps: int
    """Number of optimizer steps."""
    seconds: float
    """Training time, without interruptions and without steps that an interruption lost."""
    loss: float
    """Mean training loss of the last epoch."""
    scores: tuple[EpochScore, ...] = ()
    """Scores after every epoch; empty if there are no rows to score."""


@dataclass(frozen=True)
class RunState:
    """The folder of one run. It contains the key. For each stage, it contains Trainer's checkpoints or, if the stage is
    finished, its weights and result."""

    folder: Path

    @classmethod
    def of(cls, output: Path) -> RunState:
        return cls(output.with_name(f".{output.name}.training"))

    def is_of(self, key: dict[str, Any]) -> bool:
        """True if the folder is an interrupted run with this ``key``, which can be resumed."""
        marker = self.folder / RUN_FILE
        return marker.is_file() and not changes(read_json(marker), key)

    @contextmanager
    def prepared(self, key: dict[str, Any], force: bool) -> Iterator[None]:
        """Context manager of the state of a run, which no other process can use meanwhile.

        Keeps the state of an interrupted run with the same ``key``, except incomplete checkpoints. Otherwise creates
        an empty state. Of several processes of one training, only one may call it.

        Raises InputError if another process uses the state, and for the state of another run; with ``force``, the
        latter is deleted instead. Raises BerxitError if it cannot be written.
        """
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with used_alone(self.folder):
            try:
                with write_errors(self.folder):
                    self._prepare(key, force)
                yield
            finally:
                with suppress(OSError):  # it is not empty
                    self.folder.rmdir()

    def _prepare(self, key: dict[str, Any], force: bool) -> None:
        marker = self.folder / RUN_FILE
        if self.is_of(key):
            for checkpoint in self.folder.glob("stage-*/checkpoint-*"):
                if not _is_complete(checkpoint):
                    shutil.rmtree(checkpoint)
            return
        if marker.is_file() and not force:
            other = changes(read_json(marker), key)[0]
            raise InputError(
                f"{self.folder} is an interrupted run with other options or data ({other}): rerun with its options to"
                " resume it, or add --force to delete it and start again"
            )
        for path in self.folder.iterdir():  # The folder itself is locked.
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(key, marker)

    def check_shared(self) -> None:
        """Raises BerxitError if this process cannot read the folder that the first process prepared."""
        if not (self.folder / RUN_FILE).is_file():
            raise BerxitError(
                f"{self.folder} is not visible on this host: multi-node training needs an --output on shared storage"
            )

    def stage(self, number: int) -> Path:
        return self.folder / f"stage-{number}"

    def last_checkpoint(self, number: int) -> str | None:
        """The newest checkpoint of a stage; None if there is none yet."""
        found = list(self.stage(number).glob("checkpoint-*"))
        newest = max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
        return None if newest is None else str(newest)

    def finish(self, number: int, model: MultiExitModel, result: StageResult) -> None:
        """Stores a stage's weights, from which the next stage starts, and then its result, which marks it as
        finished."""
        save_model(model, str(self.stage(number) / "model.safetensors"))
        write_json(asdict(result), self.stage(number) / "done.json")

    def finished(self, number: int, model: MultiExitModel) -> StageResult | None:
        """Loads the weights of a finished stage into the model and returns its result; None if it is not finished."""
        done = self.stage(number) / "done.json"
        if not done.is_file():
            return None
        load_model(model, str(self.stage(number) / "model.safetensors"))
        result: StageResult = parse(StageResult, read_json(done), str(done))
        return result

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Stopwatch(TrainerCallback):
    """Measures a stage's training time across interruptions: every checkpoint stores the time until it was saved."""

    def __init__(self, resumed: str | None) -> None:
        path = Path(resumed or "") / SECONDS
        self.before = float(read_json(path)["seconds"]) if resumed and path.is_file() else 0.0
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json({"seconds": self.seconds}, folder / SECONDS)


def _is_complete(checkpoint: Path) -> bool:
    try:
        read_json(checkpoint / LAST_WRITTEN)
    except BerxitError:
        return False
    return True
