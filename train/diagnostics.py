"""Diagnostics of a stored pass: is certainty reliable, which predictions change, and how good is each class?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.metrics import confusion_matrix
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, exit_layers
from berxit.runtime.reliability import CertaintyQuality, certainty_quality
from berxit.runtime.tokenization import Text
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec, family

FLIPS = 10
"""Number of flips that are listed."""
WRONG = 100
"""Largest number of wrong rows that are listed."""


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class."""

    name: str
    examples: int
    """Examples with this label."""
    predicted: int
    """Examples with this prediction."""
    precision: float | None
    """Share of the predictions of this class that are right; None if there are none."""
    recall: float | None
    """Share of the examples of this class that are found; None if there are none."""
    f1: float | None
    """Harmonic mean of precision and recall; None if there are neither examples nor predictions."""


@dataclass(frozen=True)
class Flip:
    """An example whose prediction at its exit differs from full depth's."""

    text: Text
    exit_layer: int
    certainty: float
    prediction: str
    full_depth: str
    label: str


@dataclass(frozen=True)
class WrongRow:
    """An example that a policy predicts wrongly."""

    text: Text
    label: str | float
    """Class name; for regression the value, also of the prediction."""
    prediction: str | float
    exit_layer: int
    certainty: float


@dataclass(frozen=True)
class WrongRows:
    """The wrong predictions of a policy."""

    count: int
    """Number of wrong rows; for regression, of rows that differ from the label at all."""
    rows: tuple[WrongRow, ...]
    """At most WRONG: the most certain; for regression, those with the largest errors."""


@dataclass(frozen=True)
class PolicyDiagnostics:
    """A policy of a model with classes or labels, example by example."""

    average_exit_layer: float
    flipped: float
    """Share of examples whose prediction differs from full depth's."""
    fixed_by_exiting: float
    """Share of examples that the policy predicts correctly, and full depth does not."""
    flips: tuple[Flip, ...]
    """The flips with the highest certainty, at most FLIPS."""
    classes: tuple[ClassScore, ...]
    """Scores of each class or label under the policy."""
    full_depth_classes: tuple[ClassScore, ...]
    """Scores of each class at full depth."""
    confusion: tuple[tuple[int, ...], ...]
    """(C, C) number of examples under the policy: rows are labels, columns are predictions. Empty
    for texts with several decisions."""


def criterion_quality(predictions: Predictions, criterion: str) -> tuple[CertaintyQuality, ...]:
    """The quality of a criterion's certainty at each of the n exits."""
    kind, certainty = CRITERIA[criterion], family(predictions, PolicySpec(criterion)).certainty
    certainty = certainty if kind.higher_is_more_certain else -certainty
    predicted, labels = predictions.predicted(), predictions.labels[:, None]
    errors = np.abs(predicted - labels) if predictions.regression else predicted != labels
    classes = predictions.outputs
    return tuple(
        certainty_quality(
            int(layer), certainty[:, place], errors[:, place], classes=classes, probability=kind.probability
        )
        for place, layer in enumerate(predictions.exit_layers)
    )


def policy_diagnostics(predictions: Predictions, policy: ExitPolicy, texts: Sequence[Text]) -> PolicyDiagnostics:
    """The policy on a stored pass, not of a regression model. ``texts`` (N,): the examples' texts."""
    p, rows, full = predictions, range(len(predictions.labels)), predictions.full_depth
    taken, predicted, reached = _under(p, policy)
    order = _most_certain_first(np.flatnonzero(predicted != full), reached, policy)
    return PolicyDiagnostics(
        average_exit_layer=float(p.exit_layers[taken - 1].mean()),
        flipped=len(order) / len(rows),
        fixed_by_exiting=float(((predicted == p.labels) & (full != p.labels)).mean()),
        flips=tuple(
            Flip(
                texts[row],
                int(p.exit_layers[taken[row] - 1]),
                float(reached[row]),
                str(p.text(predicted[row])),
                str(p.text(full[row])),
                str(p.text(p.labels[row])),
            )
            for row in order[:FLIPS].tolist()
        ),
        classes=_class_scores(p, predicted),
        full_depth_classes=_class_scores(p, full),
        confusion=()
        if p.task_kind.several
        else tuple(map(tuple, confusion_matrix(predicted, p.labels, p.label_count).tolist())),
    )


def wrong_rows(predictions: Predictions, policy: ExitPolicy, texts: Sequence[Text]) -> WrongRows:
    """The wrong rows of a policy on a stored pass. ``texts`` (N,): the examples' texts."""
    p = predictions
    taken, predicted, reached = _under(p, policy)
    errors = np.abs(predicted - p.labels) if p.regression else (predicted != p.labels).astype(np.float64)
    wrong = np.flatnonzero(errors > 0)
    order = (
        wrong[np.argsort(-errors[wrong], kind="stable")]
        if p.regression
        else _most_certain_first(wrong, reached, policy)
    )

    rows = tuple(
        WrongRow(
            texts[row],
            p.text(p.labels[row]),
            p.text(predicted[row]),
            int(p.exit_layers[taken[row] - 1]),
            float(reached[row]),
        )
        for row in order[:WRONG].tolist()
    )
    return WrongRows(len(wrong), rows)


def _under(p: Predictions, policy: ExitPolicy) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
    """(N,) place of the exit that each example takes, from 1; its prediction; the certainty there."""
    rows = np.arange(len(p.labels))
    of_exits = policy.at_exits(p.exit_layers.tolist())
    certainty = certainties(of_exits, p.logits, p.lte)
    taken = exit_layers(of_exits, certainty, p.logits)
    return taken, p.predicted()[rows, taken - 1], certainty[rows, taken - 1]


def _most_certain_first(rows: npt.NDArray, certainty: npt.NDArray, policy: ExitPolicy) -> npt.NDArray:
    """The row numbers, ordered by certainty (N,)."""
    sign = -1 if CRITERIA[policy.criterion].higher_is_more_certain else 1
    return np.asarray(rows[np.argsort(certainty[rows] * sign, kind="stable")])


def _class_scores(p: Predictions, predicted: npt.NDArray) -> tuple[ClassScore, ...]:
    """Scores of each class or label for predictions (N,)."""
    counts = p.task_kind.counts(predicted, p.labels, p.class_names)
    return tuple(class_score(*each) for each in counts)


def class_score(name: str, right: int, predicted: int, examples: int) -> ClassScore:
    """Scores of one class from its number of right predictions, of predictions, and of examples."""
    return ClassScore(
        name,
        examples,
        predicted,
        right / predicted if predicted else None,
        right / examples if examples else None,
        2 * right / (examples + predicted) if examples + predicted else None,
    )
