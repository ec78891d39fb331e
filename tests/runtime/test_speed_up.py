from __future__ import annotations

import numpy as np
import pytest

from berxit.runtime.queries import Queries
from berxit.runtime.speed_up import speed_up


def queries(latency_ms: np.ndarray) -> Queries:
    return Queries(latency_ms, np.ones(latency_ms.shape, np.int64))


def test_speed_up_of_proportional_latencies_is_exact() -> None:
    fast = np.random.default_rng(0).uniform(1, 9, (4, 30))
    found = speed_up(queries(fast), queries(2 * fast))
    assert (found.ratio, found.low, found.high) == pytest.approx((2, 2, 2))  # every resample is paired


def test_speed_up_interval_covers_the_true_ratio() -> None:
    """Random inputs with their own latencies, random rounds with their own speed: coverage of the 95% interval."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        inputs, rounds = rng.lognormal(0, 0.5, (1, 40)), rng.lognormal(0, 0.1, (6, 1))
        noise = rng.lognormal(0, 0.1, (2, 6, 40))
        depth = rng.choice([0.25, 0.5, 1.0], (1, 40))
        found = speed_up(queries(inputs * depth * rounds * noise[0]), queries(inputs * rounds * noise[1]), seed=1)
        covered += found.low <= 1 / np.mean([0.25, 0.5, 1.0]) <= found.high
    assert covered >= 90


def test_speed_up_compares_the_rounds_that_both_ran() -> None:
    reference = np.random.default_rng(0).uniform(1, 9, (2, 20))
    slower_later = np.concatenate([reference / 3, np.full((7, 20), 100.0)])
    found = speed_up(queries(slower_later), queries(reference))
    assert (found.ratio, found.low, found.high) == pytest.approx((3, 3, 3))
    assert str(found) == "3.00x (3.00 to 3.00)"
