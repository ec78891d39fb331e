"""What a run keeps while it goes on, so that an interruption costs little: ``.OUTPUT.training``, beside the output."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from transformers import TrainerCallback

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import parse, read_json, write_json
from berxit.train.modeling import MultiExitModel

LAST_WRITTEN = "trainer_state.json"
"""Trainer writes it after all else that it resumes from: a checkpoint that has it is whole."""
SECONDS = "seconds.json"
RUN_FILE = "run.json"
"""The run's key."""
KEY = ("options", "task", "model_sha256", "train_sha256", "processes")
"""Fields of a training record that the weights depend on: a run's key has these, and no others."""


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences between two keys, or records that contain one: "seed 42, now 1". A field that one lacks differs."""
    found = []
    for field in KEY:
        old, new = (json.loads(json.dumps(each.get(field))) for each in (before, now))  # as a file returns it
        if isinstance(old, dict) and isinstance(new, dict):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            found += [f"{name} {old.get(name)}, now {new.get(name)}" for name in names]
        elif old != new:
            found.append(f"other {field}" if field.endswith("sha256") else f"{field} {old}, now {new}")
    return found


@dataclass(frozen=True)
class StageResult:
    """done.json: a stage that is over, interruptions included."""

    steps: int
    """Optimiser steps."""
    seconds: float
    """Of training; what an interruption lost and what lay between is not counted."""
    loss: float
    """Mean over the last epoch, of what the stage minimised."""


@dataclass(frozen=True)
class RunState:
    """The folder of one run: its key, and per stage Trainer's checkpoints or, when it is over, weights and result."""

    folder: Path

    @classmethod
    def beside(cls, output: Path) -> RunState:
        return cls(output.with_name(f".{output.name}.training"))

    def is_of(self, key: dict[str, Any]) -> bool:
        """Whether an interrupted run of this ``key`` can be continued."""
        marker = self.folder / RUN_FILE
        return marker.is_file() and not changes(read_json(marker), key)

    def prepare(self, key: dict[str, Any], force: bool) -> None:
        """Keeps the state of an interrupted run of the same ``key``, without checkpoints that are not whole; else
        starts anew. One process calls it.

        Raises InputError for another run's state, unless ``force`` is given, which deletes it.
        """
        marker = self.folder / RUN_FILE
        if self.is_of(key):
            for checkpoint in self.folder.glob("stage-*/checkpoint-*"):
                if not _is_whole(checkpoint):
                    shutil.rmtree(checkpoint)
            return
        if marker.is_file() and not force:
            other = changes(read_json(marker), key)[0]
            raise InputError(
                f"{self.folder} is an interrupted run with other options or data ({other}): rerun with those to"
                " continue it, or add --force to start over"
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write_json(key, marker)

    def check_shared(self) -> None:
        """Raises BerxitError where this process cannot see what the first one has prepared."""
        if not (self.folder / RUN_FILE).is_file():
            raise BerxitError(
                f"{self.folder} is not to be seen from here: several machines need an --output that all of them share"
            )

    def stage(self, number: int) -> Path:
        return self.folder / f"stage-{number}"

    def last_checkpoint(self, number: int) -> str | None:
        """The newest of a stage; None where there is none yet."""
        found = list(self.stage(number).glob("checkpoint-*"))
        newest = max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
        return None if newest is None else str(newest)

    def finish(self, number: int, model: MultiExitModel, result: StageResult) -> None:
        """Keeps a stage's weights, from which the next one starts, and then its result, which says that it is over."""
        save_model(model, str(self.stage(number) / "model.safetensors"))
        write_json(asdict(result), self.stage(number) / "done.json")

    def finished(self, number: int, model: MultiExitModel) -> StageResult | None:
        """Loads what a stage left into the model; None where it is not over."""
        done = self.stage(number) / "done.json"
        if not done.is_file():
            return None
        load_model(model, str(self.stage(number) / "model.safetensors"))
        result: StageResult = parse(StageResult, read_json(done), str(done))
        return result

    def drop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Stopwatch(TrainerCallback):
    """Counts a stage's seconds over interruptions: each checkpoint remembers what it took to get there."""

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


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_json(checkpoint / LAST_WRITTEN)
    except BerxitError:
        return False
    return True
