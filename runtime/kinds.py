"""Task kinds: what a text's prediction is, and which decisions an exit policy reads from the logits.

A text of a classification or regression model has one decision. A text of a multilabel model has one decision per
label. A policy reads decisions: logits (B, K) of one decision per text, or (B, D, K) of D decisions per text. With
several decisions, the certainty of a text is that of its least certain decision.

A prediction of one text is one number, so that predictions are compared, scored and counted in arrays: the class
number, the value of a regression, or the set of labels as bits (label j is bit j). B rows, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.runtime.policies import Floats, softmax
from berxit.runtime.prediction import Prediction

CERTAIN = -30000.0
"""Logit of all classes but the first in a decision that only fills an array. Its certainty is the highest possible."""
MOST_LABELS = 62
"""Largest number of labels of a multilabel model: a set of labels is stored as bits of an int64."""


class Described(NamedTuple):
    """A prediction of one text in the terms of the user."""

    label: str | float
    """Class name; for regression the value; for multilabel the labels, joined by SEPARATOR."""
    scores: dict[str, float]
    """Class or label -> probability; for regression {"value": ...}."""
    labels: tuple[str, ...] | None = None
    """Multilabel: the set of labels."""


class ClassCount(NamedTuple):
    """Rows of one class or label."""

    name: str
    right: int
    predicted: int
    rows: int


class Kind:
    """A task kind, the manifest's ``model.kind``."""

    name: str
    description: str
    default_metric = "accuracy"
    label_counts: tuple[int, float] = (2, math.inf)
    """Smallest and largest number of labels of a model."""
    several = False
    """True if a text has several decisions."""
    since = 1
    """The first schema version of bundles whose readers know the kind."""

    def outputs(self, labels: Sequence[str]) -> int:
        """C, the number of logits of an exit."""
        return len(labels)

    def classes(self, labels: Sequence[str]) -> int:
        """K, the number of classes of a decision; 1 for a value."""
        return self.outputs(labels)

    def decisions(self, logits: Floats) -> Floats:
        """Logits (..., C) of exits -> logits of the decisions, (..., K) or (..., D, K)."""
        return logits

    def numbers(self, decisions: Floats) -> npt.NDArray:
        """Predictions of decisions (..., K) or (..., D, K): one number per text (...,)."""
        return decisions.argmax(axis=-1)

    def number(self, prediction: Prediction, labels: Sequence[str]) -> float:
        """The number of a runner's prediction."""
        return labels.index(str(prediction.label))

    def text(self, number: float, labels: Sequence[str]) -> str | float:
        """A prediction as text: a class name. For regression the value."""
        return labels[int(number)]

    def describe(self, decisions: Floats, labels: Sequence[str]) -> list[Described]:
        """The predictions of B texts from the logits of their decisions, divided by the temperature."""
        rows = softmax(decisions).tolist()
        return [Described(labels[row.index(max(row))], dict(zip(labels, row, strict=True))) for row in rows]

    def counts(self, predicted: npt.NDArray, truth: npt.NDArray, labels: Sequence[str]) -> list[ClassCount]:
        """Per class: right predictions, predictions, and true rows, for numbers (N,) of predictions and labels."""
        return [
            ClassCount(
                name,
                int(np.count_nonzero((predicted == number) & (truth == number))),
                int(np.count_nonzero(predicted == number)),
                int(np.count_nonzero(truth == number)),
            )
            for number, name in enumerate(labels)
        ]

    def bins(self, numbers: npt.NDArray, labels: Sequence[str]) -> tuple[npt.NDArray, int]:
        """The bin of each prediction in the histograms of drift, and the number of bins; 1 for values."""
        return numbers, len(labels)


class Classification(Kind):
    """One class per text, by softmax."""

    name = "classification"
    description = "one class per text"


class Regression(Kind):
    """One value per text."""

    name = "regression"
    description = "one number per text"
    default_metric = "spearman"
    label_counts = (0, 0)

    def outputs(self, labels: Sequence[str]) -> int:
        return 1

    def numbers(self, decisions: Floats) -> npt.NDArray:
        return decisions[..., 0]

    def number(self, prediction: Prediction, labels: Sequence[str]) -> float:
        return float(prediction.label)

    def text(self, number: float, labels: Sequence[str]) -> str | float:
        return float(number)

    def describe(self, decisions: Floats, labels: Sequence[str]) -> list[Described]:
        return [Described(value, {"value": value}) for value in decisions[:, 0].tolist()]

    def bins(self, numbers: npt.NDArray, labels: Sequence[str]) -> tuple[npt.NDArray, int]:
        return numbers, 1


class Multilabel(Kind):
    """A set of labels per text, by one sigmoid per label. A label is predicted if its logit is above 0."""

    name = "multilabel"
    description = "any number of labels per text, also none"
    default_metric = "micro-f1"
    label_counts = (1, MOST_LABELS)
    several = True
    since = 3

    def classes(self, labels: Sequence[str]) -> int:
        return 2

    def decisions(self, logits: Floats) -> Floats:
        """(..., C) -> (..., C, 2): the softmax of (0, logit) is (1 - p, p) with p = sigmoid(logit)."""
        return np.stack([np.zeros_like(logits), logits], axis=-1)

    def numbers(self, decisions: Floats) -> npt.NDArray:
        return to_bits(decisions.argmax(axis=-1))

    def number(self, prediction: Prediction, labels: Sequence[str]) -> float:
        return sum(1 << labels.index(name) for name in prediction.labels or ())

    def text(self, number: float, labels: Sequence[str]) -> str | float:
        return SEPARATOR.join(label_set(int(number), labels))

    def describe(self, decisions: Floats, labels: Sequence[str]) -> list[Described]:
        found = []
        for number, row in zip(self.numbers(decisions).tolist(), softmax(decisions)[..., 1].tolist(), strict=True):
            names = label_set(number, labels)
            found.append(Described(SEPARATOR.join(names), dict(zip(labels, row, strict=True)), names))
        return found

    def counts(self, predicted: npt.NDArray, truth: npt.NDArray, labels: Sequence[str]) -> list[ClassCount]:
        named, true = (from_bits(numbers, len(labels)) for numbers in (predicted, truth))
        sums = zip(labels, (named & true).sum(axis=0), named.sum(axis=0), true.sum(axis=0), strict=True)
        return [ClassCount(name, int(right), int(count), int(rows)) for name, right, count, rows in sums]

    def bins(self, numbers: npt.NDArray, labels: Sequence[str]) -> tuple[npt.NDArray, int]:
        """Bins are numbers of labels."""
        return from_bits(numbers, len(labels)).sum(axis=-1), len(labels) + 1


SEPARATOR = "|"
"""Separates the labels of a set in text."""
KINDS: dict[str, Kind] = {kind.name: kind for kind in (Classification(), Regression(), Multilabel())}


def to_bits(present: npt.NDArray) -> npt.NDArray[np.int64]:
    """Sets of labels as numbers: (..., C) True or 1 for a label of the set -> (...,)."""
    return (present.astype(np.int64) << np.arange(present.shape[-1])).sum(axis=-1)


def from_bits(numbers: npt.NDArray, labels: int) -> npt.NDArray[np.int64]:
    """The opposite of ``to_bits``: (...,) -> (..., C), 1 for a label of the set."""
    return (np.asarray(numbers, dtype=np.int64)[..., None] >> np.arange(labels)) & 1


def label_set(number: int, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels of a set, in the order of the model."""
    return tuple(name for place, name in enumerate(labels) if number >> place & 1)
