"""Test that a policy keeps a share of the full-depth score on new data, and an estimate of its score there.

A threshold that looks good on the calibration rows was chosen for that, so its score on new data is lower. The test
allows for chance: it is a paired bootstrap of score(policy) - keep x score(full depth), which works for every metric.
One more row is added to the sample before it is resampled: the row that lowers the difference most. Without it, a
disagreement that the calibration rows happen not to contain would count as impossible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy import stats

from berxit.runtime.heads import classes_in, head_count
from berxit.runtime.metrics import METRICS, centered, set_sizes
from berxit.runtime.spans import count_spans, right_spans
from berxit.train.evaluation import Predictions

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
"""Bootstrap samples of a test."""
RESAMPLES_OF_OTHERS = 200
"""Bootstrap samples for a metric without sums, which is computed sample by sample."""


@dataclass(frozen=True)
class KeepTest:
    """Tests of many policies on one pass. All of them use the same bootstrap samples."""

    predictions: Predictions
    keep: float
    """The share of the full-depth score."""

    def p_value(self, predicted: npt.NDArray) -> float:
        """Share of the bootstrap samples in which predictions (N,) score less than ``keep`` x full depth."""
        p = self.predictions
        if p.metric not in SUMS:
            return self._p_value_by_resampling(predicted)
        sums, score = SUMS[p.metric]
        early, full = sums(predicted, p.labels), self._full_sums
        if p.regression:
            worst = self._worst_row(early)
            more = early[worst], full[worst]
        elif p.task_kind.several:  # the same, about a text with the mean number of labels, spans or heads
            size = max(1.0, float(sums(p.labels, p.labels)[:, 1].mean()))
            more = np.array([0.0, size]), np.array([size, size])
        else:  # full depth is right and the policy is wrong; for F1, about a positive row
            one = np.ones(1, dtype=np.int64)
            more = sums(1 - one, one)[0], sums(one, one)[0]
        drawn, extra = self._counts[:, :-1], self._counts[:, -1:]
        difference = score(drawn @ early + extra * more[0]) - self.keep * score(self._resampled_full + extra * more[1])
        return float((difference < 0).mean())

    @cached_property
    def _full_sums(self) -> Floats:
        return SUMS[self.predictions.metric][0](self.predictions.full_depth, self.predictions.labels)

    @cached_property
    def _resampled_full(self) -> Floats:
        return self._counts[:, :-1] @ self._full_sums

    @cached_property
    def _counts(self) -> Floats:
        """(RESAMPLES, N + 1) how often a bootstrap sample contains each row; the last column is the added row."""
        rows = len(self.predictions.labels) + 1
        return np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), RESAMPLES).astype(np.float64)

    def _worst_row(self, early: Floats) -> int:
        """The row whose second copy lowers the difference most."""
        score = SUMS[self.predictions.metric][1]
        doubled = score(early.sum(axis=0) + early) - self.keep * score(self._full_sums.sum(axis=0) + self._full_sums)
        return int(np.argmin(doubled))

    def _p_value_by_resampling(self, predicted: npt.NDArray) -> float:
        score, labels = METRICS[self.predictions.metric], self.predictions.labels
        below = sum(score(predicted[rows], labels[rows]) < self.keep * full for rows, full in self._samples)
        return (below + 1) / (RESAMPLES_OF_OTHERS + 1)

    @cached_property
    def _samples(self) -> list[tuple[npt.NDArray[np.int64], float]]:
        """Rows of each bootstrap sample, and the full-depth score on them."""
        p, rng = self.predictions, np.random.default_rng(0)
        samples = [rng.integers(0, len(p.labels), len(p.labels)) for _ in range(RESAMPLES_OF_OTHERS)]
        return [(rows, METRICS[p.metric](p.full_depth[rows], p.labels[rows])) for rows in samples]


def least_rows(score: float, keep: float, delta: float) -> int:
    """Rows from which a policy that always agrees with full depth passes the test of accuracy.

    ``score``: accuracy at full depth. The added row is drawn k times with probability Poisson(1); the policy passes if
    its surplus (1 - keep) x score x N exceeds k x keep for all k but the rarest, which have probability delta.
    """
    most = int(stats.poisson.ppf(1 - delta, 1))
    return ceil(most * keep / ((1 - keep) * score)) + 1 if 0 < keep < 1 and score > 0 else 0


def interval(predictions: Predictions, predicted: npt.NDArray, share: float = 0.9) -> tuple[float, float]:
    """Bootstrap percentile interval of the score of predictions (N,)."""
    p, rng = predictions, np.random.default_rng(0)
    rows = len(p.labels)
    if p.metric in SUMS:
        sums, score = SUMS[p.metric]
        counts = rng.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES).astype(np.float64)
        found = score(counts @ sums(predicted, p.labels))
    else:
        draws = [rng.integers(0, rows, rows) for _ in range(RESAMPLES_OF_OTHERS)]
        found = np.array([METRICS[p.metric](predicted[draw], p.labels[draw]) for draw in draws])
    low, high = np.quantile(found, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _accuracy_sums(predicted: npt.NDArray, labels: npt.NDArray) -> Floats:
    return np.stack([predicted == labels, np.ones(len(labels))], axis=1).astype(np.float64)


def _f1_sums(predicted: npt.NDArray, labels: npt.NDArray) -> Floats:
    named, true = predicted == 1, labels == 1
    return np.stack([2.0 * (named & true), named.astype(np.float64) + true], axis=1)


def _micro_f1_sums(predicted: npt.NDArray, labels: npt.NDArray) -> Floats:
    right, named, true = (set_sizes(numbers) for numbers in (predicted & labels, predicted, labels))
    return np.stack([2.0 * right, named + true.astype(np.float64)], axis=1)


def _heads_accuracy_sums(predicted: npt.NDArray, labels: npt.NDArray) -> Floats:
    heads = head_count(labels)
    right = (classes_in(predicted, heads) == classes_in(labels, heads)).sum(axis=1)
    return np.stack([right, np.full(len(labels), heads)], axis=1).astype(np.float64)


def _span_f1_sums(predicted: npt.NDArray, labels: npt.NDArray) -> Floats:
    return np.stack([2.0 * right_spans(predicted), count_spans(predicted) + count_spans(labels) * 1.0], axis=1)


def _ratio(sums: Floats) -> Floats:
    """(..., 2) -> (...)."""
    above, below = sums[..., 0], sums[..., 1]
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _pearson_sums(predicted: npt.NDArray, labels: npt.NDArray) -> Floats:
    x, y = centered(predicted), centered(labels)
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _spearman_sums(predicted: npt.NDArray, labels: npt.NDArray) -> Floats:
    """Ranks are those of the whole pass: the rank correlation of a sample is close to the correlation of these."""
    return _pearson_sums(stats.rankdata(predicted), stats.rankdata(labels))


def _correlation(sums: Floats) -> Floats:
    """(..., 6) -> (...)."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    below = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    above = xy - x * y / n
    return np.divide(above, below, out=np.zeros_like(above), where=below > 1e-12)


SUMS: dict[str, tuple[Callable[[npt.NDArray, npt.NDArray], Floats], Callable[[Floats], Floats]]] = {
    "accuracy": (_accuracy_sums, _ratio),
    "f1": (_f1_sums, _ratio),
    "micro-f1": (_micro_f1_sums, _ratio),
    "heads-accuracy": (_heads_accuracy_sums, _ratio),
    "span-f1": (_span_f1_sums, _ratio),
    "pearson": (_pearson_sums, _correlation),
    "spearman": (_spearman_sums, _correlation),
}
"""Metric -> (N, k) what each row adds to k sums, and the score from the sums: fast for thousands of samples."""
