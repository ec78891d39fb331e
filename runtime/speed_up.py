"""Speed-up of one operating point over another, with a confidence interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.queries import Queries

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class SpeedUp:
    """Mean latency of the reference divided by that of the operating point."""

    ratio: float
    low: float
    """Lower end of the 95% confidence interval."""
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x ({self.low:.2f} to {self.high:.2f})"


def speed_up(point: Queries, reference: Queries, seed: int = 0) -> SpeedUp:
    """Speed-up of ``point`` over ``reference``, which ran the same N inputs, over the rounds that both ran.

    The interval is a bootstrap over inputs and rounds (the pigeonhole bootstrap, Owen, 2007, "The pigeonhole
    bootstrap"): queries of one input, and of one round, are not independent. Both operating points get the same
    resamples of the inputs and of the rounds, because their queries alternate.
    """
    common = min(len(point.latency_ms), len(reference.latency_ms))
    own, other = point.latency_ms[:common], reference.latency_ms[:common]
    rng = np.random.default_rng(seed)
    inputs, rounds = _counts(rng, own.shape[1]), _counts(rng, common)
    sums = [np.einsum("br,rn,bn->b", rounds, each, inputs, optimize=True) for each in (own, other)]
    low, high = np.quantile(sums[1] / sums[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return SpeedUp(float(other.mean() / own.mean()), float(low), float(high))


def _counts(rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """(RESAMPLES, size) number of times that each of ``size`` elements is drawn."""
    return rng.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float64)
