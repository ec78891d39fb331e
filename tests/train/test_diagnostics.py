"""Diagnostics: AUROC, reliability, ECE, confusion matrix and scores per class, against scikit-learn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hand_made_passes import hand_made, regression
from sklearn import metrics

from berxit.runtime.kinds import KINDS
from berxit.runtime.metrics import confusion_matrix
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.reliability import auroc, certainty_quality, ece, reliability
from berxit.train.diagnostics import class_score, wrong_rows

RNG = np.random.default_rng(0)
CERTAINTY = np.round(RNG.random(500), 2)  # with ties
RIGHT = RNG.random(500) < CERTAINTY


def test_auroc_equals_scikit_learn() -> None:
    assert auroc(CERTAINTY, RIGHT) == pytest.approx(metrics.roc_auc_score(RIGHT, CERTAINTY))


@pytest.mark.parametrize("right", [np.zeros(5, dtype=bool), np.ones(5, dtype=bool)])
def test_auroc_of_one_kind_of_prediction_is_undefined(right: np.ndarray) -> None:
    assert auroc(np.arange(5.0), right) is None


def test_reliability_has_every_example_in_bins_of_rising_certainty() -> None:
    bins = reliability(CERTAINTY, RIGHT)
    assert sum(each.examples for each in bins) == 500 and len(bins) == 10
    assert all(low.certainty <= high.certainty for low, high in pairwise(bins))
    assert np.average([b.accuracy for b in bins], weights=[b.examples for b in bins]) == pytest.approx(RIGHT.mean())


def test_ece_is_small_for_true_probabilities_and_equals_the_shift_of_wrong_ones() -> None:
    certainty = np.linspace(0, 1, 100_001)
    right = RNG.random(len(certainty)) < certainty
    assert ece(reliability(certainty, right)) < 0.01
    sure = np.full(1000, 0.9)
    assert ece(reliability(sure, np.arange(1000) < 600)) == pytest.approx(
        np.mean([abs(0.9 - part.mean()) for part in np.array_split(np.arange(1000) < 600, 10)])
    )


def test_reliability_of_fewer_examples_than_bins_has_one_bin_per_example() -> None:
    assert [each.examples for each in reliability(np.array([0.5, 0.7, 0.6]), np.array([True, False, True]))] == [1] * 3


def test_certainty_quality_of_regression_is_a_rank_correlation() -> None:
    errors = RNG.random(100)
    found = certainty_quality(3, 1 - errors, errors, classes=1, probability=True)
    assert (found.exit_layer, found.auroc, found.ece, found.bins) == (3, None, None, ())
    assert found.rank_correlation == pytest.approx(1)
    assert certainty_quality(3, np.ones(100), errors, classes=1, probability=True).rank_correlation is None


def test_certainty_quality_without_probability_has_no_ece() -> None:
    found = certainty_quality(1, CERTAINTY, (~RIGHT).astype(float), classes=2, probability=False)
    assert found.ece is None and found.bins == () and found.auroc == pytest.approx(auroc(CERTAINTY, RIGHT))


def test_class_scores_equal_scikit_learn_and_are_undefined_without_examples() -> None:
    labels, predicted = RNG.integers(0, 3, 200), RNG.integers(0, 3, 200)
    confusion = confusion_matrix(predicted, labels, 4)
    assert (confusion[:3, :3] == metrics.confusion_matrix(labels, predicted)).all()
    counts = KINDS["classification"].counts(predicted, labels, ("a", "b", "c", "d"))
    found = [class_score(*each) for each in counts]
    expected = metrics.precision_recall_fscore_support(labels, predicted)
    for number, each in enumerate(found[:3]):
        assert (each.precision, each.recall, each.f1, each.examples) == pytest.approx(
            tuple(e[number] for e in expected)
        )
    assert (found[3].name, found[3].precision, found[3].recall, found[3].f1) == ("d", None, None, None)


def test_wrong_rows_have_texts_labels_and_exits_and_the_most_certain_is_first() -> None:
    at_first = ExitPolicy.uniform("confidence", 0.5, 3)  # every confidence of two classes is at least 0.5
    found = wrong_rows(hand_made(), at_first, ["a", "b", "c", "d"])
    shown = [(row.text, row.label, row.prediction, row.exit_layer) for row in found.rows]
    assert (found.count, shown) == (2, [("b", "class 1", "class 0", 1), ("d", "class 0", "class 1", 1)])
    assert [row.certainty for row in found.rows] == pytest.approx([0.6, 0.55])
    assert wrong_rows(hand_made(), ExitPolicy.full_depth(3), ["a", "b", "c", "d"]).count == 0


def test_wrong_rows_of_regression_are_those_with_the_largest_errors() -> None:
    found = wrong_rows(regression(lte=False), ExitPolicy.full_depth(3, regression=True), ["a", "b", "c"])
    assert found.count == 2
    assert {(row.text, row.label, row.exit_layer) for row in found.rows} == {("a", 1.0, 3), ("c", 4.0, 3)}
    errors = [abs(row.label - row.prediction) for row in found.rows]  # type: ignore[operator]
    assert errors == sorted(errors, reverse=True)
    assert errors == pytest.approx([0.1, 0.1], abs=1e-6)
