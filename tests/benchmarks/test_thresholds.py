"""The benchmark of thresholds on unseen rows: outcomes on a synthetic population, and the command on a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.thresholds import command, outcome, report
from berxit.runtime.console import status_of
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec
from berxit.train.rules import Keep


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
        outcome(predictions, PolicySpec("confidence"), rule, 500, 30)
        for rule in (Keep(0.98, optimistic=True), Keep(0.98))
    )
    assert optimistic.kept < 0.8
    assert guaranteed.kept >= 0.9
    assert guaranteed.saved_layers < optimistic.saved_layers
    assert optimistic.kept <= optimistic.almost_kept <= 1


def test_report_has_a_row_per_outcome() -> None:
    found = outcome(population(300), PolicySpec("confidence"), Keep(0.9, optimistic=True), 100, 5)
    assert "| 100 " in report([found], 0.9)
    assert "optimistic" in report([found], 0.9)


def test_command_stores_the_outcomes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(checkpoint), "--rows", "20", "--splits", "2", "--output", str(tmp_path / "found")]
    assert status_of(command, arguments) == 0
    stored = json.loads((tmp_path / "found" / "result.json").read_text(encoding="utf-8"))
    assert [each["rule"] for each in stored["outcomes"]] == ["keep, delta 0.1", "optimistic", "oracle"]
    assert stored["population"] == 48
    assert status_of(command, [*arguments, "--rows", "40"]) == 2
    assert "48 rows are stored, and --rows 40 leaves too few to judge" in capsys.readouterr().err
