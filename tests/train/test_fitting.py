"""Fitted parameters of policies: logistic regression, temperatures, thresholds per exit, weights of ``learned``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from berxit.runtime.policies import CRITERIA, ExitPolicy, softmax
from berxit.train.evaluation import Predictions
from berxit.train.fitting import ExitLinks, agreement, fit_temperatures, fit_weights, logistic


def test_logistic_recovers_the_weights_of_a_large_sample() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50_000, 2)) * [3.0, 0.2] + [1.0, -2.0]
    y = rng.uniform(size=50_000) < 1 / (1 + np.exp(-(0.5 + 0.7 * x[:, 0] - 2.0 * x[:, 1])))
    np.testing.assert_allclose(logistic(x, y.astype(float)), [0.5, 0.7, -2.0], atol=0.25)


def test_logistic_has_no_gradient_left() -> None:
    """Newton's method ends at the minimum of the penalized negative log-likelihood of Platt's targets."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 3))
    y = x[:, 0] + rng.normal(size=80) > 0.5
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    found = logistic(x, y.astype(float), l2=0.7)
    slopes = found[1:] * x.std(axis=0)
    intercept = found[0] + found[1:] @ x.mean(axis=0)
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    error = 1 / (1 + np.exp(-(intercept + scaled @ slopes))) - target
    np.testing.assert_allclose(scaled.T @ error + 0.7 * slopes, 0, atol=1e-6)
    assert error.sum() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("y", [np.ones(100, bool), np.zeros(100, bool), np.arange(100) >= 50])
def test_logistic_is_finite_for_one_class_and_for_separable_rows(y: npt.NDArray[np.bool_]) -> None:
    x = np.column_stack([np.arange(100.0), np.full(100, 3.0), 1e6 * np.arange(100.0)])
    found = logistic(x, y.astype(float))
    assert np.isfinite(found).all()
    assert found[2] == 0  # a constant feature
    p = 1 / (1 + np.exp(-(found[0] + x @ found[1:])))
    assert np.abs(p - y).max() < 0.5


def overconfident(rows: int = 4000) -> Predictions:
    """Exit 1 has the right probabilities of full depth's class in its logits times 3, exit 2 in its logits / 2."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(rows, 3)).astype(np.float32) * 2
    drawn = (rng.uniform(size=(rows, 1)) < softmax(logits).cumsum(axis=1)).argmax(axis=1)
    last = np.eye(3, dtype=np.float32)[drawn]
    return Predictions(np.stack([3 * logits, logits / 2, last], axis=1), None, drawn, "accuracy")


def test_fit_temperatures_finds_the_scale_of_the_logits() -> None:
    np.testing.assert_allclose(fit_temperatures(overconfident()), [3.0, 0.5, 1.0], rtol=0.06)


def test_fit_temperatures_is_limited_if_full_depth_is_always_predicted() -> None:
    logits = np.tile(np.array([[2.0, 0.0]], np.float32), (60, 2, 1))
    assert fit_temperatures(Predictions(logits, None, np.zeros(60, int), "accuracy"))[0] < 0.1
    logits[:, 0] = logits[:, 0, ::-1]
    assert fit_temperatures(Predictions(logits, None, np.zeros(60, int), "accuracy"))[0] == pytest.approx(20)


@pytest.mark.parametrize("name", ["confidence", "entropy", "agreement"])
def test_thresholds_of_links_divide_the_rows_as_the_probability_does(name: str) -> None:
    criterion, rng = CRITERIA[name], np.random.default_rng(3)
    certainty = rng.uniform(0.02, 0.68, (500, 4))
    side = 1 if criterion.higher_is_more_certain else -1
    agree = rng.uniform(size=(500, 4)) < 1 / (1 + np.exp(-side * 20 * (certainty - 0.4)))
    links = ExitLinks.fit(criterion, 2, certainty, agree.astype(float))
    probabilities = links.probabilities(certainty)
    for wanted in (0.3, 0.6, 0.9):
        for place, threshold in enumerate(links.thresholds(wanted)):
            expected = probabilities[:, place] > wanted
            assert 0 < expected.sum() < 500
            np.testing.assert_array_equal(criterion.exits(certainty[:, place], threshold), expected)
    never, always = (way(4, 2) for way in (criterion.never, criterion.always))
    assert links.thresholds(1.0) == (never,) * 3
    assert links.thresholds(0.0) == (always,) * 3


def test_links_of_a_certainty_without_information_are_constant() -> None:
    certainty = np.tile(np.linspace(0.1, 0.9, 100), (2, 1)).T
    links = ExitLinks.fit(CRITERIA["confidence"], 2, certainty, np.tile(certainty[:, :1] < 0.7, (1, 2)).astype(float))
    assert len(set(links.probabilities(certainty)[:, 0])) == 1
    assert links.thresholds(0.5) == (0.0,)
    assert links.thresholds(0.9) == (1.0,)


def test_fit_weights_ignores_exits_that_are_switched_off() -> None:
    """The streak of exit 3 counts exit 1 only if exit 2 is off."""
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(200, 4, 2)).astype(np.float32)
    weights = ((0.0,) * 7,) * 3
    policy = ExitPolicy("learned", (0.5,) * 3, (1.0,) * 4, off=(2,), weights=weights)
    found = fit_weights(Predictions(logits, None, logits[:, -1].argmax(axis=1), "accuracy"), policy)
    shorter = logits[:, [0, 2, 3]]
    fewer = ExitPolicy("learned", (0.5,) * 2, (1.0,) * 3, weights=weights[:2])
    expected = fit_weights(Predictions(shorter, None, shorter[:, -1].argmax(axis=1), "accuracy"), fewer)
    np.testing.assert_allclose(np.array([found[0], found[2]]), np.array(expected), rtol=1e-9)


def test_agreement_of_regression_is_the_closeness_as_a_share_of_the_labels_range() -> None:
    values = np.array([[1.0, 2.0], [9.0, 3.0], [4.0, 4.0]], np.float32)[..., None]
    predictions = Predictions(values, None, np.array([1.0, 5.0, 2.0]), "spearman")
    assert agreement(predictions).tolist() == [[0.75, 1], [0, 1], [1, 1]]


def test_fit_weights_of_regression_reads_the_lte_if_there_is_one() -> None:
    rng = np.random.default_rng(5)
    labels = rng.uniform(0, 5, 300)
    size = rng.uniform(0.1, 2, (300, 3))
    values = (labels[:, None] + size * rng.normal(size=(300, 3))).astype(np.float32)[..., None]
    policy = ExitPolicy("learned", (0.5,) * 2, (1.0,) * 3, tolerance=5.0, weights=((0.0,) * 6,) * 2)
    lte = np.exp(-size).astype(np.float32)
    with_lte = np.array(fit_weights(Predictions(values, lte, labels, "spearman"), policy))
    without = np.array(fit_weights(Predictions(values, None, labels, "spearman"), policy))
    assert (with_lte[:, 1:5] == 0).all()
    assert (with_lte[:, 5] > 0).all()
    assert without[1, 1] < 0  # exit 2 agrees with full depth if it agrees with exit 1
    assert (without[:, 5] == 0).all()
