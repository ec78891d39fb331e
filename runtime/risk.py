"""A bound on the risk of exiting early, from a sample of losses (Learn-then-Test)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


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


def betting_p_value(losses: npt.NDArray, risk: float) -> float:
    """The p-value of the hypothesis that the expected loss is above ``risk``, for independent losses (N,) in [-1, 1].

    Waudby-Smith and Ramdas (2024, "Estimating means of bounded random variables by betting", section 4): the capital of
    a bettor who stakes a predictable share on "the next loss is below ``risk``" is a nonnegative supermartingale under
    the hypothesis, so 1 over its maximum is a p-value (Ville's inequality). It adapts to the variance of the losses:
    those of a policy that rarely differs from full depth are mostly 0.
    """
    x = np.asarray(losses, dtype=np.float64)
    x = x[np.random.default_rng(0).permutation(len(x))]  # independent of the order in the file
    count = np.arange(1, len(x) + 1)
    mean = (np.cumsum(x) + 0.0) / (count + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    stake = np.minimum(np.sqrt(2 * math.log(10) / (len(x) * before)), 0.75 / (1 - risk))
    capital = np.cumsum(np.log1p(-stake * (x - risk)))
    return float(min(1.0, math.exp(-max(0.0, float(capital.max(initial=0.0))))))
