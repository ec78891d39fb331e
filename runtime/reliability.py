"""Quality of certainties: do they separate right predictions from wrong ones, and are they calibrated?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.metrics import mean_ranks, spearman

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
    """Ability of a criterion's certainty at one exit to separate right predictions from wrong ones."""

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


def certainty_quality(
    exit_layer: int, certainty: npt.NDArray, errors: npt.NDArray, *, classes: int, probability: bool
) -> CertaintyQuality:
    """Quality of the certainties (N,) of one exit, where a higher value is more certain.

    Args:
        errors: (N,) for classification 1 for a wrong prediction, else 0; for regression the absolute error.
        classes: number of classes; 1 for regression.
        probability: the certainty estimates the probability that the prediction is right.
    """
    if classes == 1:
        constant = np.ptp(certainty) == 0 or np.ptp(errors) == 0
        rank = None if constant else float(spearman(certainty[None], -errors)[0])
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
    ranks = mean_ranks(certainty[None])[0] + 1
    return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def reliability(certainty: npt.NDArray, right: npt.NDArray, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """The reliability curve: certainties (N,) from 0 to 1, right (N,) -> bins of about equally many examples."""
    parts = np.array_split(np.argsort(certainty, kind="stable"), min(bins, len(certainty)))
    return tuple(ReliabilityBin(float(certainty[rows].mean()), float(right[rows].mean()), len(rows)) for rows in parts)


def ece(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error of a reliability curve (Guo et al., 2017, equation 3, with bins of equal size)."""
    total = sum(each.examples for each in bins)
    return sum(each.examples * abs(each.certainty - each.accuracy) for each in bins) / total
