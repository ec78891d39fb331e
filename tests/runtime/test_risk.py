"""The bound of Learn-then-Test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from berxit.runtime.risk import betting_p_value, binomial_cdf, hoeffding_bentkus, rows_needed


@pytest.mark.parametrize(
    ("loss", "n", "risk", "expected"),
    [
        (0.0, 10, 0.5, 0.5**10),
        (0.1, 10, 0.5, math.exp(-10 * (0.1 * math.log(0.2) + 0.9 * math.log(1.8)))),  # Hoeffding's bound is smaller.
        (0.2, 100, 0.3, math.e * 0.0164629),  # Bentkus's bound is smaller: e times P(Bin(100, 0.3) <= 20)
        (0.6, 10, 0.5, 1.0),
    ],
)
def test_hoeffding_bentkus_equals_values_worked_out_by_hand(loss: float, n: int, risk: float, expected: float) -> None:
    assert hoeffding_bentkus(loss, n, risk) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n", [1, 7, 400, 100_000])
@pytest.mark.parametrize("p", [1e-3, 0.05, 0.5, 0.99])
def test_binomial_cdf_equals_scipy(n: int, p: float) -> None:
    for at_most in {0, 1, n // 20, n // 2, n - 1, n}:
        assert binomial_cdf(at_most, n, p) == pytest.approx(stats.binom.cdf(at_most, n, p), rel=1e-8, abs=1e-300)


@pytest.mark.parametrize(("risk", "delta"), [(0.01, 0.05), (0.02, 0.1), (0.3, 0.5)])
def test_rows_needed_is_the_smallest_sample_that_passes_without_loss(risk: float, delta: float) -> None:
    rows = rows_needed(risk, delta)
    assert hoeffding_bentkus(0, rows, risk) <= delta < hoeffding_bentkus(0, rows - 1, risk)


@pytest.mark.parametrize(("n", "gain"), [(100, 0.03), (1000, 0.0)])
def test_betting_p_value_is_small_with_at_most_its_probability(n: int, gain: float) -> None:
    rng, risk = np.random.default_rng(n), 0.05
    draws = rng.choice([1, -1, 0], (400, n), p=[risk + gain, gain, 1 - risk - 2 * gain])
    small = sum(betting_p_value(losses, risk) <= 0.1 for losses in draws)
    assert small <= 57  # 400 draws with probability 0.1: 57 or fewer with probability 0.997


def test_betting_p_value_of_losses_below_the_risk_is_small_and_does_not_depend_on_their_sum_alone() -> None:
    quiet, loud = np.zeros(400), np.resize([1.0, -1.0], 400)
    assert betting_p_value(quiet, 0.05) < 0.01 < betting_p_value(loud, 0.05)
    assert betting_p_value(np.ones(400), 0.05) == 1
