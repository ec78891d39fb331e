"""Families of policies on a stored pass: their thresholds, exits and operating points."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hand_made_passes import hand_made, regression

from berxit.runtime.calibration import Calibration
from berxit.runtime.errors import InputError
from berxit.runtime.json_data import parse, to_json
from berxit.runtime.policies import ExitPolicy, certainties, exit_layers
from berxit.train.calibration import choose, choose_again
from berxit.train.evaluation import Predictions
from berxit.train.families import (
    PolicySpec,
    exits_under,
    families,
    family,
    folds,
    operating_point,
    predicted_under,
)
from berxit.train.rules import Keep, Risk


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


def drifting(rows: int, seed: int = 0, lte: bool = True) -> Predictions:
    """Exits agree with the last one more often where they are more certain; the second exit is overconfident."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, rows)
    size = rng.exponential(size=(rows, 4)) * [1.0, 1.0, 2.0, 3.0]
    agree = rng.uniform(size=(rows, 4)) < 1 / (1 + np.exp(-size * [1.0, 0.5, 1.0, 9.0]))
    logits = np.zeros((rows, 4, 2), np.float32)
    logits[..., 1] = size * np.where(agree, 1, -1) * np.where(truth == 1, 1, -1)[:, None]
    certainty = rng.uniform(0.2, 0.8, (rows, 4)).astype(np.float32) if lte else None
    return Predictions(logits, certainty, truth, "accuracy", names=("no", "yes"))


SPECS = [
    PolicySpec("learned"),
    PolicySpec("agreement"),
    PolicySpec("confidence", patience=2),
    PolicySpec("entropy", off=(2,)),
    PolicySpec("confidence", full_depth_classes=("yes",)),
    PolicySpec("confidence", fit_temperatures=True),
    PolicySpec("entropy", thresholds_per_exit=True),
    PolicySpec("entropy", patience=2, thresholds_per_exit=True),
    PolicySpec("confidence", patience=3, thresholds_per_exit=True),
    PolicySpec("learned", patience=2, off=(1,), full_depth_classes=("no",), fit_temperatures=True),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_policy_of_a_family_exits_as_the_family_on_its_own_rows(spec: PolicySpec) -> None:
    """Cross-fitted certainties differ slightly from those of the policy, which was fitted on all rows."""
    predictions = drifting(400)
    policies = family(predictions, spec)
    middle = policies.points(policies.candidates())
    point = min(middle, key=lambda each: abs(each.average_exit_layer - 2.5))
    policy = policies.policy_at(point.threshold)
    found = operating_point(predictions, policy)
    assert 1 < found.average_exit_layer < 4
    if spec.is_fitted:
        assert found.average_exit_layer == pytest.approx(point.average_exit_layer, abs=0.3)
    else:
        assert (found.histogram, found.score) == (point.histogram, pytest.approx(point.score))
    assert all(found.histogram[layer - 1] == 0 for layer in spec.off)
    if spec.full_depth_classes:
        taken = exits_under(predictions, policy)
        protected = predictions.names.index(spec.full_depth_classes[0])
        early = taken < 4
        assert early.any()
        assert not (predicted_under(predictions, policy)[early] == protected).any()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.is_fitted], ids=str)
def test_family_never_uses_a_row_for_its_own_certainty(spec: PolicySpec) -> None:
    """The certainties of a fold do not depend on what its own rows predict at full depth."""
    predictions = drifting(200)
    fold = np.flatnonzero(folds(200) == 3)
    logits = predictions.logits.copy()
    logits[fold, -1] = logits[fold, -1, ::-1]
    changed = replace(predictions, logits=logits)
    before, after = (family(each, spec).certainty for each in (predictions, changed))
    np.testing.assert_array_equal(before[fold, :-1], after[fold, :-1])
    others = np.setdiff1d(np.arange(200), fold)
    assert (before[others, :-1] != after[others, :-1]).any()


@pytest.mark.parametrize("lte", [True, False])
def test_learned_scores_higher_than_confidence_where_an_exit_is_overconfident(lte: bool) -> None:
    everyone = drifting(5000, 1, lte)
    scores = []
    for criterion in ("confidence", "learned"):
        policies = family(drifting(600, 2, lte), PolicySpec(criterion))
        points = [operating_point(everyone, policies.policy_at(t)) for t in policies.candidates(25)]
        points.sort(key=lambda point: point.average_exit_layer)
        scores.append(np.interp(2.2, [p.average_exit_layer for p in points], [p.score for p in points]))
    assert scores[1] > scores[0] + 0.002


