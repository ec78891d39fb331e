"""Tables and files of an evaluation."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from berxit.runtime.errors import BerxitError, InputError
from berxit.toolkit.evaluation_files import write_evaluation
from berxit.toolkit.evaluation_report import evaluate
from berxit.train.curves import Curve, area_above
from berxit.train.evaluation import Predictions
from berxit.train.families import applicable_criteria


@pytest.fixture
def predictions() -> Predictions:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    depth = np.arange(1, 4)[None, :, None]
    logits = rng.normal(size=(80, 3, 2)) + depth * np.eye(2)[labels][:, None]
    return Predictions(logits.astype(np.float32), None, labels, "accuracy")


def test_evaluation_contains_every_layer_and_the_whole_curve(predictions: Predictions) -> None:
    evaluation = evaluate(predictions)
    assert (evaluation.criterion, evaluation.examples, len(evaluation.layer_scores)) == ("confidence", 80, 3)
    assert evaluation.curve[0].average_exit_layer == 1.0
    assert evaluation.curve[-1].average_exit_layer == 3.0
    assert evaluation.curve[-1].score == evaluation.layer_scores[-1]
    text = evaluation.text()
    for layer, score in enumerate(evaluation.layer_scores, start=1):
        relative = f"{score / evaluation.layer_scores[-1]:.1%}"
        assert re.search(rf"\| {layer} +\| +{score:.4f} \| +{re.escape(relative)} \|", text)


def test_evaluation_compares_all_criteria(predictions: Predictions) -> None:
    evaluation = evaluate(predictions)
    names = applicable_criteria(predictions)
    assert list(evaluation.curves) == list(evaluation.summaries) == names
    assert {"confidence", "entropy", "patience", "agreement"} <= set(names)
    full = evaluation.layer_scores[-1]
    curve = Curve.of(evaluation.curves["patience"], 3).relative_to(full)
    summary = evaluation.summaries["patience"]
    assert summary.relative_at_saved == {"0.3": curve.at(2.1), "0.5": curve.at(1.5), "0.7": None}
    other = Curve.of(evaluation.curves["entropy"], 3).relative_to(full)
    assert summary.area_above["entropy"] == pytest.approx(area_above(curve, other).area)
    row = next(line for line in evaluation.text().splitlines() if line.startswith("| patience"))
    assert f"{summary.area_above['entropy']:.2f}" in row


def test_evaluation_of_regression_has_no_class_criteria_and_a_second_score() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=40)
    values = (truth[:, None] + rng.normal(size=(40, 3)) * [0.5, 0.2, 0.1]).astype(np.float32)[..., None]
    evaluation = evaluate(Predictions(values, None, truth, "spearman"))
    assert list(evaluation.curves) == ["patience"]
    assert evaluation.also["pearson"][0] == pytest.approx(np.corrcoef(values[:, 0, 0], truth)[0, 1], abs=1e-6)
    assert "| tolerance" in evaluation.text()
    shown = [point.score for point in evaluation.spread(10)]
    assert shown == sorted(shown)
    with pytest.raises(InputError, match="needs class probabilities"):
        evaluate(Predictions(values, None, truth, "spearman"), "entropy")


def test_evaluation_reports_accuracy_with_f1(predictions: Predictions) -> None:
    evaluation = evaluate(replace(predictions, metric="f1"))
    assert evaluation.also == {"accuracy": evaluate(predictions).layer_scores}
    assert evaluate(predictions).also == {}


def test_spread_returns_points_from_the_cheapest_to_full_depth(predictions: Predictions) -> None:
    averages = [point.average_exit_layer for point in evaluate(predictions).spread(5)]
    assert averages == sorted(averages)
    assert (averages[0], averages[-1]) == (1.0, 3.0)
    assert len(averages) == 5


def test_evaluate_accepts_another_criterion(predictions: Predictions) -> None:
    assert [point.threshold for point in evaluate(predictions, "patience").curve] == [1.0, 2.0, 3.0]


def test_written_evaluation_can_be_read(predictions: Predictions, tmp_path: Path) -> None:
    evaluation = evaluate(predictions)
    files = write_evaluation(evaluation, predictions, tmp_path / "eval")
    assert [path.name for path in files] == ["predictions.npz", "eval.json", "eval.md", "eval.png"]
    assert all(path.stat().st_size > 0 for path in files)
    data = json.loads(files[1].read_text(encoding="utf-8"))
    assert data["layer_scores"] == list(evaluation.layer_scores)
    assert {name: len(curve) for name, curve in data["curves"].items()} == {
        name: len(curve) for name, curve in evaluation.curves.items()
    }
    again = Predictions.load(files[0])
    assert evaluate(again) == evaluation
    assert files[2].read_text(encoding="utf-8") == evaluation.text() + "\n"


def test_write_evaluation_to_a_file_raises_one_line(predictions: Predictions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BerxitError, match="cannot write results to"):
        write_evaluation(evaluate(predictions), predictions, tmp_path / "file")
