"""Calibration rules: the chosen points on small passes, the guarantee of a risk, and rejected values."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from berxit.devices import this_machine
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.policies import CRITERIA, ExitPolicy
from berxit.train.calibration import choose
from berxit.train.configuration import MultiExitConfig
from berxit.train.evaluation import Predictions
from berxit.train.families import OperatingPoint, PolicySpec, family, operating_point, predicted_under
from berxit.train.risks import DISAGREEMENT, Loss
from berxit.train.rules import Budget, Keep, Risk, Rule


def losses(predictions: Predictions, predicted: np.ndarray) -> list[float]:
    """Mean disagreement with full depth of each of T sets of predictions (T, N)."""
    return Loss(predictions, DISAGREEMENT)(predicted).mean(axis=-1).tolist()


def in_both_classes(predictions: Predictions) -> Predictions:
    """The pass with the two classes exchanged in every other row, because labels of one class have no score."""
    if predictions.regression:
        return predictions
    logits, labels = predictions.logits.copy(), predictions.labels.copy()
    logits[::2] = logits[::2, :, ::-1]
    labels[::2] = 1 - labels[::2]
    return replace(predictions, logits=logits, labels=labels)


def chosen(rule: Rule, predictions: Predictions, criterion: str) -> tuple[ExitPolicy, OperatingPoint]:
    """The policy that a rule chooses, and its operating point on the same pass."""
    predictions = in_both_classes(predictions)
    policy = choose(predictions, PolicySpec(criterion), rule, "data", "0").policy
    return policy, rule.choose(predictions, PolicySpec(criterion)).point


def ten_examples() -> Predictions:
    """Ten examples of class 1, two layers. The last layer is always correct.

    The confidence of layer 1 is 0.60, 0.65, ... and at most 0.995. Layer 1 is wrong for the two least certain examples.
    """
    certainty = np.minimum(0.60 + 0.05 * np.arange(10), 0.995)
    margin = np.log(certainty / (1 - certainty))
    margin[:2] *= -1
    logits = np.zeros((10, 2, 2), np.float32)
    logits[:, 0, 1], logits[:, 1, 1] = margin, 5.0
    return Predictions(logits, None, np.ones(10, int), "accuracy")


def test_keep_chooses_the_cheapest_threshold_with_the_score() -> None:
    policy, point = chosen(Keep(1.0, optimistic=True), ten_examples(), "confidence")
    assert 0.65 < policy.thresholds[0] < 0.70
    assert (point.score, point.histogram) == (1.0, (8, 2))
    policy, point = chosen(Keep(0.9, optimistic=True), ten_examples(), "confidence")
    assert 0.60 < policy.thresholds[0] < 0.65
    assert (point.score, point.histogram) == (0.9, (9, 1))
    _, point = chosen(Keep(0.8, optimistic=True), ten_examples(), "confidence")
    assert (point.score, point.histogram) == (0.8, (10, 0))


def test_keep_by_entropy_chooses_the_same_exits() -> None:
    _, point = chosen(Keep(1.0, optimistic=True), ten_examples(), "entropy")
    assert point.histogram == (8, 2)


def test_keep_with_fewer_exits_chooses_among_their_thresholds() -> None:
    predictions = ten_examples()
    logits = np.stack([np.zeros((10, 2), np.float32), predictions.logits[:, 0], predictions.logits[:, 1]], axis=1)
    logits[:, 0, 0] = 9.0  # Layer 1 is wrong with a high certainty.
    three = Predictions(logits, None, np.ones(10, int), "accuracy")
    _, never = chosen(Keep(1.0, optimistic=True), three, "confidence")
    assert never.histogram == (0, 0, 10)
    policy, point = chosen(Keep(1.0, optimistic=True), three.select_exits((2, 3)), "confidence")
    assert policy.layers == 3
    assert (point.histogram, point.average_exit_layer) == ((0, 8, 2), pytest.approx(2.2))
    assert point.saved_layers == pytest.approx(1 - 2.2 / 3)
    again = operating_point(three.select_exits((2, 3)), policy)
    assert (again.histogram, again.average_exit_layer) == (point.histogram, pytest.approx(2.2))
    _, point = chosen(Keep(1.0, optimistic=True), three.select_exits((3,)), "confidence")
    assert point.histogram == (0, 0, 10)


def test_patience_counts_only_existing_exits() -> None:
    logits = np.zeros((1, 4, 2), np.float32)
    logits[0, :, 1] = [1.0, -1.0, 1.0, 1.0]  # The layers predict 1, 0, 1, 1.
    predictions = Predictions(logits, None, np.ones(1, int), "accuracy")
    assert family(predictions, PolicySpec("patience")).points([1.0])[0].histogram == (0, 0, 0, 1)
    assert family(predictions.select_exits((1, 3, 4)), PolicySpec("patience")).points([1.0])[0].histogram == (
        0,
        0,
        1,
        0,
    )


def test_keep_can_always_choose_full_depth() -> None:
    logits = np.zeros((6, 3, 2), np.float32)
    logits[:, :2, 0], logits[:, 2, 1] = 9.0, 1.0  # The early layers are wrong with a high certainty.
    predictions = Predictions(logits, None, np.ones(6, int), "accuracy")
    policy, point = chosen(Keep(1.0, optimistic=True), predictions, "confidence")
    assert (point.average_exit_layer, point.score) == (3.0, 1.0)
    assert operating_point(predictions, policy) == point
    _, patient = chosen(Keep(1.0, optimistic=True), predictions, "patience")
    assert patient.average_exit_layer == 3.0


def test_keep_chooses_the_better_of_equal_cost() -> None:
    values = np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 2.0], [4.0, 4.0]], np.float32)[..., None]
    lte = np.array([[0.9, 1], [0.1, 1], [0.2, 1], [0.8, 1]], np.float32)
    predictions = Predictions(values, lte, np.array([1.0, 3.0, 2.0, 4.0]), "spearman")
    _, point = chosen(Keep(1.0, optimistic=True), predictions, "lte")
    assert point.score == pytest.approx(1.0)
    assert point.histogram == (2, 2)


def test_keep_rejects_a_full_depth_score_not_above_zero() -> None:
    values = np.array([[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]], np.float32)[..., None]
    predictions = Predictions(values, None, np.array([1.0, 2.0, 3.0]), "spearman")
    with pytest.raises(BerxitError, match="--keep needs a score above 0"):
        chosen(Keep(0.9, optimistic=True), predictions, "patience")


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.01, float("nan")])
def test_keep_rejects_a_share_out_of_range(keep: float) -> None:
    with pytest.raises(InputError, match=r"--keep .* is out of range"):
        chosen(Keep(keep), ten_examples(), "confidence")


def test_keep_rejects_an_unknown_criterion() -> None:
    with pytest.raises(InputError, match="unknown criterion 'luck'"):
        chosen(Keep(0.9, optimistic=True), ten_examples(), "luck")


@pytest.mark.parametrize(
    ("delta", "histogram"),
    [(0.3, (10, 0)), (0.1, (9, 1)), (0.02, (8, 2))],  # p-values at loss 0.2, 0.1, 0: 0.145, 0.025, 0.001
)
@pytest.mark.parametrize("criterion", ["confidence", "entropy"])
def test_risk_chooses_the_cheapest_threshold_that_passes(
    criterion: str, delta: float, histogram: tuple[int, int]
) -> None:
    policy, point = chosen(Risk(0.5, delta), ten_examples(), criterion)
    assert point.histogram == histogram
    assert operating_point(ten_examples(), policy).histogram == histogram


def test_losses_count_predictions_that_differ_from_the_last_exit() -> None:
    wrong = Predictions(ten_examples().logits, None, np.zeros(10, int), "accuracy")  # The last exit is always wrong.
    assert chosen(Risk(0.5, 0.02), wrong, "confidence")[1].histogram == (8, 2)


def test_risk_tests_no_threshold_after_a_failure() -> None:
    certainty = np.tile([0.7, 0.9, 0.99], (10, 1))
    logits = np.zeros((10, 3, 2), np.float32)
    logits[..., 1] = np.log(certainty / (1 - certainty)) * [1, -1, 1]  # Layer 2 is wrong, layers 1 and 3 are correct.
    predictions = Predictions(logits, None, np.ones(10, int), "accuracy")
    assert chosen(Keep(1.0, optimistic=True), predictions, "confidence")[1].histogram == (10, 0, 0)
    assert chosen(Risk(0.5, 0.1), predictions, "confidence")[1].histogram == (0, 0, 10)


def test_losses_of_regression_are_shares_of_the_labels_range() -> None:
    values = np.array([[1.0, 2.0], [9.0, 3.0], [4.0, 4.0], [5.0, 5.0]], np.float32)[..., None]
    certainty = np.array([[0.9, 1], [0.8, 1], [0.2, 1], [0.1, 1]], np.float32)
    predictions = Predictions(values, certainty, np.array([1.0, 5.0, 2.0, 4.0]), "spearman")
    assert losses(predictions, family(predictions, PolicySpec("lte")).predicted([1.0, 0.85, 0.5])) == [
        0,
        0.25 / 4,
        (0.25 + 1) / 4,
    ]


@pytest.mark.parametrize("criterion", ["lte", "patience"])
def test_risk_of_regression_is_met(criterion: str) -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 5, 500)
    values = (truth[:, None] + rng.normal(size=(500, 4)) * [1, 0.5, 0.2, 0.1]).astype(np.float32)[..., None]
    certainty = np.tile(np.array([0.2, 0.5, 0.8, 1.0], np.float32), (500, 1))
    predictions = Predictions(values, certainty, truth, "spearman")
    policy, point = chosen(Risk(0.1, 0.1), predictions, criterion)
    assert point.average_exit_layer < 4
    assert losses(predictions, predicted_under(predictions, policy)[None])[0] < 0.1
    assert policy.tolerance == point.tolerance


def population(rows: int, seed: int) -> Predictions:
    """Predictions of three exits that agree with the last one more often if their certainty is higher."""
    rng = np.random.default_rng(seed)
    certainty = rng.uniform(0.5, 1.0, (rows, 3))
    agrees = rng.uniform(size=(rows, 3)) < certainty
    agrees[:, 2] = True
    logits = np.zeros((rows, 3, 2), np.float32)
    logits[..., 1] = np.log(certainty / (1 - certainty)) * np.where(agrees, 1, -1)
    return Predictions(logits, None, np.ones(rows, int), "accuracy")


def test_risk_is_exceeded_at_most_with_probability_delta() -> None:
    everyone, rule, draws = population(20_000, 0), Risk(0.12, 0.2), 60
    rng = np.random.default_rng(1)
    exceeded, saved = 0, 0.0
    for _ in range(draws):
        rows = rng.integers(0, 20_000, 200)
        drawn = Predictions(everyone.logits[rows], None, everyone.labels[rows], "accuracy")
        choice = rule.choose(drawn, PolicySpec("confidence"))
        exceeded += losses(everyone, predicted_under(everyone, choice.policy)[None])[0] > rule.risk
        saved += choice.point.saved_layers / draws
    assert exceeded <= draws * rule.delta  # Without a test, about half of the draws would exceed it.
    assert saved > 0.05


def test_risk_rejects_too_few_examples() -> None:
    with pytest.raises(InputError, match=r"--risk 0.01 --delta 0.05 needs at least 299 examples.* has 10"):
        chosen(Risk(0.01, 0.05), ten_examples(), "confidence")


@pytest.mark.parametrize("criterion", ["confidence", "entropy", "patience"])
def test_grid_runs_from_never_to_always(criterion: str) -> None:
    thresholds = CRITERIA[criterion].grid(layers=3, classes=2)
    layers = [point.average_exit_layer for point in family(population(50, 2), PolicySpec(criterion)).points(thresholds)]
    assert layers[0] == 3
    assert layers[-1] < 3 if criterion == "patience" else layers[-1] == 1
    assert np.all(np.diff(layers) <= 0)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_risk_rejects_numbers_out_of_range(value: float) -> None:
    with pytest.raises(InputError, match=r"--risk .* is out of range"):
        Risk(value)
    with pytest.raises(InputError, match=r"--delta .* is out of range"):
        Risk(0.1, value)


@pytest.mark.parametrize(("budget", "histogram"), [(9.0, (8, 2)), (3.45, (8, 2)), (3.25, (9, 1)), (3.0, (10, 0))])
def test_budget_chooses_the_best_score_within_it(budget: float, histogram: tuple[int, int]) -> None:
    rule = Budget(budget, intercept_ms=1.0, ms_per_layer=2.0, measured="a bench")  # 3 to 5 ms
    _, point = chosen(rule, ten_examples(), "confidence")
    assert point.histogram == histogram
    assert rule.milliseconds(point) <= budget


def test_budget_below_every_point_reports_the_cheapest() -> None:
    with pytest.raises(InputError, match=r"--budget-ms 2.9 is too low: the cheapest .* takes 3 ms"):
        chosen(Budget(2.9, 1.0, 2.0, "a bench"), ten_examples(), "confidence")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_budget_rejects_milliseconds_out_of_range(value: float) -> None:
    with pytest.raises(InputError, match=r"--budget-ms .* is out of range"):
        Budget(value, 1.0, 2.0, "a bench")


def test_of_bench_reads_a_bench_of_this_model_only(checkpoint: Path, tmp_path: Path) -> None:
    config = MultiExitConfig.from_pretrained(str(checkpoint))
    line = {"intercept_ms": 0.5, "ms_per_layer": 0.25, "r_squared": 0.99}
    here = {"device": "cpu", "machine": asdict(this_machine()), "backend": "onnxruntime"}
    quiet = {"repeats": 200, "tail": 1.1, "drift": 1.02, "others": 0.1, "cpus": 2, "threads": 2}
    whole = {"task": "custom", "layers": 3, "line": line, "noise": quiet, **here}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    expected = Budget(2.0, 0.5, 0.25, "bench.json of cpu, onnxruntime")
    assert Budget.of_bench(2.0, path, config) == Budget.of_bench(2.0, tmp_path, config) == expected
    with pytest.raises(InputError, match=r"no bench at .*other\.json: give the bench\.json"):
        Budget.of_bench(2.0, tmp_path / "other.json", config)
    for change, message in (
        ({"task": "rte"}, "is of a model with 3 layers for rte, the checkpoint has 3 layers for custom"),
        ({"layers": 6}, "is of a model with 6 layers for custom"),
        ({"line": {**line, "ms_per_layer": -0.1}}, r"gives -0\.1 ms per layer.* no other process is busy"),
        ({"line": 3}, "line: expected an object"),
        ({"line": None}, "of one depth only, which predict no others: bench a bundle with several exits"),
        ({"noise": {**quiet, "tail": 4.0}}, r"noisy measurement: the 90th .* is 4\.00 times .*--accept-noise"),
        ({"noise": {**quiet, "others": 1.9}}, r"other processes used 1\.9 of 2 CPUs while 2 threads were measured"),
        ({"noise": {**quiet, "others": 0.9, "threads": 1, "drift": 2.0}}, r"measurement: the median drifted .* 2\.00"),
        ({"noise": None}, r"the noise was not measured \(by an older version\)"),
        ({"line": {**line, "r_squared": 0.95}}, r"R\^2 of the line is 0\.9500, at least 0\.98 is expected"),
    ):
        path.write_text(json.dumps({**whole, **change}), encoding="utf-8")
        with pytest.raises(BerxitError, match=message):
            Budget.of_bench(2.0, path, config)
    path.write_text(json.dumps({**whole, "noise": {**quiet, "tail": 4.0}}), encoding="utf-8")
    accepted = Budget.of_bench(2.0, path, config, accept_noise=True)
    assert (accepted.ms_per_layer, accepted.measured) == (0.25, f"{expected.measured}; noisy, accepted")
    elsewhere = asdict(replace(this_machine(), system="Plan 9"))
    path.write_text(json.dumps({**whole, "machine": elsewhere}), encoding="utf-8")
    assert "measured on another machine: Plan 9" in Budget.of_bench(2.0, path, config).describe("accuracy")
    path.write_text(json.dumps({"task": "custom"}), encoding="utf-8")
    with pytest.raises(BerxitError, match=r"is not a bench\.json: it has no 'backend'"):
        Budget.of_bench(2.0, path, config)


def test_patience_on_regression_searches_its_tolerance() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, 60)  # labels from 0 to 1: with a tolerance of 0.5 all consecutive exits agree
    values = (truth[:, None] + rng.normal(size=(60, 4)) * [0.4, 0.2, 0.05, 0.02]).astype(np.float32)[..., None]
    predictions = Predictions(values, None, truth, "spearman")
    policy, point = chosen(Keep(0.98, optimistic=True), predictions, "patience")
    assert policy.tolerance == point.tolerance < 0.5
    assert operating_point(predictions, policy).histogram == point.histogram
    assert point.average_exit_layer < 4
    first, last = family(predictions, PolicySpec("patience")).points([1, 4])
    assert first.score < 0.98 * last.score


def rounded(predictions: Predictions, wrong: int) -> Predictions:
    """A bundle's pass: the last exit of the first ``wrong`` rows differs from the checkpoint's."""
    logits = predictions.logits.copy()
    logits[:wrong, -1] = logits[:wrong, -1, ::-1]
    return replace(predictions, logits=logits, reference=predictions.full_depth)


def test_keep_is_relative_to_the_full_depth_of_the_checkpoint() -> None:
    before = in_both_classes(ten_examples())
    after = rounded(before, 4)
    assert after.score(after.predicted()[:, -1]) == 0.6
    found = choose(after, PolicySpec("confidence"), Keep(0.8, optimistic=True), "data", "0").calibration
    assert found.full_depth_score == 1.0
    assert found.score >= 0.8
    assert found.histogram == (10, 0)
    found = choose(
        after, PolicySpec("confidence"), Keep(0.9, optimistic=True), "data", "0"
    ).calibration  # 0.9 of the bundle's full-depth score would be 0.54.
    assert (found.score, found.histogram) == (pytest.approx(0.6), (0, 10))
    assert "no threshold satisfies the rule" in found.warnings[-1]


def test_choose_warns_if_no_threshold_of_a_bundle_keeps_the_score() -> None:
    after = rounded(in_both_classes(ten_examples()), 2)
    after.logits[:, 0] = -after.logits[:, 0]  # All early predictions are wrong.
    found = choose(after, PolicySpec("confidence"), Keep(0.95, optimistic=True), "data", "0").calibration
    assert (found.histogram, found.score) == ((0, 10), pytest.approx(0.8))
    assert found.warnings[-1].startswith(
        "no threshold satisfies the rule: full depth scores 0.8000 in this precision, 1.0000 in the checkpoint, so"
    )
    assert found.warnings[-1].endswith("Export with another --precision, or calibrate the checkpoint with --keep 0.6")


def test_risk_is_relative_to_the_predictions_of_the_checkpoint() -> None:
    before = in_both_classes(population(400, 0))
    after = rounded(before, 100)
    found = choose(after, PolicySpec("confidence"), Risk(0.2), "data", "0").calibration
    assert losses(after, after.predicted()[:, -1][None]) == [0.25]
    assert found.saved_layers == 0
    assert "the risk (disagreement) of full depth is 0.2500 in this precision" in found.warnings[-1]
    assert found.warnings[-1].endswith("with a higher --risk")
    own = choose(before, PolicySpec("confidence"), Risk(0.2), "d", "0").calibration
    assert not any("satisfies the rule" in line for line in own.warnings)


def test_save_stores_the_reference_predictions(tmp_path: Path) -> None:
    after = rounded(replace(in_both_classes(ten_examples()), names=("no", "yes")), 2)
    after.save(tmp_path / "pass.npz")
    again = Predictions.load(tmp_path / "pass.npz")
    assert again.reference is not None
    assert again.full_depth_score == 1.0
    assert again.names == ("no", "yes")
