"""The criterion ``learned``: a logistic model per exit of the agreement with full depth.

    u_i = 1 / (1 + exp(-z_i)),    z_i = w_i0 + w_i1 x_1 + ... + w_iF x_F, limited to [-30, 30]

Classification, F = 6. p_i is the softmax of exit i, k its predicted class, R_i the sum of exp(logit - largest logit)
over the other classes:

    x_1 = p_i(k) = 1 / (1 + R_i)
    x_2 = ln(p_i(k) / (1 - p_i(k))) = -ln max(R_i, 1e-9)
    x_3 = number of exits directly before that predict k, at most 3
    x_4, x_5 = p_{i-1}(k), p_{i-2}(k): the probability of k at the two exits before; 0 if there is no such exit
    x_6 = the LTE certainty; 0 without LTE

Regression, F = 5. v_i is the value of exit i, t the tolerance of the policy, which is the range of the labels:

    x_1, x_2 = ln(|v_i - v_{i-1}| / t + 0.01), ln(|v_i - v_{i-2}| / t + 0.01); 0 if there is no such exit
    x_3, x_4 = v_i / t, (v_i / t)^2
    x_5 = ln(c / (1 - c)) of the LTE certainty c, limited to [1e-6, 1 - 1e-6]; 0 without LTE

u_i estimates the probability that exit i predicts the class of full depth; for regression, the expected closeness to
the value v_n of full depth, 1 - |v_i - v_n| / t. All numbers are float64. The certainty is rounded to float32, as those
of the other criteria are.

A device predicts single texts. For one row, Python's floats take a tenth of the time of numpy's arrays, so the
functions ``_of_row`` and ``_of_value`` compute the same certainty without numpy.
"""

from __future__ import annotations

from math import exp, log
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
NEAR = 0.01
MANY_CLASSES = 16
"""With more classes, numpy computes the exponentials of one row faster than Python."""
FLOAT32 = np.dtype(np.float32)


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


class Values(NamedTuple):
    """Memory of B rows of a regression model."""

    values: tuple[npt.NDArray, ...]
    """(B,) values of the last exit, and of the exit before it."""

    def keep(self, rows: Bools) -> Values:
        """State of the rows that continue."""
        return Values(tuple(each[rows] for each in self.values))


class Single(tuple):
    """Memory of one row without numpy: prediction, streak, and two pairs (exponentials, their sum) of the last exit and
    of the exit before it; of a regression model, at most two values. A tuple, because its creation takes time at every
    exit."""

    __slots__ = ()

    def keep(self, rows: Bools) -> Single:
        """State of the row that continues."""
        return self

    @classmethod
    def of(cls, memory: Memory | None) -> Single | None:
        """The memory of one row in this form."""
        if isinstance(memory, Values):
            return cls(value.item() for value in memory.values)
        if not isinstance(memory, Rows):
            return memory  # type: ignore[return-value]
        pairs = [(probabilities[0].tolist(), 1.0) for probabilities in memory.probabilities]
        return cls((memory.prediction.item(), memory.streak.item(), pairs[0], pairs[1] if len(pairs) > 1 else None))


class Learned(Criterion):
    """Expected agreement with full depth, in (0, 1), by a logistic model per exit. The docstring of this module has the
    equations."""

    name = "learned"
    description = "a logistic model per exit, fitted by berxit-calibrate; a row exits above the threshold"
    for_regression = True
    fitted = True
    schema_version = 2

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, 1.0

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        if logits.shape[0] == 1 and logits.ndim == 2:
            single = memory if type(memory) is Single else Single.of(memory)
            certainty = None if lte is None else lte.item()
            if logits.shape[1] == 1:
                return _of_value(logits.item(), certainty, single, parameters)
            return _of_row(logits, certainty, single, parameters.weights)
        found, after = features(logits, lte, memory, parameters.tolerance)
        weights = parameters.weights
        if not weights:  # the last layer
            return np.ones(len(found), FLOAT32), after
        return sigmoid(found @ np.array(weights[1:]) + weights[0]).astype(FLOAT32), after


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
    return found, Rows(prediction, streak, (powers / (1 + rest)[:, None], *before[:1]))


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


def _of_row(logits: Floats, lte: float | None, memory: Single | None, weights: tuple[float, ...]) -> Certainty:
    """Certainty of one row of a classifier: logits (1, C) -> (1,)."""
    powers: list[float] | npt.NDArray[np.float64]
    if logits.shape[1] <= MANY_CLASSES:
        (row,) = logits.tolist()
        largest = max(row)
        prediction = row.index(largest)
        powers = [exp(each - largest) for each in row]
        powers[prediction] = 0.0
        rest = sum(powers)
    else:
        values = logits[0].astype(np.float64)
        prediction = int(values.argmax())
        powers = np.exp(values - values[prediction])
        powers[prediction] = 0.0
        rest = float(np.add.reduce(powers))
    powers[prediction] = 1.0
    total = 1.0 + rest
    streak, previous, earlier, last = 0, 0.0, 0.0, None
    if memory is not None:
        before, streak, last, second = memory
        streak = streak + 1 if before == prediction else 0
        previous = last[0][prediction] / last[1]
        if second is not None:
            earlier = second[0][prediction] / second[1]
    state = Single((prediction, streak, (powers, total), last))
    if not weights:  # the last layer
        return np.ones(1, FLOAT32), state
    w0, w1, w2, w3, w4, w5, w6 = weights
    score = w0 + w1 / total - w2 * log(max(rest, REST)) + w3 * min(streak, STREAK) + w4 * previous + w5 * earlier
    if lte is not None:
        score += w6 * lte
    return _sigmoid_of(score), state


def _of_value(value: float, lte: float | None, memory: Single | None, parameters: Parameters) -> Certainty:
    """Certainty of one row of a regression model, (1,)."""
    state = Single((value,)) if memory is None else Single((value, memory[0]))
    if not parameters.weights:  # the last layer
        return np.ones(1, FLOAT32), state
    w0, w1, w2, w3, w4, w5 = parameters.weights
    tolerance = parameters.tolerance
    size = value / tolerance
    score = w0 + w3 * size + w4 * size * size
    if memory is not None:
        score += w1 * log(abs(value - memory[0]) / tolerance + NEAR)
        if len(memory) > 1:
            score += w2 * log(abs(value - memory[1]) / tolerance + NEAR)
    if lte is not None:
        certainty = min(max(lte, LTE_EDGE), 1 - LTE_EDGE)
        score += w5 * log(certainty / (1 - certainty))
    return _sigmoid_of(score), state


def _sigmoid_of(score: float) -> npt.NDArray[np.float32]:
    """(1,) ``sigmoid`` of one number."""
    return np.array([1 / (1 + exp(-min(max(score, -LARGEST), LARGEST)))], FLOAT32)
