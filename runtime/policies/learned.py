"""The criterion ``learned``: a logistic model per exit of "this prediction agrees with full depth".

    u_i = 1 / (1 + exp(-z_i)),    z_i = w_i0 + w_i1 x_1 + ... + w_iF x_F, limited to [-30, 30]

Classification, F = 6. p_i is the softmax of exit i, k its predicted class, R_i the sum of exp(logit - largest logit)
over the other classes, at least 1e-9:

    x_1 = p_i(k)
    x_2 = ln(p_i(k) / (1 - p_i(k))) = -ln R_i
    x_3 = number of exits directly before that predict k, at most 3
    x_4, x_5 = p_{i-1}(k), p_{i-2}(k): the probability of k at the two exits before; 0 if there is no such exit
    x_6 = the LTE certainty; 0 without LTE

Regression, F = 5. v_i is the value of exit i, t the tolerance of the policy:

    x_1, x_2 = ln(|v_i - v_{i-1}| / t + 0.1), ln(|v_i - v_{i-2}| / t + 0.1); 0 if there is no such exit
    x_3, x_4 = v_i / t, (v_i / t)^2
    x_5 = ln(c / (1 - c)) of the LTE certainty c, limited to [1e-6, 1 - 1e-6]; 0 without LTE

Two predictions agree if they are the same class, or values that differ by less than t. All numbers are float64. The
certainty is rounded to float32, as those of the other criteria are.

A device predicts single texts. For one row of a classifier, Python's floats take a fifth of the time of numpy's arrays,
so ``_features_of_row`` computes the same features without numpy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.runtime.policies.criteria import Bools, Certainty, Criterion, Floats, Memory, Parameters

CLASSIFICATION = ("probability", "logit of the probability", "streak", "previous exit", "exit before it", "lte")
REGRESSION = ("difference to the previous exit", "difference to the exit before it", "value", "value^2", "logit of lte")
"""Names of the features, in the order of the weights."""
STREAK = 3
REST = 1e-9
LARGEST = 30.0
LTE_EDGE = 1e-6
NEAR = 0.1


def feature_names(outputs: int) -> tuple[str, ...]:
    """Names of the features of a model with C ``outputs``, 1 for regression."""
    return REGRESSION if outputs == 1 else CLASSIFICATION


class Rows(NamedTuple):
    """Memory of B rows of a classifier."""

    prediction: npt.NDArray
    """(B,) predicted class of the last exit."""
    streak: npt.NDArray
    """(B,) number of exits directly before it that predict the same class."""
    probabilities: tuple[npt.NDArray, ...]
    """(B, C) class probabilities of the last exit, and of the exit before it."""

    def keep(self, rows: Bools) -> Rows:
        """State of the rows that continue."""
        return Rows(self.prediction[rows], self.streak[rows], tuple(each[rows] for each in self.probabilities))


class Row(NamedTuple):
    """Memory of one row of a classifier, as ``Rows`` without numpy."""

    prediction: int
    streak: int
    probabilities: tuple[list[float], ...]

    def keep(self, rows: Bools) -> Row:
        """State of the row that continues."""
        return self

    @classmethod
    def of(cls, memory: Memory | None) -> Row | None:
        """The memory of one row in this form."""
        if not isinstance(memory, Rows):
            return memory  # type: ignore[return-value]
        return cls(int(memory.prediction[0]), int(memory.streak[0]), tuple(p[0].tolist() for p in memory.probabilities))


class Values(NamedTuple):
    """Memory of B rows of a regression model."""

    values: tuple[npt.NDArray, ...]
    """(B,) values of the last exit, and of the exit before it."""

    def keep(self, rows: Bools) -> Values:
        """State of the rows that continue."""
        return Values(tuple(each[rows] for each in self.values))


class Learned(Criterion):
    """Probability that the prediction agrees with full depth, in (0, 1), by a logistic model per exit. The equations
    are those of the module ``learned``."""

    name = "learned"
    description = "a logistic model per exit, fitted by berxit-calibrate; a row exits above the threshold"
    for_regression = True
    fitted = True
    schema_version = 2

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, 1.0

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        weights = parameters.weights
        if logits.shape == (1, logits.shape[-1]) and logits.shape[-1] > 1:
            row, state = _features_of_row(logits, lte, Row.of(memory))
            if not weights:  # the last layer
                return np.ones(1, np.float32), state
            score = weights[0]
            for weight, feature in zip(weights[1:], row, strict=True):
                score += weight * feature
            return np.array([1 / (1 + math.exp(-min(max(score, -LARGEST), LARGEST)))], np.float32), state
        found, after = features(logits, lte, memory, parameters.tolerance)
        if not weights:
            return np.ones(len(found), np.float32), after
        return sigmoid(found @ np.array(weights[1:]) + weights[0]).astype(np.float32), after


def sigmoid(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-z)) with z limited to [-30, 30]."""
    return 1 / (1 + np.exp(-np.clip(scores, -LARGEST, LARGEST)))


