"""Curves, relative scores and areas, compared with results computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from berxit.runtime.errors import BerxitError
from berxit.train.curves import Area, Curve, area_above, mean_curve, relative_score
from berxit.train.families import OperatingPoint


def curve(*points: tuple[float, float], depth: int = 4) -> Curve:
    return Curve(np.array([x for x, _ in points]), np.array([y for _, y in points]), depth)


def point(layer: float, score: float) -> OperatingPoint:
    return OperatingPoint(0.5, layer, score, (1, 0, 0, 0))


def test_curve_of_sorts_points_and_keeps_the_best_of_equal_layers() -> None:
    made = Curve.of([point(4, 0.9), point(1, 0.5), point(2, 0.6), point(2, 0.7)], 4)
    assert made.layers.tolist() == [1, 2, 4]
    assert made.scores.tolist() == [0.5, 0.7, 0.9]


def test_curve_at_interpolates_between_points() -> None:
    made = curve((1, 50), (3, 90), (4, 100))
    assert made.at(2) == pytest.approx(70)
    assert made.at(3.5) == pytest.approx(95)
    assert made.at_saved(0.5) == pytest.approx(70)  # half of four layers
    assert made.at_saved(0.3) == pytest.approx(70 + 0.8 / 2 * 40)  # layer 2.8
    assert made.at_saved(0) == 100


def test_curve_at_returns_none_outside_its_range() -> None:
    made = curve((2, 50), (4, 100))
    assert made.at(1.99) is None
    assert made.at_saved(0.7) is None


def test_layer_wise_has_a_point_per_layer() -> None:
    made = Curve.layer_wise([0.5, 0.7, 0.6])
    assert (made.layers.tolist(), made.scores.tolist(), made.depth) == ([1, 2, 3], [0.5, 0.7, 0.6], 3)


def test_relative_score_is_in_percent_of_the_reference() -> None:
    assert relative_score(0.6, 0.8) == pytest.approx(75)
    assert curve((1, 0.4), (4, 0.9)).relative_to(0.8).scores == pytest.approx([50, 112.5])


@pytest.mark.parametrize("reference", [0.0, -0.2, float("nan")])
def test_relative_score_rejects_a_reference_not_above_zero(reference: float) -> None:
    with pytest.raises(BerxitError, match="relative scores need one above 0"):
        relative_score(0.5, reference)


def test_cheapest_returns_the_first_point_with_the_score() -> None:
    made = curve((1, 50), (2, 97), (3, 96), (4, 100))
    assert made.cheapest(97) == 2
    assert made.cheapest(98) == 4
    assert made.cheapest(100.1) is None


def test_envelope_is_the_running_maximum() -> None:
    assert curve((1, 50), (2, 80), (3, 70), (4, 90)).envelope().scores.tolist() == [50, 80, 80, 90]


def test_clipped_raises_scores_to_the_floor_and_adds_the_crossings() -> None:
    made = curve((1, 60), (2, 80), (3, 40), (4, 100)).clipped(70)
    assert made.layers == pytest.approx([1, 1.5, 2, 2.25, 3, 3.5, 4])
    assert made.scores == pytest.approx([70, 70, 80, 70, 70, 70, 100])
    assert curve((1, 80), (4, 90)).clipped(70).scores.tolist() == [80, 90]


def test_area_above_of_parallel_curves_is_a_rectangle() -> None:
    high, low = curve((1, 90), (4, 90)), curve((1, 80), (4, 80))
    assert area_above(high, low) == Area(pytest.approx(30), 3)  # 10 percent x 3 layers
    assert area_above(high, low).mean == pytest.approx(10)
    assert area_above(low, high).area == 0


def test_area_above_of_crossing_curves_is_a_triangle_for_each() -> None:
    rising, flat = curve((1, 70), (4, 100)), curve((1, 80), (4, 80))  # they cross at layer 2
    assert area_above(rising, flat).area == pytest.approx(20**2 / 10 / 2)  # base 2, height 20
    assert area_above(flat, rising).area == pytest.approx(5)  # base 1, height 10


def test_area_above_uses_the_knots_of_both_curves() -> None:
    bent, flat = curve((1, 80), (2, 90), (3, 80), (4, 80)), curve((1, 80), (4, 80))
    assert area_above(bent, flat).area == pytest.approx(10)  # a triangle of base 2, height 10
    assert area_above(flat, bent).area == 0


def test_area_above_covers_the_common_range() -> None:
    long, short = curve((1, 90), (4, 90)), curve((2, 80), (3.5, 80))
    assert area_above(long, short) == Area(pytest.approx(15), 1.5)
    assert area_above(long, short, until=3) == Area(pytest.approx(10), 1.0)
    assert area_above(long, curve((4, 80), (5, 80))) == Area(0.0, 0.0)


def test_area_above_equals_a_fine_sum() -> None:
    rng = np.random.default_rng(0)
    first, second = (
        Curve(np.sort(np.append(rng.uniform(1, 12, 30), [1, 12])), rng.uniform(80, 100, 32), 12) for _ in range(2)
    )
    grid = np.linspace(1, 12, 200_001)
    difference = np.interp(grid, first.layers, first.scores) - np.interp(grid, second.layers, second.scores)
    fine = np.maximum(difference, 0).mean() * 11
    assert area_above(first, second).area == pytest.approx(fine, rel=1e-3)
    both = area_above(first, second).area - area_above(second, first).area
    assert both == pytest.approx(difference.mean() * 11, abs=1e-2)


def test_mean_curve_covers_the_common_range() -> None:
    made = mean_curve([curve((1, 80), (3, 100)), curve((2, 60), (4, 80))])
    assert made.layers.tolist() == [2, 3]
    assert made.scores == pytest.approx([75, 85])  # (90 + 60) / 2, (100 + 70) / 2
