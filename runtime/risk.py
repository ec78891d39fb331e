"""A bound on the risk of exiting early, from a sample of losses (Learn-then-Test)."""

from __future__ import annotations

import math

import numpy as np


def hoeffding_bentkus(loss: float, n: int, risk: float) -> float:
    """The p-value of the hypothesis that the risk is above ``risk``. ``loss``: mean over ``n`` rows, each from 0 to 1.

    Hoeffding-Bentkus inequality (Angelopoulos et al., 2021): the smaller of exp(-n h(min(loss, risk), risk)) and
    e P(Bin(n, risk) <= ceil(n loss)), with h(a, b) = a ln(a / b) + (1 - a) ln((1 - a) / (1 - b)).
    """
    low = min(loss, risk)
    divergence = (low * math.log(low / risk) if low else 0.0) + (1 - low) * math.log((1 - low) / (1 - risk))
    at_most = math.ceil(round(n * loss, 6))  # 100 * 0.03 must be 3, although 0.03 is not exact in binary.
    return min(math.exp(-n * divergence), math.e * binomial_cdf(at_most, n, risk))


def rows_needed(risk: float, delta: float) -> int:
    """Number of rows below which no sample passes the test, not even one without any loss."""
    return math.ceil(math.log(delta) / math.log1p(-risk))


def binomial_cdf(at_most: int, n: int, p: float) -> float:
    """P(Bin(n, p) <= at_most), for 0 < p < 1."""
    if at_most >= n:
        return 1.0
    k = np.arange(1, at_most + 1)
    steps = np.log((n - k + 1) / k) + math.log(p) - math.log1p(-p)  # log of P(k) / P(k - 1)
    logs = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)])
    top = float(logs.max())
    return min(1.0, math.exp(top) * float(np.exp(logs - top).sum()))