def features(
    logits: Floats, lte: Floats | None, memory: Memory | None, tolerance: float
) -> tuple[npt.NDArray[np.float64], Memory]:
    """(B, F) features of one exit, and the memory for the next exit. Arguments as ``Criterion.certainty``."""
    if logits.shape[-1] == 1:
        assert memory is None or isinstance(memory, Values)
        return _features_of_values(logits[:, 0].astype(np.float64), lte, memory, tolerance)
    assert memory is None or isinstance(memory, Rows)
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    prediction = logits.argmax(axis=-1)
    places = np.arange(len(logits)), prediction
    powers[places] = 0.0
    rest = powers.sum(axis=-1)  # without the largest power, 1, so that a small sum does not lose its digits
    powers[places] = 1.0
    probabilities = powers / (1 + rest)[:, None]
    before = memory.probabilities if memory else ()
    streak = np.where(prediction == memory.prediction, memory.streak + 1, 0) if memory else np.zeros_like(prediction)
    found = np.zeros((len(logits), len(CLASSIFICATION)))
    found[:, 0] = 1 / (1 + rest)
    found[:, 1] = -np.log(np.maximum(rest, REST))
    found[:, 2] = np.minimum(streak, STREAK)
    for place, earlier in enumerate(before):
        found[:, 3 + place] = earlier[places]
    if lte is not None:
        found[:, 5] = lte
    return found, Rows(prediction, streak, (probabilities, *before[:1]))


def _features_of_row(logits: Floats, lte: Floats | None, memory: Row | None) -> tuple[list[float], Row]:
    """``features`` of one row of a classifier: logits (1, C), lte (1,) or None -> F numbers."""
    row = logits[0].tolist()
    largest = max(row)
    prediction = row.index(largest)
    powers = [math.exp(each - largest) for each in row]
    powers[prediction] = 0.0
    rest = sum(powers)
    powers[prediction] = 1.0
    total = 1 + rest
    before = () if memory is None else memory.probabilities
    streak = 0 if memory is None or memory.prediction != prediction else memory.streak + 1
    found = [
        1 / total,
        -math.log(max(rest, REST)),
        float(min(streak, STREAK)),
        before[0][prediction] if before else 0.0,
        before[1][prediction] if len(before) > 1 else 0.0,
        0.0 if lte is None else lte.item(),
    ]
    return found, Row(prediction, streak, ([power / total for power in powers], *before[:1]))


def _features_of_values(
    values: npt.NDArray[np.float64], lte: Floats | None, memory: Values | None, tolerance: float
) -> tuple[npt.NDArray[np.float64], Values]:
    before = memory.values if memory else ()
    found = np.zeros((len(values), len(REGRESSION)))
    for place, earlier in enumerate(before):
        found[:, place] = np.log(np.abs(values - earlier) / tolerance + NEAR)
    found[:, 2] = values / tolerance
    found[:, 3] = found[:, 2] ** 2
    if lte is not None:
        certainty = np.clip(lte.astype(np.float64), LTE_EDGE, 1 - LTE_EDGE)
        found[:, 4] = np.log(certainty / (1 - certainty))
    return found, Values((values, *before[:1]))
