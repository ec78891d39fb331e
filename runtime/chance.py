"""Scores that measure nothing: data and outputs without a defined score, the constant prediction, and chance.

Evaluation, calibration, export and the bench on a device use these functions. They need numpy only.

Shapes: N rows, E exits, C outputs (classes, or 1 for regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.metrics import METRICS
from berxit.runtime.tables import plural

ONE_SIDED = 1.645
"""Standard normal quantile: a score is above chance at a one-sided level of 5%."""
SPEARMAN_VARIANCE = 1.06
"""Variance of atanh(rank correlation), times n - 3 (Fieller, Hartley and Pearson, 1957). Pearson's is 1; the larger one
serves both."""
LARGEST_CORRELATION = 1 - 1e-12
"""Correlations are clipped to this size, because atanh(1) is infinite."""
RESAMPLES = 2000
"""Bootstrap samples of the rows."""


@dataclass(frozen=True)
class Constant:
    """The best prediction that is the same for every input."""

    prediction: float
    """Class number; for regression the mean label."""
    score: float


def constant_prediction(metric: str, labels: npt.NDArray, classes: int) -> Constant:
    """The majority class; for F1 the better class; for regression the mean, whose correlation counts as 0.

    ``classes``: C. Of equal scores the lower class number.
    """
    if METRICS[metric].values:
        return Constant(float(np.mean(labels)), 0.0)
    scores = [METRICS[metric](np.full(len(labels), number), labels) for number in range(classes)]
    best = int(np.argmax(scores))
    return Constant(float(best), float(scores[best]))


def check_labels(metric: str, labels: npt.NDArray, where: str) -> None:
    """Raises InputError for labels (N,) on which the metric measures nothing. ``where``: the data, for the message."""
    problem, least = None, 3 if METRICS[metric].values else 2
    if len(labels) < least:
        problem = f"{plural(len(labels), 'row')}, at least {least} are needed"
    elif not np.isfinite(labels).all():
        problem = "a label is not a finite number"
    elif METRICS[metric].values and _constant(labels):
        problem = f"every label is {labels[0]:g}"
    elif not METRICS[metric].values and _constant(labels):
        problem = "all labels are of one class"
    if problem:
        raise InputError(f"{where}: {metric} cannot be measured: {problem}. Give data with different labels")


def check_outputs(metric: str, logits: npt.NDArray, layers: Sequence[int], where: str) -> None:
    """Raises BerxitError for outputs (N, E, C) of the exits after ``layers`` (E,) that have no score."""
    finite = np.isfinite(logits).all(axis=(0, 2))
    if not finite.all():
        layer = layers[int(np.argmin(finite))]
        rows = int((~np.isfinite(logits[:, int(np.argmin(finite))]).all(axis=1)).sum())
        raise BerxitError(
            f"{where}: {metric} cannot be measured: layer {layer} outputs NaN or infinity for {rows} of {len(logits)}"
            " rows. Train again with a lower --learning-rate"
        )
    if METRICS[metric].values and _constant(logits[:, -1, 0]):
        raise BerxitError(
            f"{where}: {metric} cannot be measured: full depth predicts {logits[0, -1, 0]:g} for every row, and a"
            " correlation with a constant is not defined. Train with more --epochs or a lower --learning-rate"
        )


def at_chance(metric: str, predictions: npt.NDArray, labels: npt.NDArray, classes: int) -> bool:
    """True if predictions (N,) score no better than the constant prediction, within sampling error.

    Accuracy and F1: the 5th percentile of the difference to the constant prediction on the same rows, over bootstrap
    samples of the rows, is not above zero. Correlations: Fisher's z is below the one-sided 5% quantile.
    """
    if METRICS[metric].values:
        r = np.clip(METRICS[metric](predictions, labels), -LARGEST_CORRELATION, LARGEST_CORRELATION)
        return bool(np.arctanh(r) * np.sqrt((len(labels) - 3) / SPEARMAN_VARIANCE) <= ONE_SIDED)
    constant = constant_prediction(metric, labels, classes).prediction
    if metric not in ("accuracy", "f1"):
        return bool(np.quantile(_bootstrap(metric, predictions, labels, constant), 0.05) <= 0)
    if metric == "f1":  # F1 depends only on the cells of the confusion matrix.
        cells = 2 * (predictions == 1) + (labels == 1)
    else:
        cells = 2 * (predictions == labels) + (labels == constant)
    shares = np.bincount(cells, minlength=4) / len(labels)
    draws = np.random.default_rng(0).multinomial(len(labels), shares, RESAMPLES).astype(float)
    if metric == "f1":
        _, missed, wrong, right = draws.T
        positives = missed + right
        difference = _ratio(2 * right, 2 * right + missed + wrong)
        if constant == 1:
            difference = difference - _ratio(2 * positives, positives + len(labels))
    else:
        difference = (draws[:, 2] - draws[:, 1]) / len(labels)  # Only the model is right; only the constant is.
    return bool(np.quantile(difference, 0.05) <= 0)


def _bootstrap(metric: str, predictions: npt.NDArray, labels: npt.NDArray, constant: float) -> npt.NDArray:
    """(RESAMPLES,) differences of the score to the constant prediction's, on the same resampled rows."""
    rng, both = np.random.default_rng(0), np.stack([predictions, np.full(len(labels), constant)])
    rows = (rng.integers(0, len(labels), len(labels)) for _ in range(RESAMPLES))
    return np.array([np.subtract(*METRICS[metric].scores(both[:, drawn], labels[drawn])) for drawn in rows])


def chance_message(what: str, metric: str, score: float, constant: Constant, rows: int) -> str:
    """States that a score is at chance, with the numbers that show it. ``what``: "full depth", "the policy"."""
    return (
        f"{what} is at chance: {metric} {score:.4f} on {plural(rows, 'example')} does not exceed the constant"
        f" prediction's {constant.score:.4f} by more than sampling error"
    )


def _constant(values: npt.NDArray) -> bool:
    """Equal up to rounding."""
    if values.dtype.kind != "f":
        return bool(np.ptp(values) == 0)
    return bool(np.ptp(values) <= 8 * np.spacing(np.abs(values).max()))


def _ratio(numerator: npt.NDArray, denominator: npt.NDArray) -> npt.NDArray:
    return numerator / np.where(denominator == 0, 1, denominator)
