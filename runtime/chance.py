"""Undefined scores, the constant prediction, and scores at chance.

Evaluation, calibration, export and the bench on a device use these functions. They need numpy only.

Shapes: N rows, E exits, C outputs (classes, or 1 for regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import DivergedError, InputError
from berxit.runtime.metrics import Metric, metric_named
from berxit.runtime.tables import plural

ONE_SIDED = 1.645
"""Standard normal quantile: a score is above chance at a one-sided level of 5%."""
SPEARMAN_VARIANCE = 1.06
"""Variance of atanh(rank correlation), times n - 3 (Fieller, Hartley and Pearson, 1957). That of Pearson's correlation
is 1. The larger value is used for both."""
LARGEST_CORRELATION = 1 - 1e-12
"""Correlations are clipped to this size, because atanh(1) is infinite."""
RESAMPLES = 2000
"""Bootstrap samples of the rows."""


@dataclass(frozen=True)
class Constant:
    """The best prediction that is the same for every input."""

    prediction: float
    """Number of the class or set of labels; for regression the mean label."""
    score: float


def constant_prediction(metric: str, labels: npt.NDArray, classes: int) -> Constant:
    """The class with the best score: for accuracy the majority class. For regression, the mean label with score 0. For
    sets of labels, the best set of the most frequent labels.

    ``classes``: C, the number of class or label names. Of equal scores, the one with the lowest number is used.
    """
    if metric_named(metric).values:
        return Constant(float(np.mean(labels)), 0.0)
    tried = metric_named(metric).constants(labels, classes)
    scores = [metric_named(metric)(np.full(len(labels), number), labels) for number in tried]
    best = int(np.argmax(scores))
    return Constant(tried[best], float(scores[best]))


def check_labels(metric: str, labels: npt.NDArray, where: str) -> None:
    """Raises InputError for labels (N,) for which the metric is not defined. ``where``: the data, for the message."""
    problem, least = "", 3 if metric_named(metric).values else 2
    if len(labels) < least:
        problem = f"{plural(len(labels), 'row')}, at least {least} are needed"
    elif not np.isfinite(labels).all():
        problem = "a label is not a finite number"
    elif metric_named(metric).values:
        problem = equal_values(labels)
    elif not metric_named(metric).values and _constant(labels):
        one_class = metric_named(metric).kind == "classification"
        problem = "all labels are of one class" if one_class else "all texts have the same labels"
    if problem:
        raise InputError(f"{where}: {metric} cannot be measured: {problem}. Give data with different labels")


def equal_values(labels: npt.NDArray) -> str:
    """Reason why finite values (N,) are equal for a model, which computes in float32; empty if they are not."""
    if _constant(labels):
        return f"every label is {labels[0]:g}"
    with np.errstate(over="ignore"):
        rounded = labels.astype(np.float32)
    if _constant(rounded):
        return f"labels differ by at most {np.ptp(labels):.2g} and are equal in float32, in which models compute"
    return ""


def check_outputs(metric: str, logits: npt.NDArray, layers: Sequence[int], where: str) -> None:
    """Raises DivergedError for outputs (N, E, ...) without a defined score. ``layers`` (E,): layers of the exits."""
    finite = np.isfinite(logits).all(axis=(0, *range(2, logits.ndim)))
    if not finite.all():
        layer = layers[int(np.argmin(finite))]
        broken = ~np.isfinite(logits[:, int(np.argmin(finite))])
        rows = int(broken.reshape(len(logits), -1).any(axis=1).sum())
        raise DivergedError(
            f"{where}: {metric} cannot be measured: layer {layer} outputs NaN or infinity for {rows} of {len(logits)}"
            " rows. Train again with a lower --learning-rate"
        )
    if metric_named(metric).values and _constant(logits[:, -1, 0]):
        raise DivergedError(
            f"{where}: {metric} cannot be measured: full depth predicts {logits[0, -1, 0]:g} for every row, and a"
            " correlation with a constant is not defined. Train with more --epochs or a lower --learning-rate"
        )


def at_chance(metric: str, predictions: npt.NDArray, labels: npt.NDArray, classes: int) -> bool:
    """True if predictions (N,) score no better than the constant prediction, within sampling error.

    Correlations: Fisher's z is at most the one-sided 5% quantile. Other metrics: the 5th percentile of the difference
    to the constant prediction on the same rows, over bootstrap samples of the rows, is at most zero.
    """
    if metric_named(metric).values:
        r = np.clip(metric_named(metric)(predictions, labels), -LARGEST_CORRELATION, LARGEST_CORRELATION)
        return bool(np.arctanh(r) * np.sqrt((len(labels) - 3) / SPEARMAN_VARIANCE) <= ONE_SIDED)
    constant = constant_prediction(metric, labels, classes).prediction
    if metric in _FROM_COUNTS:
        differences = _FROM_COUNTS[metric](predictions, labels, constant)
    else:
        differences = _bootstrap(metric_named(metric), predictions, labels, constant)
    return bool(np.quantile(differences, 0.05) <= 0)


def _bootstrap(metric: Metric, predictions: npt.NDArray, labels: npt.NDArray, constant: float) -> npt.NDArray:
    """(RESAMPLES,) differences of the score to the constant prediction's, on the same resampled rows."""
    rng, both = np.random.default_rng(0), np.stack([predictions, np.full(len(labels), constant)])
    rows = (rng.integers(0, len(labels), len(labels)) for _ in range(RESAMPLES))
    return np.array([np.subtract(*metric.scores(both[:, drawn], labels[drawn])) for drawn in rows])


