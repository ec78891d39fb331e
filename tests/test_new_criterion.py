"""A new exit criterion is one class and one entry in CRITERIA. test_user_files.py tests the commands."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from stored_backend import StoredBackend, batch_of

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.loop import exit_loop
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
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec, operating_points, predicted_under
from berxit.train.rules import Budget, Keep, Risk, Rule

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


class Energy(Criterion):
    """Minus the logarithm of the summed exponentials of the logits: a low value means a certain prediction, and there
    is neither an upper nor a lower bound."""

    name = "energy"
    description = "minus the logarithm of the summed exponentials of the logits"
    higher_is_more_certain = False

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        return -np.log(np.exp(logits).sum(axis=-1)), None


@pytest.fixture(params=[LogitMargin, Doubt, Energy], ids=lambda kind: kind.name)
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Criterion:
    criterion: Criterion = request.param()
    monkeypatch.setitem(CRITERIA, criterion.name, criterion)
    return criterion


def random_predictions(rows: int = 60, classes: int = 3) -> Predictions:
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(rows, 4, classes)) * 3).astype(np.float32)
    return Predictions(logits, None, rng.integers(0, classes, rows), "accuracy")


def test_never_of_a_new_criterion_reaches_the_last_layer(toy: Criterion) -> None:
    predictions = random_predictions()
    points = operating_points(predictions, PolicySpec(toy.name))
    assert points[-1].average_exit_layer == 4
    assert points[0].average_exit_layer == 1
    policy = ExitPolicy.uniform(toy.name, toy.never(4, 3), 4)
    assert exit_layers(policy, certainties(policy, predictions.logits, None)).tolist() == [4] * 60
    steps = exit_loop(StoredBackend(predictions.logits), batch_of(60), policy)
    assert [np.count_nonzero(step.exits) for step in steps] == [0, 0, 0, 60]


def harder_rows(rows: int, seed: int = 0) -> Predictions:
    """Exits agree with the last one on four rows of five, more often where their logits are larger."""
    rng = np.random.default_rng(seed)
    logits = np.zeros((rows, 4, 2), np.float32)
    size = rng.uniform(0.1, 6, (rows, 4))
    agree = rng.uniform(size=(rows, 4)) < 1 / (1 + np.exp(-size))
    agree[:, -1] = True
    truth = rng.integers(0, 2, rows)
    logits[..., 1] = size * np.where(agree, 1, -1) * np.where(truth == 1, 1, -1)[:, None]
    logits -= logits.mean(axis=-1, keepdims=True)
    return Predictions(logits, None, truth, "accuracy", names=("no", "yes"))


@pytest.mark.parametrize("rule", [Keep(0.98), Risk(0.02)], ids=["keep", "risk"])
def test_rule_holds_on_new_rows_for_a_new_criterion(toy: Criterion, rule: Keep | Risk) -> None:
    """A wrong direction chose a threshold under which the least certain rows exited."""
    everyone = harder_rows(20_000)
    choice = rule.choose(harder_rows(1000, seed=1), PolicySpec(toy.name))
    predicted = predicted_under(everyone, choice.policy)
    assert np.mean(predicted != everyone.full_depth) <= 0.02
    assert choice.point.saved_layers > 0.1


@pytest.mark.parametrize("patience", [1, 2])
def test_loop_exits_as_on_the_stored_pass_for_a_new_criterion(toy: Criterion, patience: int) -> None:
    predictions = random_predictions()
    chosen = Keep(0.9, optimistic=True).choose(predictions, PolicySpec(toy.name, patience=patience))
    layers = np.zeros(60, int)
    for step in exit_loop(StoredBackend(predictions.logits), batch_of(60), chosen.policy):
        layers[step.rows[step.exits]] = step.layer
    assert tuple(np.bincount(layers - 1, minlength=4)) == chosen.point.histogram


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
        assert all(name in text for name, each in CRITERIA.items() if each.adaptive or command == "calibrate")


@pytest.mark.parametrize("rule", [Keep(0.9), Keep(0.9, optimistic=True), Risk(0.3), Budget(9, 1, 1, "a bench")])
def test_every_rule_detects_a_wrong_never(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(LogitMargin):
        name = "wrong"

        def bounds(self, classes: int) -> tuple[float, float]:
            return 0.0, 1.0  # the margin exceeds 1

    monkeypatch.setitem(CRITERIA, "wrong", Wrong())
    with pytest.raises(BerxitError, match=r"criterion 'wrong': \d+ rows exit early at its threshold 'never'"):
        rule.choose(random_predictions(), PolicySpec("wrong"))


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_unbounded_criterion_rejects_thresholds_that_are_not_finite(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CRITERIA, "logit-margin", LogitMargin())
    with pytest.raises(InputError, match="for logit-margin it must be a finite number"):
        ExitPolicy.uniform("logit-margin", threshold, 3)
