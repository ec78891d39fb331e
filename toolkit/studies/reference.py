"""The scale of relative scores: the score that is 100%, and the constant prediction below which no score counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError
from berxit.toolkit.studies.runs import Group, StudyRun
from berxit.train.curves import relative_score
from berxit.train.resampling import Floats, RowBootstrap

DEFINITION = (
    "100% is the score at full depth, as the mean over the seeds of one group of runs: the first group of raw, else of"
    " two-stage, else the first of all, in the order of the command line; or as given by --relative-to"
)


@dataclass(frozen=True)
class Reference:
    """The scale of the relative scores of one model's runs."""

    score: float
    """The score that is 100%."""
    source: str
    metric: str
    floor: float
    """The score of the constant prediction."""
    runs: tuple[StudyRun, ...] = ()
    """The runs whose full depth has this score on average. Empty if a number was given."""

    def __str__(self) -> str:
        return f"100% is {self.metric} {self.score:.4f}, {self.source}"

    def relative(self, scores: npt.ArrayLike) -> Floats:
        """Scores in percent of 100%. Raises BerxitError if the reference is not above zero."""
        return np.asarray(relative_score(scores, self.score), dtype=np.float64)

    @property
    def relative_floor(self) -> float:
        """The constant prediction in percent."""
        return float(self.relative(self.floor))

    @property
    def above_floor(self) -> bool:
        """True if gains are defined: 100% is better than the constant prediction."""
        return self.score > self.floor

    def on_rows(self, rows: npt.NDArray[np.intp]) -> float:
        """The score that is 100% on some of the rows; a given number is the same for all."""
        parts = [run.predictions.select_rows(rows) for run in self.runs]
        return float(np.mean([part.full_depth_score for part in parts])) if parts else self.score

    def resampled(self, bootstrap: RowBootstrap) -> Floats:
        """(B,) the score that is 100% on each bootstrap sample."""
        scores = [bootstrap.scores(run.predictions.full_depth[None], run.predictions.labels)[:, 0] for run in self.runs]
        return np.mean(scores, axis=0) if scores else np.full(len(bootstrap.counts), self.score)


def floor_resampled(run: StudyRun, bootstrap: RowBootstrap) -> Floats:
    """(B,) score of the constant prediction on each bootstrap sample."""
    labels = run.predictions.labels
    if run.predictions.regression:
        return np.zeros(len(bootstrap.counts))
    constant = np.full((1, len(labels)), int(run.predictions.constant.prediction))
    return bootstrap.scores(constant, labels)[:, 0]


def default_reference(groups: Sequence[Group]) -> Reference:
    """The scale for the groups of one model without --relative-to: see DEFINITION.

    Groups and runs whose full depth is not better than the constant prediction are skipped, unless all are.
    """
    usable = [group for group in groups if group.usable] or list(groups)
    named = (next((group for group in usable if group.strategy == name), None) for name in ("raw", "two-stage"))
    return reference_of(next(filter(None, named), usable[0]), only=sum(len(group.runs) for group in groups) == 1)


def reference_of(group: Group, *, only: bool = False) -> Reference:
    """The scale whose 100% is the mean full depth of a group. ``only``: the study has no other run of the model."""
    runs = group.usable or group.runs
    seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
    source = "its own full depth" if only else f"full depth of {group.label}{seeds}"
    return Reference(float(np.mean([run.full_depth for run in runs])), source, metric_of(runs[0]), runs[0].floor, runs)


def given_reference(text: str, run: StudyRun) -> Reference:
    """The scale whose 100% is a given score. ``run``: any run of the study. Raises InputError unless 0 < score <= 1."""
    score = float(text)
    if not 0 < score <= 1:
        raise InputError(f"--relative-to {text} is out of range: give a score above 0 and at most 1, such as 0.889")
    return Reference(score, "as given", metric_of(run), run.floor)


def metric_of(run: StudyRun) -> str:
    return run.predictions.metric
