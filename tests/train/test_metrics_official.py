"""The official metrics, compared with results computed by hand and with the runtime's metrics."""

from __future__ import annotations

import numpy as np
import pytest

from berxit.runtime.metrics import METRICS
from berxit.train.metrics import OFFICIAL_METRICS, scores


def test_accuracy_is_the_share_of_correct_predictions() -> None:
    assert OFFICIAL_METRICS["accuracy"](np.array([1, 0, 2, 2]), np.array([1, 1, 2, 0])) == 0.5


def test_f1_is_of_class_one_with_predictions_first() -> None:
    predictions, labels = np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0])
    assert OFFICIAL_METRICS["f1"](predictions, labels) == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))


def test_f1_without_a_positive_is_zero() -> None:
    assert OFFICIAL_METRICS["f1"](np.array([0, 0]), np.array([0, 0])) == 0.0


def test_pearson_is_linear_and_spearman_counts_ranks() -> None:
    predictions, labels = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert OFFICIAL_METRICS["spearman"](predictions, labels) == pytest.approx(1.0)
    assert OFFICIAL_METRICS["pearson"](predictions, labels) == pytest.approx(14 / np.sqrt(50 * 5))
    assert OFFICIAL_METRICS["pearson"](-labels, labels) == pytest.approx(-1.0)


def test_spearman_shares_ranks_between_ties() -> None:
    found = OFFICIAL_METRICS["spearman"](np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert found == pytest.approx(np.sqrt(3) / 2)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlation_of_a_constant_prediction_is_zero(name: str) -> None:
    assert OFFICIAL_METRICS[name](np.array([2.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0])) == 0.0
    assert OFFICIAL_METRICS[name](np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])) == 0.0


@pytest.mark.parametrize("name", OFFICIAL_METRICS)
def test_metrics_equal_those_of_the_runtime(name: str) -> None:
    rng = np.random.default_rng(0)
    assert set(METRICS) == set(OFFICIAL_METRICS)
    for _ in range(20):
        labels = rng.integers(0, 2, 30)
        predictions = rng.integers(0, 2, 30)
        if name in ("pearson", "spearman"):
            labels, predictions = labels + rng.integers(0, 3, 30) / 2, rng.normal(size=30).round(1)
        assert METRICS[name](predictions, labels) == pytest.approx(
            OFFICIAL_METRICS[name](predictions, labels), abs=1e-12
        )


@pytest.mark.parametrize("metric", OFFICIAL_METRICS)
def test_scores_equals_single_scores(metric: str) -> None:
    rng = np.random.default_rng(3)
    classes = metric in ("accuracy", "f1")
    draw = (lambda *size: rng.integers(0, 2, size)) if classes else (lambda *size: rng.integers(0, 9, size) / 2)
    predictions, labels = draw(12, 40), draw(40)
    predictions[0] = 0  # A constant prediction.
    one_by_one = [OFFICIAL_METRICS[metric](row, labels) for row in predictions]
    assert scores(metric, predictions, labels) == pytest.approx(one_by_one, abs=1e-12)
    nothing = np.zeros_like(labels)
    assert scores(metric, predictions[:1], nothing)[0] == OFFICIAL_METRICS[metric](predictions[0], nothing)
