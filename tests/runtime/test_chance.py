"""Undefined scores, the score of the best constant prediction, and scores at chance level."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from berxit.runtime.chance import Constant, at_chance, check_labels, check_outputs, constant_prediction
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.metrics import METRICS


@pytest.mark.parametrize(
    ("metric", "labels", "classes", "expected"),
    [
        ("accuracy", [0, 1, 1, 2], 3, Constant(1, 0.5)),
        ("accuracy", [0, 0, 1, 1], 2, Constant(0, 0.5)),
        ("f1", [0, 0, 0, 1], 2, Constant(1, 2 / 5)),  # the majority class would score 0
        ("f1", [1, 1, 0], 2, Constant(1, 0.8)),
        ("spearman", [1.0, 2.0, 6.0], 1, Constant(3.0, 0.0)),
        ("pearson", [-1.0, 1.0, 3.0], 1, Constant(1.0, 0.0)),
    ],
)
def test_constant_prediction_has_best_score_of_constants(
    metric: str, labels: list[float], classes: int, expected: Constant
) -> None:
    found = constant_prediction(metric, np.array(labels), classes)
    assert (found.prediction, found.score) == (expected.prediction, pytest.approx(expected.score))


IN_FLOAT32 = "and are equal in float32, in which models compute"


@pytest.mark.parametrize(
    ("metric", "labels", "reason"),
    [
        ("accuracy", [1, 1, 1], "all labels are of one class"),
        ("f1", [0, 0], "all labels are of one class"),
        ("accuracy", [1], "1 row, at least 2 are needed"),
        ("accuracy", [], "0 rows, at least 2 are needed"),
        ("spearman", [1.0, 2.0], "2 rows, at least 3 are needed"),
        ("spearman", [2.5, 2.5, 2.5], "every label is 2.5"),
        ("pearson", [0.1, 0.1 + 1e-17, 0.1], "every label is 0.1"),
        ("pearson", [1e-300, 3e-300, 2e-300], f"labels differ by at most 2e-300 {IN_FLOAT32}"),
        ("spearman", [1.0, 1 + 1e-9, 1 + 2e-9], f"labels differ by at most 2e-09 {IN_FLOAT32}"),
        ("pearson", [1.0, float("nan"), 3.0], "a label is not a finite number"),
        ("spearman", [1.0, float("inf"), 3.0], "a label is not a finite number"),
    ],
)
def test_check_labels_rejects_labels_without_a_score(metric: str, labels: list[float], reason: str) -> None:
    dtype = np.float64 if metric in ("pearson", "spearman") else np.int64
    with pytest.raises(InputError, match=rf"^dev.tsv: {metric} cannot be measured: {reason}\. Give data"):
        check_labels(metric, np.array(labels, dtype=dtype), "dev.tsv")


@pytest.mark.parametrize(
    ("metric", "labels"), [("accuracy", [0, 1]), ("f1", [0, 1]), ("accuracy", [0, 2, 2]), ("spearman", [1.0, 1.0, 2.0])]
)
def test_check_labels_accepts_labels_that_differ(metric: str, labels: list[float]) -> None:
    check_labels(metric, np.array(labels), "dev.tsv")


def test_check_outputs_names_layer_with_nan() -> None:
    logits = np.ones((4, 3, 2), np.float32)
    check_outputs("accuracy", logits, (1, 2, 3), "dev.tsv")
    logits[1:3, 1, 0] = np.nan, np.inf
    with pytest.raises(BerxitError, match=r"dev.tsv: accuracy cannot .* layer 4 outputs NaN or infinity for 2 of 4"):
        check_outputs("accuracy", logits, (2, 4, 6), "dev.tsv")


def test_check_outputs_rejects_constant_only_for_correlation_at_full_depth() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 2, 1)).astype(np.float32)
    logits[:, 0] = 3.0
    check_outputs("spearman", logits, (1, 2), "dev.tsv")
    logits[:, 1] = 0.5
    logits[2, 1] = np.nextafter(np.float32(0.5), np.float32(1))  # differences below rounding errors are no order
    with pytest.raises(BerxitError, match=r"full depth predicts 0\.5 for every row, and a correlation"):
        check_outputs("spearman", logits, (1, 2), "dev.tsv")
    check_outputs("accuracy", np.zeros((5, 2, 2)), (1, 2), "dev.tsv")


def test_check_outputs_accepts_small_differences_of_large_values() -> None:
    values = np.linspace(1e5, 1e5 + 2, 50, dtype=np.float32).reshape(50, 1, 1)
    check_outputs("spearman", values, (1,), "dev.tsv")


def binary(right: int, wrong: int, positives: float, rows: int) -> tuple[npt.NDArray, npt.NDArray]:
    """Predictions and labels of ``rows`` rows; a share of ``right / (right + wrong)`` of the predictions is correct."""
    labels = (np.arange(rows) < positives * rows).astype(int)
    agree = np.random.default_rng(0).permutation(rows) < right / (right + wrong) * rows
    return np.where(agree, labels, 1 - labels), labels


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
@pytest.mark.parametrize("rows", [12, 408, 40_000])
def test_at_chance_is_true_for_constant_predictions(metric: str, rows: int) -> None:
    _, labels = binary(1, 1, 0.68, rows)
    for constant in (0, 1):
        assert at_chance(metric, np.full(rows, constant), labels, 2)


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_at_chance_is_false_for_trained_model(metric: str) -> None:
    predictions, labels = binary(86, 14, 0.68, 408)  # size of MRPC's dev set
    assert not at_chance(metric, predictions, labels, 2)
    assert at_chance(metric, *binary(69, 31, 0.68, 408), 2)


def test_at_chance_depends_on_number_of_rows() -> None:
    assert at_chance("accuracy", *binary(56, 44, 0.5, 60), 2)
    assert not at_chance("accuracy", *binary(56, 44, 0.5, 6_000), 2)


def test_at_chance_is_rarely_false_for_random_predictions() -> None:
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 3, 120)
        found.append(at_chance("accuracy", rng.integers(0, 3, 120), labels, 3))
    assert np.mean(found) > 0.9


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_at_chance_of_correlations(metric: str) -> None:
    rng = np.random.default_rng(1)
    labels = rng.normal(size=100)
    assert at_chance(metric, rng.normal(size=100), labels, 1)
    assert at_chance(metric, -labels, labels, 1)
    assert at_chance(metric, np.full(100, 2.0), labels, 1)
    assert not at_chance(metric, labels + rng.normal(size=100), labels, 1)
    assert not at_chance(metric, labels, labels, 1)
    assert at_chance(metric, labels[:3], labels[:3], 1)  # three rows in order prove nothing


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.filterwarnings("error")
def test_at_chance_accepts_perfect_correlations_of_both_signs(metric: str) -> None:
    labels = np.arange(20.0)
    assert not at_chance(metric, labels, labels, 1)
    assert at_chance(metric, -labels, labels, 1)


def test_at_chance_resamples_the_rows_for_any_metric_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "again", dataclasses.replace(METRICS["accuracy"], name="again"))
    for rows in (60, 600):
        predictions, labels = binary(56, 44, 0.5, rows)
        expected = at_chance("accuracy", predictions, labels, 2)
        assert at_chance("again", predictions, labels, 2) == expected
