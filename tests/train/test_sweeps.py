"""Sweeps of policies: oracle sweeps, policies that are chosen on other rows, and their bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from berxit.train.curves import Curve
from berxit.train.evaluation import Predictions, layer_scores
from berxit.train.families import PolicySpec, folds, operating_points
from berxit.train.resampling import RowBootstrap
from berxit.train.sweeps import LAYER_WISE, Sweep, held_out, reaching, sweep, within


def classification(rows: int, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, rows)
    size = rng.exponential(size=(rows, 4)) * [1, 1.5, 2, 3]
    right = rng.uniform(size=(rows, 4)) < 1 / (1 + np.exp(-size))
    sign = np.where(right, 1, -1) * np.where(truth == 1, 1, -1)[:, None]
    logits = np.stack([0 * size, size * sign], -1).astype(np.float32)
    return Predictions(logits, None, truth, "accuracy", names=("no", "yes"))


def regression(rows: int, seed: int = 0, layers: int = 4) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=rows)
    values = truth[:, None] + rng.normal(size=(rows, layers)) * np.linspace(2, 0.1, layers)
    return Predictions(values[..., None].astype(np.float32), None, truth, "spearman")


def test_sweep_of_layers_is_the_layer_wise_curve() -> None:
    p = classification(100)
    curve = sweep(p, LAYER_WISE).curve()
    assert curve.layers.tolist() == [1, 2, 3, 4]
    assert curve.scores.tolist() == layer_scores(p)


def test_sweep_of_one_parameter_has_the_points_of_the_family() -> None:
    p = classification(150)
    found = sweep(p, "confidence")
    points = operating_points(p, PolicySpec("confidence"))
    assert found.oracle
    assert found.costs == pytest.approx([point.average_exit_layer for point in points])
    assert found.scores == pytest.approx([point.score for point in points])
    assert found.predicted.shape == found.layers.shape == (len(points), 150)


def test_sweep_of_patience_on_regression_does_not_use_the_labels_of_the_reported_rows() -> None:
    p = regression(200)
    found = sweep(p, "patience")
    assert not found.oracle
    fold = folds(200) == 0
    other = np.where(fold, np.roll(p.labels, 7), p.labels)  # other labels for the rows of one fold
    again = sweep(Predictions(p.logits, None, other, p.metric), "patience")
    assert np.array_equal(found.predicted[:, fold], again.predicted[:, fold])
    assert np.array_equal(found.layers[:, fold], again.layers[:, fold])
    assert not np.array_equal(found.layers[:, ~fold], again.layers[:, ~fold])  # the fold counts for the others


def test_held_out_patience_is_below_the_envelope_of_the_reported_rows() -> None:
    """Choosing the tolerance on the reported rows favours patience: on average over data without a difference."""
    differences = []
    for seed in range(8):
        p = regression(80, seed)
        envelope = Curve.of(operating_points(p, PolicySpec("patience")), 4).envelope()
        curve = sweep(p, "patience").curve()
        grid = np.linspace(max(curve.layers[0], envelope.layers[0]), 3.5, 30)
        differences.append(np.mean([envelope.at(x) - np.interp(x, curve.layers, curve.scores) for x in grid]))
    assert np.mean(differences) > 0


def test_held_out_chooses_by_score_and_by_cost_on_the_other_folds() -> None:
    p = classification(400)
    seen: list[np.ndarray] = []

    def targets(rows: np.ndarray) -> list[float]:
        seen.append(rows)
        return [0.0, 0.75, 1.1]

    by_score = held_out(p, PolicySpec(LAYER_WISE), reaching(targets))
    assert by_score.layers[0].max() == 1  # every score is enough
    assert by_score.layers[2].min() == 4  # no score is enough
    assert sorted(np.concatenate(seen).tolist()) == sorted(np.repeat(np.arange(400), 4).tolist())
    for rows in seen:
        held = np.setdiff1d(np.arange(400), rows)
        scores = np.array(layer_scores(p.select_rows(rows)))
        assert (by_score.layers[1][held] == 1 + np.argmax(scores >= 0.75)).all()
    by_cost = held_out(p, PolicySpec("confidence"), within([0.5, 2.0, 4.0]))
    assert by_cost.costs == pytest.approx([1, 2, 4], abs=0.1)
    assert by_cost.scores[2] == p.full_depth_score


def test_sweep_curve_averages_policies_of_equal_cost() -> None:
    p = classification(4)
    predicted = np.stack([p.labels, 1 - p.labels, p.labels])
    layers = np.array([[2, 2, 2, 2], [2, 2, 2, 2], [4, 4, 4, 4]])
    curve = Sweep(p, predicted, layers, oracle=True).curve()
    assert (curve.layers.tolist(), curve.scores.tolist()) == ([2, 4], [0.5, 1])


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_bootstrap_scores_are_those_of_the_resampled_rows(metric: str) -> None:
    p = classification(60)
    bootstrap = RowBootstrap(60, metric)
    found = bootstrap.scores(p.predicted().T, p.labels)
    for sample in (0, 7):
        rows = np.repeat(np.arange(60), bootstrap.counts[sample].astype(int))
        part = Predictions(p.logits[rows], None, p.labels[rows], metric)
        assert found[sample] == pytest.approx(layer_scores(part))


def test_bootstrap_curves_are_paired_and_have_the_deviation_of_the_score() -> None:
    p = classification(500)
    bootstrap, last = RowBootstrap(500, "accuracy"), np.array([4.0])
    first, second = (bootstrap.curves(sweep(p, criterion), last) for criterion in (LAYER_WISE, "confidence"))
    assert np.array_equal(first, second)  # full depth in both, on the same samples
    accuracy = p.full_depth_score
    assert first.std() == pytest.approx((accuracy * (1 - accuracy) / 500) ** 0.5, rel=0.15)
