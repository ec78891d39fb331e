from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from berxit.runtime.kinds import to_bits
from berxit.runtime.metrics import METRICS, average_precision


def drawn(seed: int, kind: str) -> tuple[npt.NDArray, npt.NDArray]:
    """Correlated predictions and labels; with few different integers, they have many ties."""
    rng = np.random.default_rng(seed)
    if kind == "classes":
        labels = rng.integers(0, 2, 40)
        return np.where(rng.random(40) < 0.3, 1 - labels, labels), labels
    labels = rng.normal(size=40)
    predictions = labels + rng.normal(size=40)
    return (np.round(predictions), np.round(2 * labels)) if kind == "ties" else (predictions, labels)


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_and_f1_equal_scikit_learn(seed: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    predictions, labels = drawn(seed, "classes")
    assert METRICS["accuracy"](predictions, labels) == pytest.approx(accuracy_score(labels, predictions))
    assert METRICS["f1"](predictions, labels) == pytest.approx(f1_score(labels, predictions))


@pytest.mark.parametrize("kind", ["values", "ties"])
@pytest.mark.parametrize("seed", range(3))
def test_correlations_equal_scipy(seed: int, kind: str) -> None:
    from scipy import stats

    predictions, labels = drawn(seed, kind)
    assert METRICS["pearson"](predictions, labels) == pytest.approx(stats.pearsonr(predictions, labels).statistic)
    assert METRICS["spearman"](predictions, labels) == pytest.approx(stats.spearmanr(predictions, labels).statistic)


def test_f1_is_that_of_class_one() -> None:
    assert METRICS["f1"](np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])) == 0.5
    assert METRICS["f1"](np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0])) == 0.5
    assert METRICS["f1"](np.array([0, 0]), np.array([0, 0])) == 0


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 1e9 + 0.1])
def test_correlation_of_constant_prediction_is_zero(metric: str, value: float) -> None:
    labels = np.array([0.3, 1.1, 2.7, 5.0, 4.2, 0.9, 2.0])
    constant = np.full(7, value)
    assert METRICS[metric](constant, labels) == pytest.approx(0, abs=1e-9)
    assert METRICS[metric](labels, constant) == pytest.approx(0, abs=1e-9)
    assert METRICS[metric](constant, constant) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-160, 1e-20, 1e150, 1e307])
def test_correlation_does_not_depend_on_the_scale(metric: str, scale: float) -> None:
    labels = np.array([0.0, 1.0, 3.0, 5.0, 4.0, 2.0, 2.0])
    predictions = np.array([1.0, 0.0, 2.0, 7.0, 5.0, 2.0, 3.0])
    expected = METRICS[metric](predictions, labels)
    assert METRICS[metric](predictions, labels * scale) == pytest.approx(expected)
    assert METRICS[metric](predictions * scale, labels) == pytest.approx(expected)
    assert METRICS[metric](predictions * scale, labels * scale) == pytest.approx(expected)


def test_pearson_of_nearly_constant_values_is_a_correlation() -> None:
    labels = np.array([0.0, 0.0, 0.0, 0.0, 1.0])
    for tiny in (1e-300, 1e-15):
        nearly = np.array([1.0, 1.0, 1.0, 1.0, 1.0 + tiny])
        assert METRICS["pearson"](nearly, labels) == pytest.approx(float(nearly[4] > 1))


def test_pearson_is_linear_and_spearman_counts_ranks() -> None:
    predictions, labels = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert METRICS["spearman"](predictions, labels) == pytest.approx(1.0)
    assert METRICS["pearson"](predictions, labels) == pytest.approx(14 / np.sqrt(50 * 5))
    assert METRICS["pearson"](-labels, labels) == pytest.approx(-1.0)


def test_spearman_shares_ranks_between_ties() -> None:
    found = METRICS["spearman"](np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert found == pytest.approx(np.sqrt(3) / 2)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_equals_single_scores(metric: str) -> None:
    rng = np.random.default_rng(3)
    values = METRICS[metric].values
    draw = (lambda *size: rng.integers(0, 9, size) / 2) if values else (lambda *size: rng.integers(0, 2, size))
    predictions, labels = draw(12, 40), draw(40)
    predictions[0] = 0  # A constant prediction.
    one_by_one = [METRICS[metric](row, labels) for row in predictions]
    assert METRICS[metric].scores(predictions, labels) == pytest.approx(one_by_one, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_return_python_float(metric: str) -> None:
    score = METRICS[metric](np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert type(score) is float


def test_docs_list_the_metrics_of_the_registry() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = (docs / "training.md").read_text(encoding="utf-8")
    kinds = {"classification": "classes", "multilabel": "sets of labels", "tokens": "spans", "heads": "heads"}
    kinds["regression"] = "numbers"
    labels = "|".join([*kinds.values(), "two classes"])
    rows = re.findall(rf"^\| `([\w-]+)` \| ({labels}) \| (.+) \|$", page, re.M)
    assert rows == [
        (m.name, "two classes" if m.needs_positive else kinds[m.kind], m.description) for m in METRICS.values()
    ]
    names = ", ".join(f"`{name}`" for name in METRICS)
    assert f"| `model.metric` | string | {names}, or the name of a user's own metric" in (docs / "bundle.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("classes", [2, 5])
def test_macro_f1_equals_scikit_learn_over_the_classes_of_the_labels(classes: int) -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 40)
    predictions = rng.integers(0, classes + 1, (3, 40))  # one class occurs only in predictions
    expected = [f1_score(labels, each, average="macro", labels=np.unique(labels)) for each in predictions]
    assert METRICS["macro-f1"].scores(predictions, labels) == pytest.approx(expected)
    assert METRICS["macro-f1"](labels.astype(float), labels) == 1


def test_multilabel_metrics_equal_sklearn() -> None:
    from sklearn.metrics import average_precision_score, f1_score

    rng = np.random.default_rng(0)
    truth, sets = rng.random((40, 5)) < 0.3, rng.random((3, 40, 5)) < 0.4
    truth[:, 4] = False  # a label that does not occur
    for name, average, columns in (("micro-f1", "micro", 5), ("multilabel-macro-f1", "macro", 4)):
        expected = [f1_score(truth[:, :columns], each[:, :columns], average=average) for each in sets]
        if average == "micro":
            expected = [f1_score(truth, each, average=average) for each in sets]
        assert METRICS[name].scores(to_bits(sets), to_bits(truth)) == pytest.approx(expected)
    scores = np.round(rng.random((40, 5)), 1)  # with equal scores
    expected = average_precision_score(truth[:, :4], scores[:, :4], average="macro")
    assert average_precision(scores, truth) == pytest.approx(expected)
