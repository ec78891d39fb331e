"""Diagnostics of a stored pass: is certainty reliable, which predictions change, and how good is each class?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

BINS = 10
"""Number of bins of a reliability curve, each with about equally many examples."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Examples of one exit with similar certainties."""

    certainty: float
    """Mean certainty."""
    accuracy: float
    """Share of predictions that are right."""
    examples: int


@dataclass(frozen=True)
class CertaintyQuality:
    """How well a criterion's certainty at one exit tells right predictions from wrong ones."""

    exit_layer: int
    auroc: float | None
    """Probability that a right prediction has a higher certainty than a wrong one (area under the ROC curve). None if
    all predictions are right, or all are wrong, and for regression."""
    rank_correlation: float | None
    """Regression: Spearman correlation of the certainty with the negative absolute error. None for classification, and
    if all certainties or all errors are equal."""
    ece: float | None
    """Expected calibration error: mean of |certainty - accuracy| over the bins, weighted by examples. None unless the
    certainty is a probability."""
    bins: tuple[ReliabilityBin, ...] = ()
    """The reliability curve; empty unless the certainty is a probability."""


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

    row: int
    """Row of the pass, from 0."""
    exit_layer: int
    at_exit: str | float
    at_full_depth: str | float
    label: str | float


def certainty_quality(
    exit_layer: int, certainty: npt.NDArray, errors: npt.NDArray, *, classes: int, probability: bool
) -> CertaintyQuality:
    """Quality of the certainties (N,) of one exit, where a higher value is surer.

    Args:
        errors: (N,) for classification 1 for a wrong prediction, else 0; for regression the absolute error.
        classes: number of classes; 1 for regression.
        probability: the certainty estimates the probability that the prediction is right.
    """
    if classes == 1:
        constant = np.ptp(certainty) == 0 or np.ptp(errors) == 0
        rank = None if constant else float(stats.spearmanr(certainty, -errors).statistic)
        return CertaintyQuality(exit_layer, None, rank, None)
    right = errors == 0
    bins = reliability(certainty, right) if probability else ()
    return CertaintyQuality(exit_layer, auroc(certainty, right), None, ece(bins) if bins else None, bins)


def auroc(certainty: npt.NDArray, right: npt.NDArray) -> float | None:
    """Area under the ROC curve, by the rank-sum statistic: certainties (N,), right (N,) -> probability.

    None if all predictions are right, or all are wrong.
    """
    positives = int(right.sum())
    negatives = len(right) - positives
    if not positives or not negatives:
        return None
    ranks = stats.rankdata(certainty)
    return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def reliability(certainty: npt.NDArray, right: npt.NDArray, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """The reliability curve: certainties (N,) from 0 to 1, right (N,) -> bins of about equally many examples."""
    parts = np.array_split(np.argsort(certainty, kind="stable"), min(bins, len(certainty)))
    return tuple(ReliabilityBin(float(certainty[rows].mean()), float(right[rows].mean()), len(rows)) for rows in parts)


def ece(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error of a reliability curve (Guo et al., 2017, equation 3, with bins of equal size)."""
    total = sum(each.examples for each in bins)
    return sum(each.examples * abs(each.certainty - each.accuracy) for each in bins) / total


def confusion_matrix(predicted: npt.NDArray, labels: npt.NDArray, classes: int) -> npt.NDArray[np.int64]:
    """(C, C) number of examples: rows are labels, columns are predictions. Class numbers (N,), (N,)."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_scores(confusion: npt.NDArray[np.int64], names: Sequence[str]) -> list[ClassScore]:
    """Scores of each class from a confusion matrix (C, C)."""
    found = []
    for number, name in enumerate(names):
        right = int(confusion[number, number])
        examples, predicted = int(confusion[number].sum()), int(confusion[:, number].sum())
        found.append(
            ClassScore(
                name,
                examples,
                predicted,
                right / predicted if predicted else None,
                right / examples if examples else None,
                2 * right / (examples + predicted) if examples + predicted else None,
            )
        )
    return found
