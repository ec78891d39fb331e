"""The benchmark of the criterion ``learned``: curves on other rows, the comparison, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learned import FIXED, Measured, TaskResult, command, held_out_curve, judged, measure
from berxit.runtime.console import status_of
from berxit.train.curves import Curve
from berxit.train.evaluation import Predictions


def population(rows: int, seed: int = 0) -> Predictions:
    """Exits whose confidence means less at exit 1 than at exit 2."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, rows)
    size = rng.exponential(size=(rows, 3)) * 2
    right = rng.uniform(size=(rows, 3)) < 1 / (1 + np.exp(-size * [0.5, 1.5, 9]))
    logits = np.zeros((rows, 3, 2), np.float32)
    logits[..., 1] = size * np.where(right, 1, -1) * np.where(truth == 1, 1, -1)[:, None]
    return Predictions(logits, None, truth, "accuracy", names=("no", "yes"))


def test_judged_reads_area_and_saved_layers_from_a_curve() -> None:
    flat = Curve(np.array([1.0, 2.0, 4.0]), np.array([98.0, 99.5, 100.0]), 4)
    area, saved = judged(flat)
    assert saved == 0.5
    assert area == pytest.approx(np.interp(4 * (1 - np.arange(0.3, 0.701, 0.05)), [1, 2, 4], [98, 99.5, 100]).mean())
    assert judged(Curve(np.array([4.0]), np.array([90.0]), 4)) == (90.0, 0.0)


def test_held_out_curve_does_not_depend_on_the_labels_of_other_rows() -> None:
    fitted_on, judged_on = population(200, 1), population(300, 2)
    curve = held_out_curve(fitted_on, judged_on, "learned")
    assert curve.layers[0] == 1
    assert curve.layers[-1] == 3
    assert curve.scores[-1] == 100


def test_measure_compares_with_the_best_other_criterion() -> None:
    result = measure("made", population(1200), 300, 4)
    assert set(result.criteria) == {"confidence", "entropy", "patience", "learned", FIXED}
    means = {name: np.mean(result.criteria[name].area) for name in ("confidence", "entropy", "patience")}
    assert result.best_other == max(means, key=lambda name: means[name])
    mean, low, high = result.difference("area", result.best_other)
    assert low <= mean <= high
    assert result.difference("area", "confidence")[0] > 0.2


def test_difference_is_paired_over_the_splits() -> None:
    criteria = {"learned": Measured((2.0, 4.0), (0.5, 0.6)), "lte": Measured((1.0, 3.0), (0.5, 0.5))}
    assert TaskResult("t", "f1", 3, 10, 5, criteria).difference("area", "lte") == (1.0, 1.0, 1.0)


def test_command_writes_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    population(150).save(tmp_path / "predictions.npz")
    arguments = [f"made={tmp_path / 'predictions.npz'}", "--rows", "60", "--splits", "2", "--output", str(tmp_path)]
    assert status_of(command, arguments) == 0
    stored = json.loads((tmp_path / "learned.json").read_text(encoding="utf-8"))
    assert [task["name"] for task in stored["tasks"]] == ["made"]
    assert "| made, 60 rows " in (tmp_path / "learned.md").read_text(encoding="utf-8")
    assert status_of(command, ["missing", "--output", str(tmp_path)]) == 2
    assert "give NAME=FILE" in capsys.readouterr().err
