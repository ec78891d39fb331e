"""Risks: losses, groups, the tests of their bounds, and the guarantee of each over many draws of calibration data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from berxit.runtime.errors import InputError
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec, exits_under, predicted_at
from berxit.train.risks import DISAGREEMENT, LABEL_ERROR, GroupTest, Loss, classes_of
from berxit.train.rules import Risk

CONFIDENCE = PolicySpec("confidence")


def population(rows: int = 20_000, seed: int = 0) -> Predictions:
    """Three exits and two classes. Deeper exits are right more often; early exits favour the common class "calm" (two
    thirds), so they miss the other one more often."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 1 / 3).astype(np.int64)
    easiness = rng.normal(1.2, 1.0, rows)
    logits = np.empty((rows, 3, 2), dtype=np.float32)
    for layer, (sharpness, bias) in enumerate([(0.7, 0.8), (1.4, 0.4), (2.2, 0.0)]):
        margin = sharpness * easiness + rng.normal(0, 0.8, rows)
        toward = np.where(labels == 1, margin, -margin) - bias
        logits[:, layer] = np.stack([-toward, toward], axis=-1)
    return Predictions(logits, None, labels, "accuracy", names=("calm", "urgent"))


POPULATION = population()


def risk_of(everyone: Predictions, rule: Risk, predicted: npt.NDArray, taken: npt.NDArray) -> float:
    """The largest risk of the rule's groups in the population."""
    loss = Loss(everyone, rule.of)
    losses = np.full(len(everyone.labels), np.nan)
    losses[loss.rows] = loss(predicted)
    groups = [loss.rows]
    if rule.per == "class":
        groups = classes_of(loss)
    if rule.per == "exit":
        groups = [np.flatnonzero(taken <= number) for number in (1, 2) if (taken == number).any()]
    return max((float(np.nanmean(losses[rows])) for rows in groups if len(rows)), default=0.0)


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(Risk(0.1, 0.2), marks=pytest.mark.slow),
        pytest.param(Risk(0.08, 0.2, of=LABEL_ERROR), marks=pytest.mark.slow),
        Risk(0.25, 0.2, of="misses:urgent"),
        pytest.param(Risk(0.15, 0.2, per="class"), marks=pytest.mark.slow),
        Risk(0.15, 0.2, of=LABEL_ERROR, per="class"),
        Risk(0.15, 0.2, per="exit"),
    ],
    ids=str,
)
def test_risk_is_exceeded_in_at_most_delta_of_the_draws_and_saves_layers(rule: Risk) -> None:
    everyone, rng, draws = POPULATION, np.random.default_rng(1), 30
    exceeded, saved = 0, 0.0
    for _ in range(draws):
        rows = rng.choice(len(everyone.labels), 500, replace=False)
        choice = rule.choose(everyone.select_rows(rows), CONFIDENCE)
        taken = exits_under(everyone, choice.policy)
        exceeded += risk_of(everyone, rule, predicted_at(everyone, taken[None])[0], taken) > rule.risk
        saved += choice.point.saved_layers / draws
    assert exceeded <= 11  # 30 draws with probability 0.2: 11 or fewer with probability 0.99
    assert saved > 0.05


def test_marginal_bound_hides_the_harder_class_and_the_conditional_one_does_not() -> None:
    everyone = POPULATION
    part = everyone.select_rows(np.arange(4000))
    errors = []
    for per in ("all", "class"):
        taken = exits_under(everyone, Risk(0.05, of=LABEL_ERROR, per=per).choose(part, CONFIDENCE).policy)
        errors.append(Loss(everyone, LABEL_ERROR)(predicted_at(everyone, taken[None])[0])[everyone.labels == 1].mean())
    assert errors[0] > 0.08 and errors[1] <= 0.05


def test_per_exit_switches_off_an_exit_that_is_not_reliable() -> None:
    p = population(3000)
    random = np.random.default_rng(2).permutation(p.logits[:, 0])  # the first exit knows nothing about its row
    p = replace(p, logits=np.concatenate([5 * random[:, None], p.logits[:, 1:]], axis=1))
    choice = Risk(0.1, per="exit").choose(p, CONFIDENCE)
    assert choice.met and choice.policy.off == (1,)
    assert 0 == choice.point.histogram[0] < choice.point.histogram[1]


def test_losses_compare_with_full_depth_the_label_and_one_class() -> None:
    p = replace(population(6), labels=np.array([1, 1, 0, 0, 1, 0]), reference=np.array([1, 0, 0, 1, 1, 0]))
    predicted = np.array([0, 0, 0, 0, 1, 1])
    assert Loss(p, DISAGREEMENT)(predicted).tolist() == [1, 0, 0, 1, 0, 1]
    assert Loss(p, LABEL_ERROR)(predicted).tolist() == [1, 0, 0, -1, 0, 1]
    misses = Loss(p, "misses:urgent")
    assert (misses.rows.tolist(), misses(predicted).tolist()) == ([0, 1, 4], [1, 1, 0])


def test_losses_of_regression_are_shares_of_the_labels_range() -> None:
    logits = np.array([[[1.0], [2.0]], [[3.0], [3.0]]], dtype=np.float32)
    p = Predictions(logits, np.ones((2, 2), dtype=np.float32), np.array([2.0, 4.0]), "pearson")
    assert Loss(p, DISAGREEMENT)(p.predicted()[:, 0]).tolist() == [0.5, 0]
    assert Loss(p, LABEL_ERROR)(p.predicted()[:, 0]).tolist() == [0.5, 0]


def test_group_test_is_the_largest_p_value_and_1_for_an_empty_group() -> None:
    p = population(500)
    loss = Loss(p, DISAGREEMENT)
    groups = classes_of(loss)
    single = [GroupTest(loss, 0.1, [rows]).p_value(p.predicted()[:, 1]) for rows in groups]
    assert GroupTest(loss, 0.1, groups).p_value(p.predicted()[:, 1]) == max(single)
    assert GroupTest(loss, 0.1, [np.array([], dtype=int)]).p_value(p.full_depth) == 1


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Risk(0.1, of="misses:angry"), "the model has no class 'angry'; it has calm, urgent"),
        (Risk(0.1, of="something"), "--risk-of something is unknown: choose one of disagreement, label-error, misses:"),
        (Risk(0.1, of="misses:urgent", per="class"), "--per class needs a classification model"),
        (Risk(0.01, of="misses:urgent"), r"full depth itself misses [\d.]+% of the \d+ examples of class 'urgent'"),
        (Risk(0.002, per="class"), r"needs at least 1151 examples of every class, and the calibration data has \d+"),
        (Risk(0.002, of="misses:urgent"), "needs at least 1151 examples of class 'urgent'"),
        (Risk(0.001, of=LABEL_ERROR), r"needs at least \d+ examples, and the calibration data has 2000"),
    ],
)
def test_risk_rejects_what_does_not_fit_the_data(rule: Risk, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule.choose(population(2000), CONFIDENCE)


def test_risk_rejects_an_unknown_group() -> None:
    with pytest.raises(InputError, match="--per row is unknown: choose one of all, class, exit"):
        Risk(0.1, per="row")


@pytest.mark.parametrize("of", [LABEL_ERROR, "misses:urgent"])
def test_risk_of_labels_rejects_data_without_labels(of: str) -> None:
    p = population(2000)
    with pytest.raises(InputError, match=f"--risk-of {of} needs labels, and this data has none"):
        Risk(0.2, of=of).choose(replace(p, labels=p.full_depth, unlabelled=True), CONFIDENCE)
