"""The benchmark of thresholds on unseen rows: outcomes on a synthetic population, and the command on a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.thresholds import command, margin, outcome, report, rules, synthetic
from berxit.runtime.console import status_of
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec
from berxit.train.rules import Keep, Risk


def population(rows: int) -> Predictions:
    """Exit 1 is right on 80% of the rows, with certainties that say nothing; exit 2 is always right."""
    rng = np.random.default_rng(0)
    logits = np.zeros((rows, 2, 2), np.float32)
    logits[:, 0, 1] = rng.uniform(0.1, 4, rows) * np.where(rng.uniform(size=rows) < 0.8, 1, -1)
    logits[:, 1, 1] = 5
    return Predictions(logits, None, np.ones(rows, int), "accuracy", names=("no", "yes"))


def test_outcome_counts_splits_that_keep_the_share() -> None:
    predictions = population(3000)
    optimistic, guaranteed = (
        outcome("toy", predictions, PolicySpec("confidence"), rule, 500, 30)
        for rule in (Keep(0.98, optimistic=True), Keep(0.98))
    )
    assert optimistic.kept < 0.8
    assert guaranteed.kept >= 0.9
    assert guaranteed.saved_layers < optimistic.saved_layers
    assert optimistic.kept <= optimistic.almost_kept <= 1


@pytest.mark.parametrize("name", ["--risk 0.05", "--risk 0.1 --per class", "--risk 0.05 --risk-of label-error"])
def test_risks_hold_on_the_synthetic_population(name: str) -> None:
    everyone = synthetic()
    rule = dict(rules(everyone, 0.1))[name]
    found = outcome("synthetic", everyone, PolicySpec("confidence"), rule, 400, 15)
    assert found.kept >= 11 / 15  # 15 splits with probability 0.9: 11 or more with probability 0.987
    assert found.saved_layers > 0.2


def test_margin_of_a_risk_per_exit_is_that_of_the_worst_exit() -> None:
    predictions = population(10)
    predictions = replace(predictions, labels=np.arange(10) % 2)
    taken = np.array([1] * 4 + [2] * 6)
    wrong = (predictions.predicted()[:4, 0] != predictions.full_depth[:4]).mean()
    assert margin(Risk(0.5, per="exit"), predictions, taken) == (wrong, 0.5 - wrong)


def test_report_has_a_row_per_outcome() -> None:
    found = outcome("toy", population(300), PolicySpec("confidence"), Keep(0.9, optimistic=True), 100, 5)
    assert "| toy " in report([found]) and "| 100 " in report([found]).replace("              ", " ")


def test_command_stores_the_outcomes(checkpoint: Path, tmp_path: Path) -> None:
    arguments = [
        f"tiny={checkpoint}",
        "--rows",
        "20",
        "--rows",
        "40",
        "--splits",
        "2",
        "--output",
        str(tmp_path / "found"),
    ]
    assert status_of(command, arguments) == 0
    stored = json.loads((tmp_path / "found" / "result.json").read_text(encoding="utf-8"))
    assert stored["populations"] == {"tiny": 48}
    assert {each["rows"] for each in stored["outcomes"]} == {20}  # too few others remain after 40 rows
    assert {"--keep 0.99", "--risk 0.05", "oracle 0.99"} <= {each["rule"] for each in stored["outcomes"]}


def test_command_rejects_a_population_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(command, ["checkpoint", "--output", "out"]) == 2
    assert "'checkpoint': give NAME=CHECKPOINT, or synthetic" in capsys.readouterr().err
