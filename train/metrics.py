"""The tasks' official metrics, by scikit-learn and scipy; higher is better.

A curve needs the scores of hundreds of thresholds on the same examples. ``scores`` computes them together; the results
are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics


def _correlation(statistic: Callable[..., object], predictions: npt.NDArray, labels: npt.NDArray) -> float:
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0  # The correlation of a constant is not defined; a constant ranks nothing.
    return float(statistic(predictions, labels).statistic)  # type: ignore[attr-defined]


OFFICIAL_METRICS: dict[str, Callable[[npt.NDArray, npt.NDArray], float]] = {
    "accuracy": lambda predictions, labels: float(metrics.accuracy_score(labels, predictions)),
    "f1": lambda predictions, labels: float(metrics.f1_score(labels, predictions, zero_division=0)),
    "pearson": lambda predictions, labels: _correlation(stats.pearsonr, predictions, labels),
    "spearman": lambda predictions, labels: _correlation(stats.spearmanr, predictions, labels),
}
"""Name -> score(predictions (N,), labels (N,)): class numbers, or values for regression."""


OF_CLASSES, OF_VALUES = ("accuracy", "f1"), ("pearson", "spearman")
"""Metrics of classification (f1: of two classes), and metrics of regression."""
SECOND_METRIC = {"f1": "accuracy", "spearman": "pearson", "pearson": "spearman"}
"""Metric -> the second metric that GLUE reports with it."""


def scores(metric: str, predictions: npt.NDArray, labels: npt.NDArray) -> npt.NDArray:
    """The scores of T sets of predictions: predictions (T, N), labels (N,) -> (T,)."""
    if metric in _TOGETHER:
        return _TOGETHER[metric](predictions, labels)
    return np.array([OFFICIAL_METRICS[metric](row, labels) for row in predictions])


def _f1_together(predictions: npt.NDArray, labels: npt.NDArray) -> npt.NDArray:
    named, true = predictions == 1, labels == 1
    total = named.sum(axis=1) + true.sum()
    return 2 * (named & true).sum(axis=1) / np.where(total == 0, 1, total)


def _pearson_together(predictions: npt.NDArray, labels: npt.NDArray) -> npt.NDArray:
    x = predictions - predictions.mean(axis=1, keepdims=True, dtype=np.float64)
    y = labels - labels.mean(dtype=np.float64)
    constant = (np.ptp(predictions, axis=1) == 0) | (np.ptp(labels) == 0)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y)
    return np.where(constant, 0.0, (x * y).sum(axis=1) / np.where(constant, 1.0, norms))


_TOGETHER: dict[str, Callable[[npt.NDArray, npt.NDArray], npt.NDArray]] = {
    "accuracy": lambda predictions, labels: (predictions == labels).mean(axis=1),
    "f1": _f1_together,
    "pearson": _pearson_together,
    "spearman": lambda predictions, labels: _pearson_together(
        stats.rankdata(predictions, axis=1), stats.rankdata(labels)
    ),
}
