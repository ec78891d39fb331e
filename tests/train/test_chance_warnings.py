"""Warnings about policies and scores at chance, with their advice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from berxit.runtime.calibration import Calibration
from berxit.runtime.errors import BerxitError, InputError
from berxit.toolkit.evaluation_report import evaluate
from berxit.train.calibration import choose
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec
from berxit.train.rules import Budget, Keep, Risk, Rule

ROWS = 400


def exits(*accuracies: float, positives: float = 0.68, metric: str = "f1", rows: int = ROWS) -> Predictions:
    """Predictions of two classes. ``accuracies``: share of the rows in which each layer agrees with the
    label; NaN: the layer always predicts class 1."""
    rng = np.random.default_rng(0)
    labels = (np.arange(rows) < positives * rows).astype(int)
    logits = np.zeros((rows, len(accuracies), 2), np.float32)
    for layer, accuracy in enumerate(accuracies):
        predicted = np.ones(rows, int) if np.isnan(accuracy) else right(labels, accuracy, rng)
        logits[np.arange(rows), layer, predicted] = rng.uniform(0.1, 2, rows)
    return Predictions(logits, None, labels, metric, names=("not_equivalent", "equivalent"))


def right(labels: npt.NDArray, accuracy: float, rng: np.random.Generator) -> npt.NDArray:
    return np.where(rng.permutation(len(labels)) < accuracy * len(labels), labels, 1 - labels)


ALWAYS_ONE = float("nan")


def calibrated(predictions: Predictions, rule: Rule) -> Calibration:
    return choose(predictions, PolicySpec("confidence"), rule, "dev.tsv", "0").calibration


def test_choose_warns_of_a_constant_policy() -> None:
    """MRPC with --keep 0.95: layer 1 predicts 'equivalent' for every row, which keeps 0.95 of F1."""
    found = calibrated(exits(ALWAYS_ONE, 0.84, 0.86), Keep(0.85, optimistic=True))
    assert found.average_exit_layer == 1
    assert found.score == pytest.approx(found.constant_score)
    (warning,) = found.warnings
    assert "the chosen policy is at chance: f1 0." in warning
    assert "(it predicts 'equivalent' for every example)" in warning
    assert warning.endswith("Recalibrate with a higher --keep")


@pytest.mark.parametrize(
    ("rule", "option"),
    [(Keep(0.5, optimistic=True), "--keep"), (Risk(0.9), "--risk"), (Budget(2.0, 1.0, 1.0, "a bench"), "--budget-ms")],
)
def test_choose_names_the_option_that_makes_the_rule_stricter(rule: Rule, option: str) -> None:
    (warning,) = calibrated(exits(ALWAYS_ONE, 0.86), rule).warnings
    assert option in warning.rpartition("Recalibrate with ")[2]


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
@pytest.mark.parametrize("rule", [Keep(0.99, optimistic=True), Keep(0.5, optimistic=True), Risk(0.3)])
def test_choose_warns_of_a_model_at_chance(metric: str, rule: Rule) -> None:
    found = calibrated(exits(0.4, 0.6, 0.68, metric=metric), rule)
    (warning,) = found.warnings
    assert warning.startswith(f"full depth is at chance: {metric} ")
    assert "more --epochs, another --learning-rate" in warning


def test_choose_warns_of_early_exits_at_chance_without_saved_layers() -> None:
    found = calibrated(exits(0.5, 0.5, 0.95, positives=0.5, metric="accuracy"), Keep(0.99, optimistic=True))
    (warning,) = found.warnings
    assert warning.startswith("early exits at chance, ")
    assert "after layers 1, 2, accuracy does not exceed" in warning
    assert "--pooling mean" in warning
    assert "--head-learning-rate" in warning


def test_choose_does_not_warn_of_a_trained_model() -> None:
    found = calibrated(exits(0.9, 0.92, 0.93, positives=0.5, metric="accuracy"), Keep(0.95, optimistic=True))
    assert found.saved_layers > 0.05
    assert found.warnings == ()
    assert found.constant_score == pytest.approx(0.5, abs=0.1)


def test_choose_records_the_positive_class() -> None:
    assert calibrated(exits(0.9, 0.95), Keep(0.9, optimistic=True)).positive == "equivalent"
    assert calibrated(exits(0.9, 0.95, metric="accuracy"), Keep(0.9, optimistic=True)).positive is None


def test_choose_rejects_labels_and_outputs_without_a_score() -> None:
    predictions = exits(0.9, 0.95)
    with pytest.raises(InputError, match=r"dev\.tsv: f1 cannot be measured: all labels are of one class"):
        calibrated(Predictions(predictions.logits, None, np.ones(ROWS, int), "f1"), Risk(0.3))
    predictions.logits[3, 0] = np.nan
    with pytest.raises(BerxitError, match=r"dev\.tsv: f1 cannot be measured: layer 1 outputs NaN"):
        calibrated(predictions, Keep(0.9, optimistic=True))
    values = np.ones((50, 2, 1), np.float32)
    with pytest.raises(BerxitError, match="full depth predicts 1 for every row"):
        choose(
            Predictions(values, None, np.arange(50.0), "spearman"),
            PolicySpec("patience"),
            Keep(0.9, optimistic=True),
            "dev.tsv",
            "0",
        )


def test_evaluate_stores_the_constant_prediction_and_its_score() -> None:
    found = evaluate(exits(0.9, 0.92, 0.93))
    assert found.constant_prediction == "equivalent"
    assert found.constant_score == exits(0.9, 0.92, 0.93).constant.score
    assert (found.positive, found.warnings) == ("equivalent", ())
    assert f"The constant prediction ('equivalent') scores {found.constant_score:.4f}" in found.text()
    assert found.text().startswith("f1 of 'equivalent' on 400 examples")
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 5, 60)
    values = (labels[:, None] + rng.normal(size=(60, 2))).astype(np.float32)[..., None]
    found = evaluate(Predictions(values, None, labels, "spearman"))
    assert (found.constant_prediction, found.constant_score) == (pytest.approx(labels.mean()), 0.0)


def test_evaluate_omits_relative_scores_of_a_model_at_chance() -> None:
    found = evaluate(exits(0.9, 0.6, positives=0.68, metric="accuracy"))
    assert found.warnings[0].startswith("full depth is at chance")
    assert found.summaries == {}
    assert "%" not in found.text().split("| exit layer")[1].split("\n\n")[0]
    assert "warning: full depth is at chance" in found.text()


def test_evaluate_warns_of_early_exits_at_chance() -> None:
    (warning,) = evaluate(exits(0.5, 0.95, positives=0.5, metric="accuracy")).warnings
    assert warning.startswith("early exits at chance")


def test_evaluate_rejects_labels_and_outputs_without_a_score() -> None:
    with pytest.raises(InputError, match="all labels are of one class"):
        evaluate(Predictions(exits(0.9).logits, None, np.zeros(ROWS, int), "accuracy"))
