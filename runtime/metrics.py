"""Scores of a set of answers, in numpy alone, for devices. The same numbers as scikit-learn and scipy give (tested)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Predictions = npt.NDArray
"""(N,) class numbers, or values for regression."""


def accuracy(predictions: Predictions, labels: npt.NDArray) -> float:
    return float(np.mean(predictions == labels))


def positive_class(metric: str, labels: Sequence[str]) -> str | None:
    """The class that a metric scores: class 1 for F1; None for other metrics, which score all classes."""
    return labels[1] if metric == "f1" and len(labels) == 2 else None


def f1(predictions: Predictions, labels: npt.NDArray) -> float:
    """F1 of class 1, as GLUE scores MRPC and QQP; 0 where neither side has it."""
    positives = int(np.sum((predictions == 1) & (labels == 1)))
    named = int(np.sum(predictions == 1) + np.sum(labels == 1))
    return 2 * positives / named if named else 0.0


def pearson(predictions: Predictions, labels: npt.NDArray) -> float:
    """Linear correlation; 0 where one side is constant."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    x, y = predictions - predictions.mean(), labels - labels.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def spearman(predictions: Predictions, labels: npt.NDArray) -> float:
    """Rank correlation; ties share their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: npt.NDArray) -> npt.NDArray:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return (last - (sizes - 1) / 2)[group]


METRICS: dict[str, Callable[[Predictions, npt.NDArray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "pearson": pearson,
    "spearman": spearman,
}
