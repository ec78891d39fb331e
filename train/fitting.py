"""Fitted parameters of exit policies: temperatures, thresholds per exit, and the weights of the criterion ``learned``.

All of them are fitted against the agreement with full depth, so they need no labels. Every fit is deterministic and
convex.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.policies import Criterion, ExitPolicy, Memory
from berxit.runtime.policies.learned import features, sigmoid
from berxit.train.evaluation import Predictions

Floats = npt.NDArray[np.float64]

L2 = 0.2
"""Penalty of a squared weight of a standardized feature, in units of the log-likelihood of one row."""
ITERATIONS = 100
CONVERGED = 1e-9
"""Largest change of a standardized weight in the last step."""
TEMPERATURES = (0.05, 20.0)
"""Range of fitted temperatures."""
EDGE = 1e-9
"""Smallest distance of a certainty from an end of its range, as a share of the range."""


def agreement(predictions: Predictions) -> Floats:
    """(N, n) agreement of each exit with full depth: 1 for the same class, else 0; for regression
    1 - |difference| / range of the labels, at least 0."""
    p, full = predictions, predictions.full_depth[:, None]
    if not p.regression:
        return (p.predicted() == full).astype(np.float64)
    return np.maximum(1 - np.abs(p.predicted() - full).astype(np.float64) / np.ptp(p.labels), 0)


def logistic(x: Floats, y: Floats, l2: float = L2) -> Floats:
    """Weights (F + 1,) of E(y) = sigmoid(w_0 + x w), the intercept first: x (N, F), y (N,) from 0 to 1.

    Newton's method with step halving on the penalized log-likelihood. Features are standardized for the penalty. The
    targets 1 and 0 become (N_1 + 1) / (N_1 + 2) and 1 / (N_0 + 2), where N_1 is the sum of y and N_0 = N - N_1 (Platt,
    1999, "Probabilistic Outputs for Support Vector Machines"), so that weights stay finite if all rows agree.
    """
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-9] = 1.0
    z = np.column_stack([np.ones(len(x)), (x - mean) / scale])
    ones = float(y.sum())
    low, high = 1 / (len(y) - ones + 2), (ones + 1) / (ones + 2)
    target = low + (high - low) * y
    penalty = np.array([0.0] + [l2] * x.shape[1])

    def loss(weights: Floats) -> float:
        score = z @ weights
        return float((np.logaddexp(0, score) - target * score).sum() + penalty @ weights**2 / 2)

    weights = np.zeros(z.shape[1])
    now = loss(weights)
    for _ in range(ITERATIONS):
        p = sigmoid(z @ weights)
        gradient = z.T @ (p - target) + penalty * weights
        hessian = (z * (p * (1 - p))[:, None]).T @ z + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        while (after := loss(weights - step)) > now and np.abs(step).max() > CONVERGED:
            step = step / 2
        weights, now = weights - step, min(now, after)
        if np.abs(step).max() <= CONVERGED:
            break
    slopes = weights[1:] / scale
    return np.concatenate([[weights[0] - slopes @ mean], slopes])


def fit_weights(predictions: Predictions, policy: ExitPolicy) -> tuple[tuple[float, ...], ...]:
    """Weights of the criterion ``learned`` for exits 1 to n - 1 of a pass; ``policy`` is for the exits of the pass.

    For regression with LTE, only the LTE has a weight: with the differences of values, inputs close to the mean exit
    first, and the correlation with the labels falls (results/thresholds.md).
    """
    agree, found = agreement(predictions), []
    memory: Memory | None = None
    for place in range(predictions.layers - 1):
        logits = policy.scaled(place + 1, predictions.logits[:, place])
        lte = None if predictions.lte is None else predictions.lte[:, place]
        x, after = features(logits, lte, memory, policy.tolerance)
        memory = memory if place + 1 in policy.off else after
        if predictions.regression and lte is not None:
            x[:, :-1] = 0.0
        found.append(tuple(logistic(x, agree[:, place]).tolist()))
    return tuple(found)


def fit_temperatures(predictions: Predictions) -> tuple[float, ...]:
    """(n,) temperature of each exit; 1 for the last exit.

    The temperature minimizes the negative log-likelihood of the class that full depth predicts (Guo et al., 2017, "On
    Calibration of Modern Neural Networks", with full depth in place of the labels): -log softmax(logits / T) is convex
    in 1 / T, which Newton's method finds.
    """
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    target, found = predictions.full_depth, []
    for place in range(predictions.layers - 1):
        logits = predictions.logits[:, place].astype(np.float64)
        chosen = np.take_along_axis(logits, target[:, None], axis=1)[:, 0]
        beta = 1.0
        for _ in range(ITERATIONS):
            powers = np.exp(beta * (logits - logits.max(axis=1, keepdims=True)))
            p = powers / powers.sum(axis=1, keepdims=True)
            mean = (p * logits).sum(axis=1)
            slope = (mean - chosen).mean()
            curvature = ((p * logits**2).sum(axis=1) - mean**2).mean()
            before = beta
            beta = float(np.clip(beta - slope / max(curvature, 1e-9), max(low, beta / 2), min(high, 2 * beta)))
            if abs(beta - before) <= CONVERGED * before:
                break
        found.append(1 / beta)
    return (*found, 1.0)


@dataclass(frozen=True)
class ExitLinks:
    """Expected agreement of exit i with full depth, as a function of its certainty u: sigmoid(b_i + a_i g(u)), with
    a_i >= 0. One threshold for it is one threshold per exit for the certainty.

    g maps certainties to an unbounded scale on which a higher value is a higher certainty: the logit of the position in
    the criterion's range if it is bounded, else the certainty with the sign of the criterion's direction.
    """

    criterion: Criterion
    outputs: int
    """C, 1 for regression."""
    weights: tuple[tuple[float, float], ...]
    """(n - 1, 2) b_i and a_i of exits 1 to n - 1."""

    @classmethod
    def fit(cls, criterion: Criterion, outputs: int, certainty: npt.NDArray, agree: Floats) -> ExitLinks:
        """Fits the links by logistic regression: certainty (N, n), agree (N, n)."""
        links, found = cls(criterion, outputs, ()), []
        for place in range(certainty.shape[1] - 1):
            x = links._scale(certainty[:, place])[:, None]
            intercept, slope = logistic(x, agree[:, place]).tolist()
            if slope < 0:  # this certainty does not predict agreement
                intercept, slope = logistic(x[:, :0], agree[:, place]).tolist()[0], 0.0
            found.append((intercept, slope))
        return cls(criterion, outputs, tuple(found))

    def probabilities(self, certainty: npt.NDArray) -> Floats:
        """(N, n) probabilities of agreement: certainty (N, n). The last exit's is 1; that of a certainty which passes
        no threshold is 0."""
        scores = [b + a * self._scale(certainty[:, place]) for place, (b, a) in enumerate(self.weights)]
        found = np.stack([*map(sigmoid, scores), np.ones(len(certainty))], axis=1)
        return np.where(certainty == self.criterion.uncertain(self.outputs), 0.0, found)

    def thresholds(self, probability: float) -> tuple[float, ...]:
        """(n - 1,) thresholds of the certainty at a threshold of the probability."""
        layers = len(self.weights) + 1
        never, always = (way(layers, self.outputs) for way in (self.criterion.never, self.criterion.always))
        if not 0 < probability < 1:
            return (never if probability >= 1 else always,) * (layers - 1)
        score = np.log(probability / (1 - probability))
        return tuple(
            self._certainty((score - b) / a, never, always) if a > 0 else always if b > score else never
            for b, a in self.weights
        )

    def _scale(self, certainty: npt.NDArray) -> Floats:
        low, high = self.criterion.bounds(self.outputs)
        values = np.asarray(certainty, dtype=np.float64)
        if np.isfinite([low, high]).all():
            share = np.clip((values - low) / (high - low), EDGE, 1 - EDGE)
            values = np.log(share / (1 - share))
        return values if self.criterion.higher_is_more_certain else -values

    def _certainty(self, value: float, never: float, always: float) -> float:
        """The inverse of ``_scale``, limited to the range of the thresholds."""
        low, high = self.criterion.bounds(self.outputs)
        value = value if self.criterion.higher_is_more_certain else -value
        if np.isfinite([low, high]).all():
            value = low + (high - low) * float(sigmoid(np.array(value)))
        return float(np.clip(value, min(never, always), max(never, always)))
