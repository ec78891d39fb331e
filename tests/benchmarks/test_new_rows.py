"""benchmarks/new_rows.py: a policy is chosen on held-out rows and scored on the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.new_rows import command, kept_interval, measured
from berxit.runtime.console import status_of
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec


def passed(rows: int, seed: int, *, first_exit: float) -> Predictions:
    """A pass of 3 exits whose first one is right on a share of the rows and certain; the others are always right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    right = np.ones((rows, 3), bool)
    right[:, 0] = rng.uniform(size=rows) < first_exit
    logits = np.zeros((rows, 3, 2), np.float32)
    chosen = np.where(right, labels[:, None], 1 - labels[:, None])
    np.put_along_axis(logits, chosen[..., None], 6.0, axis=2)
    return Predictions(logits, None, labels, "accuracy")


def test_measured_scores_only_the_new_rows() -> None:
    """On the rows of the choice every exit is right; on the new rows the first one is right on 70%."""
    held_out, new = passed(600, 0, first_exit=1.0), passed(2000, 1, first_exit=0.7)
    for spec in (PolicySpec("confidence"), PolicySpec("fixed")):
        found = measured(new, held_out, spec, 0.99)
        assert found.saved_layers == pytest.approx(2 / 3)
        assert found.kept == pytest.approx(0.7, abs=0.03)
        assert found.kept_interval[0] < found.kept < found.kept_interval[1]


def test_kept_interval_is_one_for_full_depth() -> None:
    new = passed(200, 2, first_exit=0.5)
    assert kept_interval(new, new.full_depth) == (1.0, 1.0)


def test_command_writes_outcomes_with_constant_and_seed(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = CliRunner().invoke(command, [f"tiny={checkpoint}=24", "--keep", "0.9", "--output", str(output)])
    assert done.exit_code == 0, done.output
    stored = json.loads((output / "new-rows.json").read_text(encoding="utf-8"))
    (found,) = stored["outcomes"]
    assert (found["calibration_rows"], found["dev_rows"], found["seed"]) == (24, 24, 42)
    assert found["constant"] == 0.5
    assert stored["made_by"]["seeds"] == [42]
    assert "tiny" in (output / "new-rows.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("argument", ["tiny", "tiny={}", "tiny={}=48", "tiny={}=x"])
def test_command_rejects_wrong_arguments_in_one_line(
    argument: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(command, [argument.format(checkpoint), "--output", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
