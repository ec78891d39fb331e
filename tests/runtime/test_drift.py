"""Drift: histograms of the calibration data, the sequential test, and its false-alarm and detection rates."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special

from berxit.runtime.drift import PRIOR, WINDOWS, DriftDetector, DriftTest, Histogram, Reference
from berxit.runtime.errors import BerxitError

CLASSES, LAYERS = 12, 6
MIX = np.arange(1, CLASSES + 1) / sum(range(1, CLASSES + 1))
Draw = tuple[npt.NDArray, npt.NDArray, npt.NDArray]


def draw(rows: int, mix: npt.NDArray, rng: np.random.Generator) -> Draw:
    """Exit layers, certainties and predictions of inputs whose classes follow ``mix``; each class is as hard as its
    number, and a tenth of the predictions is wrong."""
    classes = rng.choice(CLASSES, rows, p=mix)
    predicted = np.where(rng.random(rows) < 0.9, classes, rng.integers(0, CLASSES, rows))
    return np.clip(rng.poisson(classes / 4) + 1, 1, LAYERS), rng.beta(5 + classes, 1, rows), predicted


def reference(drawn: Draw, classes: int = CLASSES) -> Reference:
    return Reference.of(*drawn, classes, depth=LAYERS)


def alarm(detector: DriftDetector, drawn: Draw) -> int | None:
    for layer, certainty, predicted in zip(*(column.tolist() for column in drawn), strict=True):
        detector.add(layer, certainty, predicted)
    return detector.alarm


def test_histogram_of_numbers_has_bins_of_about_equal_size() -> None:
    histogram = Histogram.of_numbers(np.arange(800.0))
    assert histogram.counts == (100,) * 8 or max(histogram.counts) - min(histogram.counts) <= 2
    assert [histogram.bin_of(value) for value in (-5, 0, 99, 799, 1e9)] == [0, 0, 0, 7, 7]


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0], [0.0, 1.0]])
def test_histogram_of_few_different_numbers_counts_each_value_once(values: list[float]) -> None:
    histogram = Histogram.of_numbers(np.array(values))
    assert sum(histogram.counts) == len(values) and len(histogram.counts) == len(histogram.edges) + 1
    counted = np.bincount([histogram.bin_of(value) for value in values], minlength=len(histogram.counts))
    assert tuple(counted) == histogram.counts


def test_evidence_equals_the_bayes_factor_of_two_dirichlet_models() -> None:
    test, live = DriftTest(Histogram((30, 10, 0))), [0, 2, 2, 1, 2, 2]
    for number in live:
        test.add(number)

    def log_beta(counts: npt.NDArray) -> float:
        return float(special.gammaln(counts + PRIOR).sum() - special.gammaln((counts + PRIOR).sum()))

    seen, before = np.bincount(live, minlength=3), np.array([30, 10, 0])
    expected = log_beta(seen) - log_beta(np.zeros(3)) + log_beta(before) - log_beta(seen + before)
    assert test.log_evidence == pytest.approx(expected)


def test_expected_evidence_of_the_next_input_is_one() -> None:
    """The martingale property, on which the false-alarm probability rests."""
    test = DriftTest(Histogram((5, 1, 3)))
    for number in (0, 2, 1, 1):
        test.add(number)
    same = [(PRIOR + 5 + 1) / 14.5, (PRIOR + 1 + 2) / 14.5, (PRIOR + 3 + 1) / 14.5]
    factors = []
    for number in range(3):
        copy = DriftTest(Histogram((5, 1, 3)))
        for each in (0, 2, 1, 1, number):
            copy.add(each)
        factors.append(math.exp(copy.log_evidence - test.log_evidence))
    assert np.dot(same, factors) == pytest.approx(1)


@pytest.mark.parametrize("rows", [100, 1000])
def test_detector_has_at_most_one_false_alarm_in_20_runs_of_1000_inputs(rows: int) -> None:
    rng = np.random.default_rng(rows)
    alarms = [alarm(DriftDetector(reference(draw(rows, MIX, rng)), 0.01), draw(1000, MIX, rng)) for _ in range(20)]
    assert sum(found is not None for found in alarms) <= 1


@pytest.mark.parametrize("rows", [100, 1000])
def test_detector_reports_an_inverted_class_mix_within_200_inputs(rows: int) -> None:
    rng = np.random.default_rng(rows)
    for _ in range(20):
        found = alarm(DriftDetector(reference(draw(rows, MIX, rng)), 0.01), draw(200, MIX[::-1], rng))
        assert found is not None


def test_detector_reports_a_change_after_many_normal_inputs_within_two_windows() -> None:
    rng = np.random.default_rng(3)
    detector = DriftDetector(reference(draw(1000, MIX, rng)), 0.001)
    assert alarm(detector, draw(1100, MIX, rng)) is None
    assert alarm(detector, draw(2 * WINDOWS[0], MIX[::-1], rng)) is not None


def test_detector_reports_a_change_of_certainties_alone() -> None:
    rng = np.random.default_rng(4)
    detector = DriftDetector(reference(draw(1000, MIX, rng)), 0.01)
    layers, certainty, predicted = draw(200, MIX, rng)
    assert alarm(detector, (layers, certainty**3, predicted)) is not None


def test_alarm_is_reported_once_and_stays_until_restart() -> None:
    detector = DriftDetector(reference(draw(500, MIX, np.random.default_rng(5))), 0.01)
    reported = [detector.add(1, 0.01, 0) for _ in range(2000)]
    assert sum(reported) == 1 and detector.alarm == reported.index(True) + 1
    detector.restart()
    assert detector.alarm is None and detector.inputs == 0


def test_reference_of_regression_has_bins_of_values() -> None:
    layers, certainty, predicted = draw(400, MIX, np.random.default_rng(6))
    found = reference((layers, certainty, predicted + 0.5), classes=1)
    assert found.predictions.edges and sum(found.predictions.counts) == 400


def test_check_rejects_each_kind_of_damage() -> None:
    drawn = draw(300, MIX, np.random.default_rng(7))
    good = reference(drawn)
    exits = good.exits.counts
    good.check(exits, "here")
    damaged = [
        replace(good, exits=Histogram(exits[::-1])),
        replace(good, predictions=Histogram(good.predictions.counts[1:])),
        replace(good, certainties=Histogram(good.certainties.counts, good.certainties.edges[1:])),
        replace(good, certainties=Histogram(good.certainties.counts, good.certainties.edges[::-1])),
        replace(good, predictions=Histogram((301, -1, *good.predictions.counts[2:-1], 0))),
        replace(good, predictions=Histogram(())),
    ]
    for each in damaged:
        with pytest.raises(BerxitError, match=r"here: reference: .* Calibrate and export again"):
            each.check(exits, "here")