def test_learned_of_regression_is_relative_to_the_labels_range() -> None:
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 50, 300)
    values = labels[:, None] + rng.normal(size=(300, 4)) * [20, 10, 3, 1]
    predictions = Predictions(values[..., None].astype(np.float32), None, labels, "spearman")
    (policies,) = families(predictions, PolicySpec("learned"))
    assert policies.policy.tolerance == pytest.approx(np.ptp(labels))
    layers = [point.average_exit_layer for point in policies.points(policies.candidates())]
    assert len(set(layers)) > 50


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (PolicySpec("learned"), "fitting needs at least 50 examples, and the data has 20"),
        (PolicySpec("confidence", full_depth_classes=("maybe",)), "'maybe' is no class of this model: it has no, yes"),
        (PolicySpec("confidence", off=(4,)), "exit 4 cannot be switched off: the model has layers 1 to 4"),
        (PolicySpec("learned", thresholds_per_exit=True), "'learned' is comparable between exits"),
        (PolicySpec("patience", thresholds_per_exit=True), "'patience' counts exits"),
        (PolicySpec("patience", patience=2), "the certainty of 'patience' counts layers"),
        (PolicySpec("confidence", patience=0), "patience is 0"),
    ],
)
def test_family_rejects_a_specification_that_does_not_fit(spec: PolicySpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        family(drifting(20), spec)


def test_family_of_regression_rejects_temperatures() -> None:
    with pytest.raises(InputError, match="temperatures need class probabilities"):
        family(regression(), PolicySpec("lte", fit_temperatures=True))


def test_record_describes_the_settings_of_its_policy() -> None:
    described = {
        PolicySpec("learned"): "learned threshold ",
        PolicySpec("confidence", patience=2, off=(1, 3)): ", at 2 consecutive exits, without the exits 1, 3",
        PolicySpec("entropy", full_depth_classes=("no",)): ", full depth for no",
        PolicySpec("lte", thresholds_per_exit=True): "lte thresholds per exit, for an agreement of ",
        PolicySpec("confidence", fit_temperatures=True): ", fitted temperatures",
    }
    for spec, expected in described.items():
        record = choose(drifting(200), spec, Keep(0.9, optimistic=True), "data", "0", estimate=False).calibration
        assert expected in record.describe_policy()
        assert record.summary().startswith(record.describe_policy())


def test_spec_in_a_record_is_the_one_that_was_stored() -> None:
    for spec in SPECS:
        record = choose(drifting(200), spec, Keep(0.9, optimistic=True), "data", "0", estimate=False).calibration
        assert PolicySpec.of(parse(Calibration, json.loads(json.dumps(to_json(record))), "record")) == spec
    assert PolicySpec("confidence").settings is None


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_choose_again_builds_the_same_policies_for_fewer_exits(spec: PolicySpec) -> None:
    predictions = drifting(300)
    chosen = choose(predictions, spec, Keep(0.9, optimistic=True), "data", "0", estimate=False)
    fewer = choose_again(predictions, chosen.calibration, (2, 3, 4), estimate=False)
    assert fewer.policy.layers == 4
    assert fewer.calibration.settings == chosen.calibration.settings
    assert fewer.calibration.histogram[0] == 0
    found = operating_point(predictions.select_exits((2, 3, 4)), fewer.policy)
    assert found.histogram == fewer.calibration.histogram


@pytest.mark.parametrize(
    ("spec", "rule"), [(SPECS[0], Keep(0.97)), (SPECS[6], Risk(0.05))], ids=["fitted-keep", "fitted-risk"]
)
def test_rule_holds_on_new_rows_for_fitted_policies(spec: PolicySpec, rule: Keep | Risk) -> None:
    """Of 20 calibrations, at most delta plus sampling error fail, although the policy is fitted on the same rows."""
    everyone = drifting(5000, 9)
    failed, saved = 0, []
    for seed in range(20):
        choice = rule.choose(drifting(400, 100 + seed), spec)
        predicted = predicted_under(everyone, choice.policy)
        if isinstance(rule, Keep):
            failed += everyone.score(predicted) < 0.97 * everyone.full_depth_score
        else:
            failed += float(np.mean(predicted != everyone.full_depth)) > 0.05
        saved.append(choice.point.saved_layers)
    assert failed <= 20 * 0.1 + 2 * np.sqrt(20 * 0.09)
    assert np.mean(saved) > 0.05
