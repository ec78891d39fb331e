"""Smoothing scales, which int8 of all targets shares."""

from __future__ import annotations

import numpy as np
import pytest

from berxit.exporters.smoothing import limited, smoothing_scales

CHANNELS, ROWS = np.array([1.0, 60.0, 2.0, 0.5]), np.array([0.3, 0.1, 0.4, 0.2])


def test_smoothing_scales_have_a_geometric_mean_of_one() -> None:
    for strength in (0.5, 0.85, 1.0):
        assert np.prod(smoothing_scales(CHANNELS, ROWS, strength)) == pytest.approx(1)


def test_smoothing_strength_divides_the_differences_between_activation_and_weight() -> None:
    all_to_weight = smoothing_scales(CHANNELS, ROWS, 1.0)
    np.testing.assert_allclose(CHANNELS / all_to_weight, (CHANNELS / all_to_weight)[0])
    half = smoothing_scales(CHANNELS, ROWS, 0.5)  # channel and row have equal largest values, up to one factor
    np.testing.assert_allclose(CHANNELS / half / (ROWS * half), (CHANNELS / half / (ROWS * half))[0])


@pytest.mark.parametrize("values", [np.zeros(4), np.array([0.0, 1e-12, 1.0, 5.0])])
def test_limited_values_have_ratios_that_float16_represents(values: np.ndarray) -> None:
    found = limited(values)
    assert found.min() > 0
    assert found.max() / found.min() <= 1001
    assert (found >= values).all()
    assert np.isfinite(smoothing_scales(found, found, 0.85).astype(np.float16)).all()
