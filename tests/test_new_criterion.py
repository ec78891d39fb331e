"""A new exit criterion is one class and one entry in CRITERIA: every command and the test vectors accept it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.policies import (
    CRITERIA,
    Certainty,
    Criterion,
    ExitPolicy,
    Floats,
    Memory,
    Parameters,
    certainties,
    exit_layers,
)
from berxit.toolkit.cli import load
from berxit.train.evaluation import Predictions, operating_points

sys.path.insert(0, str(Path(__file__).parent / "swift"))


class LogitMargin(Criterion):
    """The distance between the two largest logits: no upper bound."""

    name = "logit-margin"
    description = "the distance between the two largest logits"

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        ordered = np.sort(logits, axis=-1)
        return ordered[..., -1] - ordered[..., -2], None


class Doubt(Criterion):
    """One minus the highest probability: a low value means a certain prediction."""

    name = "doubt"
    description = "one minus the highest class probability"
    higher_is_more_certain = False

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, 1.0

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        confidence, _ = CRITERIA["confidence"].certainty(logits, lte, memory, parameters)
        return 1 - confidence, None


@pytest.fixture(params=[LogitMargin, Doubt], ids=lambda kind: kind.name)
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Criterion:
    criterion: Criterion = request.param()
    monkeypatch.setitem(CRITERIA, criterion.name, criterion)
    return criterion


def invoke(command: str, *arguments: str | Path) -> Result:
    done = CliRunner().invoke(load(command), [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def random_predictions(rows: int = 60, classes: int = 3) -> Predictions:
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(rows, 4, classes)) * 3).astype(np.float32)
    return Predictions(logits, None, rng.integers(0, classes, rows), "accuracy")


def test_every_command_accepts_a_new_criterion(
    toy: Criterion, checkpoint: Path, data_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    evaluated = invoke("eval", copy, "--data", data_folder, "--criterion", toy.name, "--quiet")
    assert f"{toy.name} threshold" in evaluated.output
    for rule in (("--keep", "0.95"), ("--risk", "0.3", "--delta", "0.2")):
        assert (
            toy.name
            in invoke("calibrate", copy, "--data", data_folder, "--criterion", toy.name, *rule, "--quiet").output
        )
    bundle = tmp_path / "bundle"
    invoke("export", copy, "--target", "onnxruntime", "--output", bundle, "--quiet")
    side = "above" if toy.higher_is_more_certain else "below"
    assert f"{toy.name} is {side} the layer's threshold" in invoke("inspect", bundle).output
    arguments = ("--queries", "5", "--seconds", "0", "--threads", "1", "--quiet")
    assert f"{toy.name} threshold" in invoke("bench", bundle, "--data", data_folder, "--limit", "8", *arguments).output
    studied = invoke(
        "study", "tradeoff", copy, "--data", data_folder, "--criterion", toy.name, "--output", tmp_path / "studies"
    )
    assert toy.name in studied.output or toy.name in (tmp_path / "studies" / "tradeoff-custom.md").read_text()


def test_never_of_a_new_criterion_reaches_the_last_layer(toy: Criterion) -> None:
    predictions = random_predictions()
    points = operating_points(predictions, toy.name)
    assert points[-1].average_exit_layer == 4
    assert points[0].average_exit_layer == 1
    policy = ExitPolicy.uniform(toy.name, toy.never(4, 3), 4)
    assert exit_layers(policy, certainties(policy, predictions.logits, None)).tolist() == [4] * 60


def test_grid_of_a_new_criterion_goes_from_never_to_always(toy: Criterion) -> None:
    predictions = random_predictions()
    grid = toy.grid(4, 3)
    policy = ExitPolicy.uniform(toy.name, grid[0], 4)
    certainty = certainties(policy, predictions.logits, None)
    averages = [exit_layers(policy.with_threshold(t), certainty).mean() for t in grid]
    assert (averages[0], averages[-1]) == (4, 1)
    assert np.all(np.diff(averages) <= 0)
    assert len({round(average, 3) for average in averages}) > 10


def test_new_criterion_has_test_vectors(toy: Criterion) -> None:
    from make_vectors import policies

    cases = [case for case in policies() if case["criterion"] == toy.name]
    assert len(cases) >= 12
    assert len({case["exit_layer"] for case in cases}) > 1


def test_help_names_every_criterion() -> None:
    for command in ("eval", "calibrate", "study"):
        text = " ".join(CliRunner().invoke(load(command), ["--help"]).output.split())
        assert all(name in text for name in CRITERIA)


def test_wrong_never_is_detected_wherever_a_threshold_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(LogitMargin):
        name = "wrong"

        def never(self, layers: int, classes: int) -> float:
            return 1.0  # the margin exceeds 1

    monkeypatch.setitem(CRITERIA, "wrong", Wrong())
    with pytest.raises(BerxitError, match=r"criterion 'wrong': \d+ rows exit early at its threshold 'never'"):
        operating_points(random_predictions(), "wrong")


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_unbounded_criterion_rejects_thresholds_that_are_not_finite(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CRITERIA, "logit-margin", LogitMargin())
    with pytest.raises(InputError, match="for logit-margin it must be a finite number"):
        ExitPolicy.uniform("logit-margin", threshold, 3)
