"""Score of the exits after every epoch, and early stopping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors.torch import load_model, save_model
from transformers import TrainerCallback

from berxit.runtime.json_data import parse, read_json, to_json, write_json
from berxit.runtime.metrics import METRICS
from berxit.runtime.storage import replacing
from berxit.runtime.tables import plural
from berxit.train.encoding import EncodedExamples
from berxit.train.evaluation import run_all_layers
from berxit.train.modeling import MultiExitModel

SCORES_FILE = "scores.json"
BATCH_ROWS = 32


@dataclass(frozen=True)
class EpochScore:
    """Scores after an epoch."""

    step: int
    """Number of optimizer steps of the stage."""
    epoch: float
    exits: tuple[float, ...]
    """(n,) the score of each exit."""
    mean: float
    """Mean score of the exits that the stage trains; the highest is the best epoch."""


@dataclass(frozen=True)
class ScoredRows:
    """Rows that are not trained on, and their name for the user."""

    name: str
    encoded: EncodedExamples
    metric: str


class EpochScores(TrainerCallback):
    """Scores ``rows`` at the end of every epoch and of the stage.

    With ``patience``, the stage ends after so many epochs without a better score, and ``finish`` loads the weights of
    the best epoch. Scores and best weights are stored in ``folder`` before Trainer saves its checkpoint of the same
    step, so an interrupted stage has the scores of every epoch from which it can resume. Scoring draws no random
    numbers, so it does not change the training.
    """

    def __init__(
        self,
        model: MultiExitModel,
        rows: ScoredRows,
        folder: Path,
        *,
        exits: slice,
        epoch_steps: int,
        patience: int | None = None,
    ) -> None:
        self._model, self._rows, self._folder = model, rows, folder
        self._exits, self._epoch_steps, self._patience = exits, epoch_steps, patience
        self._report: Callable[[str], None] = lambda line: None
        self.scores: tuple[EpochScore, ...] = ()

    @property
    def best(self) -> EpochScore | None:
        """The first epoch with the highest score."""
        return max(self.scores, key=lambda each: each.mean, default=None)

    @property
    def stopped(self) -> bool:
        """True if the last ``patience`` epochs have no better score than an earlier one."""
        best = self.best
        if self._patience is None or best is None:
            return False
        return len(self.scores) - 1 - self.scores.index(best) >= self._patience

    def resume(self, step: int, report: Callable[[str], None]) -> None:
        """Reads the scores up to ``step``, from which the stage resumes. ``report`` receives a line per epoch."""
        self._report = report
        path = self._folder / SCORES_FILE
        if path.is_file():
            stored: tuple[EpochScore, ...] = parse(tuple[EpochScore, ...], read_json(path).get("scores"), str(path))
            self.scores = tuple(each for each in stored if each.step <= step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        ends = state.global_step % self._epoch_steps == 0 or state.global_step >= state.max_steps
        if not ends or any(each.step == state.global_step for each in self.scores):
            return
        first = bool(state.is_world_process_zero)
        found: list[Any] = [None]
        if first:
            found = [self._score(state.global_step)]
            self._store(found[0])
            self._report(self._line(found[0], state))
        if args.world_size > 1:
            broadcast_object_list(found)
        self.scores = (*self.scores, found[0])
        if self.stopped:
            control.should_training_stop = True

    def _score(self, step: int) -> EpochScore:
        logits, _ = run_all_layers(self._model, self._rows.encoded, BATCH_ROWS)
        self._model.train()
        encoded, config = self._rows.encoded, self._model.config
        predicted = config.task_kind.numbers(logits, config.labels, encoded.texts)
        exits = METRICS[self._rows.metric].scores(predicted.T, self._rows.encoded.labels)
        epoch = round(step / self._epoch_steps, 2)
        return EpochScore(step, epoch, tuple(exits.tolist()), float(exits[self._exits].mean()))

    def _store(self, score: EpochScore) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json({"scores": to_json((*self.scores, score))}, self._folder / SCORES_FILE)
        if self._patience is not None and (self.best is None or score.mean > self.best.mean):
            with replacing(self._weights(score)) as scratch:
                save_model(self._model, str(scratch))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Deletes weights that are not needed from the saved step on."""
        if state.is_world_process_zero and (best := self.best) is not None:
            for path in self._folder.glob("best-*.safetensors"):
                if path != self._weights(best):
                    path.unlink()

    def finish(self) -> str:
        """With ``patience``, loads the weights of the best epoch into the model. Returns a line about it, else an empty
        one."""
        best = self.best
        if self._patience is None or best is None:
            return ""
        load_model(self._model, str(self._weights(best)))
        why = f"no better score in {plural(self._patience, 'epoch')}" if self.stopped else "all epochs are done"
        return f"{why}: the weights of epoch {best.epoch:g} are kept, {self._rows.metric} {best.mean:.4f}"

    def _weights(self, score: EpochScore) -> Path:
        return self._folder / f"best-{score.step}.safetensors"

    def _line(self, score: EpochScore, state: Any) -> str:
        epochs = round(state.max_steps / self._epoch_steps, 2)
        text = f"epoch {score.epoch:g} of {epochs:g}: {self._rows.metric} on {self._rows.name}"
        trained = range(1, len(score.exits) + 1)[self._exits]
        parts = [f"{score.exits[-1]:.4f} at full depth"] if trained[-1] == len(score.exits) else []
        if len(trained) > 1:
            parts.append(f"{score.mean:.4f} on average over exits {trained[0]} to {trained[-1]}")
        return f"{text} {', '.join(parts)}"
