"""Families of policies on a stored pass: their thresholds, exits and operating points."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from berxit.runtime.errors import InputError
from berxit.runtime.policies import ExitPolicy, certainties, exit_layers
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec, family, operating_point


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def hand_made() -> Predictions:
    """Four examples, three layers, two classes: probabilities of class 1 per layer. The labels are 1, 1, 0, 0."""
    ones = np.array([[0.9, 0.95, 0.99], [0.4, 0.8, 0.9], [0.3, 0.2, 0.1], [0.55, 0.6, 0.05]])
    logits = np.stack([np.zeros_like(ones), np.vectorize(logit)(ones)], axis=-1).astype(np.float32)
    return Predictions(logits, None, np.array([1, 1, 0, 0]), "accuracy")


def regression(lte: bool = True) -> Predictions:
    values = np.array([[1.0, 1.2, 1.1], [2.0, 2.9, 3.0], [5.0, 4.0, 4.1]], dtype=np.float32)
    certainty = np.array([[0.9, 0.95, 0.99], [0.3, 0.6, 0.7], [0.2, 0.8, 0.9]], dtype=np.float32)
    return Predictions(values[..., None], certainty if lte else None, np.array([1.0, 3.0, 4.0]), "spearman")


def test_operating_point_counts_the_exit_of_each_example() -> None:
    point = operating_point(hand_made(), ExitPolicy.uniform("confidence", 0.75, 3))
    assert point.histogram == (1, 2, 1)
    assert point.average_exit_layer == 2.0
    assert point.score == 1.0
    assert point.threshold == 0.75
    assert point.saved_layers == pytest.approx(1 / 3)


def test_operating_point_scores_the_predictions_at_the_exits_taken() -> None:
    point = operating_point(hand_made(), ExitPolicy.uniform("confidence", 0.5, 3))
    assert (point.histogram, point.score) == ((4, 0, 0), 0.5)


def test_operating_point_accepts_thresholds_per_layer() -> None:
    point = operating_point(hand_made(), ExitPolicy("confidence", (0.95, 0.55), (1.0, 1.0, 1.0)))
    assert point.histogram == (0, 4, 0)


def test_trade_off_has_one_point_per_threshold() -> None:
    points = family(hand_made(), PolicySpec("confidence")).points([0.5, 0.65, 0.75, 1.0])
    assert [point.average_exit_layer for point in points] == [1.0, 1.75, 2.0, 3.0]
    assert [point.score for point in points] == [0.5, 1.0, 1.0, 1.0]
    single = operating_point(hand_made(), ExitPolicy.uniform("confidence", 0.65, 3))
    assert points[1] == single


def test_trade_off_by_lte_uses_the_learned_certainty() -> None:
    assert [p.histogram for p in family(regression(), PolicySpec("lte")).points([0.25, 0.85])] == [(2, 1, 0), (1, 0, 2)]


def test_operating_points_reject_a_criterion_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="needs class probabilities"):
        family(regression(), PolicySpec("confidence")).points([0.5])
    with pytest.raises(InputError, match="needs a model trained with --lte"):
        family(hand_made(), PolicySpec("lte")).points([0.5])
    with pytest.raises(InputError, match="needs a model trained with --lte"):
        family(regression(lte=False), PolicySpec("lte")).candidates()


def random_predictions(rows: int = 200, classes: int = 3) -> Predictions:
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=2, size=(rows, 4, classes)).astype(np.float32)
    return Predictions(logits, rng.random((rows, 4), dtype=np.float32), rng.integers(0, classes, rows), "accuracy")


@pytest.mark.parametrize("criterion", ["confidence", "entropy", "lte"])
def test_candidate_thresholds_run_from_always_to_never(criterion: str) -> None:
    predictions = random_predictions()
    thresholds = family(predictions, PolicySpec(criterion)).candidates()
    points = family(predictions, PolicySpec(criterion)).points(thresholds)
    assert len(thresholds) <= 200
    assert points[0].average_exit_layer == 1.0
    assert points[-1].average_exit_layer == 4.0
    averages = sorted(point.average_exit_layer for point in points)
    assert max(np.diff(averages)) < 0.1


@pytest.mark.parametrize("criterion", ["confidence", "entropy", "lte"])
def test_candidate_thresholds_never_equal_a_certainty(criterion: str) -> None:
    predictions = random_predictions(rows=60)
    thresholds = np.array(family(predictions, PolicySpec(criterion)).candidates(1000)[1:-1])
    found = certainties(ExitPolicy.uniform(criterion, 0.0, 4), predictions.logits, predictions.lte)[:, :-1]
    distances = np.abs(found.ravel()[:, None].astype(np.float64) - thresholds[None])
    assert len(thresholds) > 100
    assert distances.min() > 0


def test_candidate_thresholds_are_between_nearly_equal_certainties() -> None:
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1), dtype=np.float32)
    certainty = np.array([[low, 0.9], [high, 0.9], [0.2, 0.9]], dtype=np.float32)
    predictions = Predictions(np.zeros((3, 2, 2), np.float32), certainty, np.array([0, 1, 0]), "accuracy")
    for threshold in family(predictions, PolicySpec("lte")).candidates():
        assert np.float32(threshold) not in (low, high)


def test_candidate_thresholds_of_patience_are_layers() -> None:
    assert family(random_predictions(), PolicySpec("patience")).candidates() == [1.0, 2.0, 3.0, 4.0]


def test_candidate_thresholds_of_a_constant_model_are_always_and_never() -> None:
    constant = Predictions(np.zeros((5, 3, 2), np.float32), None, np.zeros(5, int), "accuracy")
    assert family(constant, PolicySpec("confidence")).candidates() == [0.0, 1.0]


def test_trade_off_with_more_patience_never_exits_earlier() -> None:
    predictions = random_predictions()
    layers = [
        exit_layers(policy := ExitPolicy.uniform("patience", k, 4), certainties(policy, predictions.logits, None))
        for k in (1, 2, 3, 4)
    ]
    assert all((deep >= early).all() for early, deep in pairwise(layers))
    assert (layers[-1] == 4).all()


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
@pytest.mark.parametrize("criterion", ["confidence", "entropy", "lte", "patience"])
def test_trade_off_equals_single_operating_points(criterion: str, metric: str) -> None:
    predictions = random_predictions(classes=2)
    predictions = Predictions(predictions.logits, predictions.lte, predictions.labels, metric)
    for point in family(predictions, PolicySpec(criterion)).points(
        family(predictions, PolicySpec(criterion)).candidates()
    ):
        single = operating_point(predictions, ExitPolicy.uniform(criterion, point.threshold, 4))
        assert point.histogram == single.histogram
        assert point.average_exit_layer == pytest.approx(single.average_exit_layer, rel=1e-12)
        assert point.score == pytest.approx(single.score, rel=1e-12)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize("tolerance", [0.5, 1.0])
def test_trade_off_of_regression_equals_single_operating_points(metric: str, tolerance: float) -> None:
    rng = np.random.default_rng(2)
    values = np.round(rng.normal(size=(80, 5, 1)), 1).astype(np.float32)  # with ties
    predictions = Predictions(values, None, np.round(rng.normal(size=80), 1), metric)
    points = family(predictions, PolicySpec("patience"), tolerance).points([1, 2, 3, 4, 5])
    assert len({point.histogram for point in points}) > 2
    for point in points:
        single = operating_point(predictions, ExitPolicy.uniform("patience", point.threshold, 5, tolerance))
        assert (point.histogram, point.score) == (single.histogram, pytest.approx(single.score, abs=1e-12))


def test_trade_off_rejects_a_threshold_out_of_range() -> None:
    with pytest.raises(InputError, match="out of range"):
        family(hand_made(), PolicySpec("confidence")).points([0.5, 1.5])


def test_trade_off_compares_thresholds_in_the_precision_of_the_certainties() -> None:
    edge = np.float32(0.9)  # a little below 0.9 in double precision, and equal to it in single
    certainty = np.array([[edge, 1.0]], np.float32)
    predictions = Predictions(np.zeros((1, 2, 2), np.float32), certainty, np.array([0]), "accuracy")
    just_below = float(np.nextafter(edge, np.float32(0)))
    assert [p.histogram for p in family(predictions, PolicySpec("lte")).points([0.9, just_below])] == [(0, 1), (1, 0)]
