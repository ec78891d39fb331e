"""The tasks' official scores, by scikit-learn and scipy; higher is better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics


def _correlation(statistic: Callable[..., object], predictions: npt.NDArray, labels: npt.NDArray) -> float:
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0  # not defined; a constant answer orders nothing
    return float(statistic(predictions, labels).statistic)  # type: ignore[attr-defined]


METRICS: dict[str, Callable[[npt.NDArray, npt.NDArray], float]] = {
    "accuracy": lambda predictions, labels: float(metrics.accuracy_score(labels, predictions)),
    "f1": lambda predictions, labels: float(metrics.f1_score(labels, predictions, zero_division=0)),
    "pearson": lambda predictions, labels: _correlation(stats.pearsonr, predictions, labels),
    "spearman": lambda predictions, labels: _correlation(stats.spearmanr, predictions, labels),
}
"""Name -> score(predictions (N,), labels (N,)): class numbers, or values for regression."""
