"""Paired bootstrap over rows: every policy and every run of a study is scored on the same samples of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from berxit.runtime.metrics import METRICS
from berxit.train.guarantee import RESAMPLES_OF_OTHERS, SUMS
from berxit.train.sweeps import Sweep

Floats = npt.NDArray[np.float64]

SAMPLES = 500
"""Bootstrap samples of the rows. They are used for a standard deviation, which then has an error of 3%."""


@dataclass(frozen=True)
class RowBootstrap:
    """Samples of N rows with replacement. Two objects for the same N have the same samples.

    A metric without an entry in SUMS is computed sample by sample, so it has fewer samples.
    """

    rows: int
    metric: str

    @cached_property
    def counts(self) -> Floats:
        """(B, N) how often each sample contains each row."""
        samples = SAMPLES if self.metric in SUMS else RESAMPLES_OF_OTHERS
        drawn = np.random.default_rng(0).multinomial(self.rows, np.full(self.rows, 1 / self.rows), samples)
        return np.asarray(drawn, dtype=np.float64)

    def scores(self, predicted: npt.NDArray, labels: npt.NDArray) -> Floats:
        """(B, T) score of each sample: predictions (T, N), labels (N,)."""
        if self.metric not in SUMS:
            rows = [np.repeat(np.arange(self.rows), count.astype(int)) for count in self.counts]
            return np.stack([METRICS[self.metric].scores(predicted[:, drawn], labels[drawn]) for drawn in rows])
        sums, score = SUMS[self.metric]
        return np.stack([score(self.counts @ sums(each, labels)) for each in predicted], axis=1)

    def means(self, values: npt.NDArray) -> Floats:
        """(B, T) mean of each sample: values (T, N)."""
        return np.asarray(self.counts @ values.T.astype(np.float64) / self.rows)

    def curves(self, sweep: Sweep, grid: Floats) -> Floats:
        """(B, G) score of each sample at average exit layers ``grid`` (G,). Beyond the ends of a sample's curve, the
        score is that of its end."""
        scores, costs = self.scores(sweep.predicted, sweep.predictions.labels), self.means(sweep.layers)
        order = np.argsort(costs, axis=1, kind="stable")
        pairs = zip(np.take_along_axis(costs, order, 1), np.take_along_axis(scores, order, 1), strict=True)
        return np.stack([np.interp(grid, cost, score) for cost, score in pairs])