def _accuracy_differences(predictions: npt.NDArray, labels: npt.NDArray, constant: float) -> npt.NDArray:
    """(RESAMPLES,) differences of accuracy. They depend on two counts: rows that only the model predicts correctly, and
    rows that only the constant prediction does."""
    _, only_constant, only_model, _ = _resampled(2 * (predictions == labels) + (labels == constant)).T
    return np.asarray((only_model - only_constant) / len(labels))


def _f1_differences(predictions: npt.NDArray, labels: npt.NDArray, constant: float) -> npt.NDArray:
    """(RESAMPLES,) differences of F1. They depend only on the cells of the confusion matrix."""
    _, false_negatives, false_positives, true_positives = _resampled(2 * (predictions == 1) + (labels == 1)).T
    difference = _ratio(2 * true_positives, 2 * true_positives + false_negatives + false_positives)
    if constant == 1:
        positives = false_negatives + true_positives
        difference = difference - _ratio(2 * positives, positives + len(labels))
    return np.asarray(difference)


_FROM_COUNTS = {"accuracy": _accuracy_differences, "f1": _f1_differences}
"""Metrics whose bootstrap needs only counts, which are fast to resample for any number of rows."""


def _resampled(cells: npt.NDArray) -> npt.NDArray[np.float64]:
    """(RESAMPLES, 4) number of rows in each cell, in bootstrap samples of the rows; cells (N,) from 0 to 3."""
    shares = np.bincount(cells, minlength=4) / len(cells)
    return np.random.default_rng(0).multinomial(len(cells), shares, RESAMPLES).astype(np.float64)


def chance_message(what: str, metric: str, score: float, constant: Constant, rows: int) -> str:
    """Message about a score at chance. ``what``: the name of the predictions, such as "full depth"."""
    return (
        f"{what} is at chance: {metric} {score:.4f} on {plural(rows, 'example')} does not exceed the constant"
        f" prediction's {constant.score:.4f} by more than sampling error"
    )


def _constant(values: npt.NDArray) -> bool:
    """True if all values are equal, up to rounding."""
    if values.dtype.kind != "f":
        return bool(np.ptp(values) == 0)
    return bool(np.ptp(values) <= 8 * np.spacing(np.abs(values).max()))


def _ratio(numerator: npt.NDArray, denominator: npt.NDArray) -> npt.NDArray:
    return numerator / np.where(denominator == 0, 1, denominator)
