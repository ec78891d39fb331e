"""Metrics of classification and regression, in numpy alone. Tests compare them with scikit-learn and scipy.

A new metric is one entry in METRICS. A metric of values is a correlation: 1 at best, 0 for a constant prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A score of predictions against labels; higher is better."""

    name: str
    description: str
    """Definition, for the documentation."""
    scores: Callable[[npt.NDArray, npt.NDArray], Scores]
    """Predictions (T, N), labels (N,) -> (T,): T sets of predictions for the same N rows. A trade-off curve needs the
    scores of hundreds of thresholds."""
    values: bool = False
    """True for a metric of regression: predictions and labels are numbers. False for class numbers."""
    needs_positive: bool = False
    """True if it scores one class, the second of two."""
    second: str | None = None
    """The metric that GLUE reports with it."""

    def __call__(self, predictions: npt.NDArray, labels: npt.NDArray) -> float:
        """The score of predictions (N,) against labels (N,)."""
        return float(self.scores(predictions[None], labels)[0])


def accuracy(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """Share of correct predictions."""
    return np.asarray((predictions == labels).mean(axis=1), dtype=np.float64)


def f1(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """F1 of class 1, as in GLUE's MRPC and QQP; 0 if neither predictions nor labels contain it."""
    predicted, true = predictions == 1, labels == 1
    total = predicted.sum(axis=1) + true.sum()
    return np.asarray(2 * (predicted & true).sum(axis=1) / np.where(total == 0, 1, total), dtype=np.float64)


def pearson(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """Linear correlation; 0 if predictions or labels are constant."""
    x = predictions - predictions.mean(axis=1, keepdims=True, dtype=np.float64)
    y = labels - labels.mean(dtype=np.float64)
    constant = (np.ptp(predictions, axis=1) == 0) | (np.ptp(labels) == 0)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y)
    return np.where(constant, 0.0, (x * y).sum(axis=1) / np.where(constant, 1.0, norms))


def spearman(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """Rank correlation; equal values have their mean rank."""
    return pearson(mean_ranks(predictions), mean_ranks(labels[None])[0])


def confusion_matrix(predictions: npt.NDArray, labels: npt.NDArray, classes: int) -> npt.NDArray[np.int64]:
    """Number of rows of each label with each prediction: class numbers (N,), (N,) -> (C, C), indexed [label,
    prediction]."""
    cells = np.bincount(labels.astype(np.int64) * classes + predictions.astype(np.int64), minlength=classes**2)
    return cells.reshape(classes, classes)


def mean_ranks(values: npt.NDArray) -> Scores:
    """(T, N) -> ranks within each row, from 0; equal values have their mean rank."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    differs = ordered[:, 1:] != ordered[:, :-1]
    edge = np.ones((len(values), 1), dtype=bool)
    places = np.arange(values.shape[1])
    first = np.maximum.accumulate(np.where(np.hstack([edge, differs]), places, 0), axis=1)
    after = np.where(np.hstack([differs, edge]), places, len(places))
    last = np.minimum.accumulate(after[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, axis=1)
    return ranks


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "share of correct predictions", accuracy),
        Metric(
            "f1",
            "F1 of the positive class; 0 if neither predictions nor labels contain it",
            f1,
            needs_positive=True,
            second="accuracy",
        ),
        Metric(
            "pearson",
            "linear correlation; 0 for constant predictions",
            pearson,
            values=True,
            second="spearman",
        ),
        Metric(
            "spearman",
            "rank correlation; equal values have their mean rank",
            spearman,
            values=True,
            second="pearson",
        ),
    )
}


def metric_names(*, values: bool) -> list[str]:
    """Names of the metrics of regression (``values``) or of classification."""
    return [name for name, metric in METRICS.items() if metric.values == values]


def positive_class(metric: str, labels: Sequence[str]) -> str | None:
    """The class that a metric scores: the second of two for F1; None for metrics that score all classes."""
    return labels[1] if metric in METRICS and METRICS[metric].needs_positive and len(labels) == 2 else None
