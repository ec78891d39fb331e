"""The test behind --keep: its error rate on synthetic populations, its sums, and its agreement with the metrics."""

from __future__ import annotations

import numpy as np
import pytest

from berxit.runtime.metrics import METRICS
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec, predicted_under
from berxit.train.guarantee import SUMS, KeepTest, interval, least_rows
from berxit.train.rules import Keep

LAYERS = 4


def population(rows: int, metric: str, seed: int = 0) -> Predictions:
    """A model whose early exits are worse, and more so where they are less certain."""
    rng = np.random.default_rng(seed)
    hardness = rng.uniform(size=rows)[:, None] * np.linspace(1, 0.25, LAYERS)
    if metric in ("pearson", "spearman"):
        labels = rng.uniform(0, 5, rows)
        values = labels[:, None] + rng.normal(size=(rows, LAYERS)) * (0.3 + 1.5 * hardness)
        return Predictions(values.astype(np.float32)[..., None], (1 - hardness).astype(np.float32), labels, metric)
    labels = rng.integers(0, 2, rows)
    right = rng.uniform(size=(rows, LAYERS)) > 0.4 * hardness
    sure = 0.5 + 0.49 * (1 - hardness)
    logits = np.zeros((rows, LAYERS, 2), np.float32)
    logits[..., 1] = np.log(sure / (1 - sure)) * np.where(right, 1, -1) * np.where(labels == 1, 1, -1)[:, None]
    return Predictions(logits, None, labels, metric, names=("no", "yes"))


@pytest.mark.parametrize(
    ("metric", "criterion"),
    [
        pytest.param("accuracy", "confidence", marks=pytest.mark.slow),
        ("f1", "confidence"),
        pytest.param("pearson", "lte", marks=pytest.mark.slow),
    ],
)
def test_keep_holds_on_new_rows(metric: str, criterion: str) -> None:
    """Of 60 calibrations with 400 rows, at most delta (plus sampling error) keep less than promised."""
    everyone = population(20_000, metric)
    full, rng, kept, saved = everyone.full_depth_score, np.random.default_rng(1), [], []
    for _ in range(60):
        part = everyone.select_rows(rng.choice(20_000, 400, replace=False))
        choice = Keep(0.98).choose(part, PolicySpec(criterion))
        kept.append(everyone.score(predicted_under(everyone, choice.policy)) >= 0.98 * full)
        saved.append(choice.point.saved_layers)
    assert np.mean(kept) >= 0.9 - 2 * np.sqrt(0.09 / 60)
    assert np.mean(saved) > 0.02  # a rule that never exits early would hold, too


def test_optimistic_keep_does_not_hold_on_new_rows() -> None:
    everyone, rng, kept = population(20_000, "accuracy"), np.random.default_rng(1), []
    for _ in range(60):
        part = everyone.select_rows(rng.choice(20_000, 400, replace=False))
        choice = Keep(0.98, optimistic=True).choose(part, PolicySpec("confidence"))
        kept.append(everyone.score(predicted_under(everyone, choice.policy)) >= 0.98 * everyone.full_depth_score)
    assert np.mean(kept) < 0.8


@pytest.mark.parametrize("metric", sorted(SUMS))
def test_sums_give_the_metric(metric: str) -> None:
    predictions = population(200, metric)
    predicted = predictions.predicted()[:, 0]
    sums, score = SUMS[metric]
    found = float(score(sums(predicted, predictions.labels).sum(axis=0)))
    assert found == pytest.approx(METRICS[metric](predicted, predictions.labels), abs=1e-9)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_sums_of_correlations_do_not_depend_on_the_scale(scale: float) -> None:
    predictions = population(200, "pearson")
    predicted, labels = predictions.predicted()[:, 0].astype(np.float64), predictions.labels
    sums, score = SUMS["pearson"]
    found = float(score(sums(predicted * scale, labels * scale).sum(axis=0)))
    assert found == pytest.approx(METRICS["pearson"](predicted, labels), abs=1e-9)
    assert float(score(sums(np.full(200, 0.1 * scale), labels * scale).sum(axis=0))) == 0


def test_p_value_rises_with_the_share_to_keep() -> None:
    predictions = population(300, "accuracy")
    early = predictions.predicted()[:, 0]
    values = [KeepTest(predictions, keep).p_value(early) for keep in (0.5, 0.9, 0.95, 1.0)]
    assert values == sorted(values)
    assert values[0] < 0.01
    assert values[-1] > 0.9


def test_p_value_of_a_metric_without_sums_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = population(300, "accuracy")
    early = predictions.predicted()[:, 1]
    by_sums = KeepTest(predictions, 0.93).p_value(early)
    monkeypatch.delitem(SUMS, "accuracy")
    assert KeepTest(predictions, 0.93).p_value(early) == pytest.approx(by_sums, abs=0.1)


def test_least_rows_is_where_a_policy_that_never_differs_passes() -> None:
    least = least_rows(0.9, 0.99, 0.1)

    def passes(rows: int) -> bool:
        labels = np.arange(rows) % 2
        right = np.arange(rows) < round(0.9 * rows)
        logits = np.zeros((rows, 2, 2), np.float32)
        logits[..., 1] = np.where(labels == right, 4, -4)[:, None]
        predictions = Predictions(logits, None, labels, "accuracy", names=("a", "b"))
        return KeepTest(predictions, 0.99).p_value(predictions.full_depth) <= 0.1

    assert passes(least + 10)
    assert not passes(least // 2)


def test_interval_contains_the_score() -> None:
    predictions = population(300, "accuracy")
    low, high = interval(predictions, predictions.full_depth)
    assert low < predictions.full_depth_score < high
