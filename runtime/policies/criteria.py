"""Exit criteria: each computes one certainty per row from the outputs of a layer.

A row exits if its certainty passes the threshold of the layer: above it for confidence (section 4.1 of the paper) and
LTE (section 4.2), at or above it for patience (PABEE), below it for entropy (DeeBERT). Direction, range, and the
thresholds ``never`` and ``always`` belong to the class of the criterion.

Shapes: B rows, n layers, C outputs (classes, or 1 for regression). Layers are numbered from 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer]


def softmax(logits: Floats) -> Floats:
    """Class probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def predictions(logits: Floats) -> npt.NDArray:
    """Predicted class per row; the value for regression: (B, C) -> (B,)."""
    return logits[..., 0] if logits.shape[-1] == 1 else logits.argmax(axis=-1)


def agrees(prediction: npt.NDArray, previous: npt.NDArray, regression: bool, tolerance: float) -> Bools:
    """True if two layers predict the same class; for regression, values that differ by less than ``tolerance``."""
    return np.abs(prediction - previous) < tolerance if regression else prediction == previous


class Memory(Protocol):
    """State of a criterion that is passed from one layer to the next."""

    def keep(self, rows: Bools) -> Memory:
        """State of the rows that continue: rows (B,)."""


class Streak(NamedTuple):
    """Memory of the criteria that compare the prediction of a layer with that of the layer before."""

    prediction: npt.NDArray
    """(B,) predicted class of the last layer; its value for regression."""
    value: npt.NDArray
    """(B,) the certainty of the last layer: a number of layers, or a sum over the layers that agree."""

    def keep(self, rows: Bools) -> Streak:
        """State of the rows that continue."""
        return Streak(self.prediction[rows], self.value[rows])


Certainty = tuple[npt.NDArray, Memory | None]
"""(B,) certainties, and the state for the next layer."""


class Parameters(NamedTuple):
    """Parameters of a criterion at one layer, from the policy."""

    tolerance: float = 0.5
    """Regression: two values that differ by less agree; in units of the labels."""
    weights: tuple[float, ...] = ()
    """(F + 1,) fitted weights of the layer, the intercept first; empty at the last layer and without a fit."""


UNBOUNDED = float(np.finfo(np.float32).max)
"""Threshold beyond every certainty, for criteria without bounds. It is finite because JSON has no infinity."""


class Criterion(ABC):
    """Exit criterion: computes one certainty per row and compares it with a threshold.

    To add a criterion, write a subclass and add it to CRITERIA in ``registry.py``. Help texts, figures, thresholds and
    test vectors are derived from its attributes.
    """

    name: str
    description: str
    """One line for help texts and documentation."""
    higher_is_more_certain = True
    """False if a lower value means a higher certainty, as for the entropy."""
    inclusive = False
    """True if a row also exits when its certainty equals the threshold."""
    counts = False
    """True if the certainty is a number of layers."""
    for_regression = False
    """True if the criterion works for regression models."""
    needs_lte = False
    """True if the criterion needs an LTE module."""
    probability = False
    """True if the certainty estimates the probability that the prediction is right."""
    adaptive = True
    """False for the layer-wise baseline, whose exit does not depend on the input."""
    fitted = False
    """True if the criterion has weights that calibration fits."""

    schema_version = 1
    """The first schema version of bundles whose readers know this criterion."""

    @abstractmethod
    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        """Certainty of one exit's outputs: logits (B, C), lte (B,) or None -> (B,).

        ``memory``: the state that this criterion returned at the previous exit; None at the first one.
        """

    def bounds(self, classes: int) -> tuple[float, float]:
        """Smallest and largest possible certainty; infinite by default."""
        return -np.inf, np.inf

    def exits(self, certainty: npt.NDArray, threshold: float | npt.NDArray) -> Bools:
        """Boolean array: True for each certainty that passes the threshold."""
        if self.higher_is_more_certain:
            return certainty >= threshold if self.inclusive else certainty > threshold
        return certainty <= threshold if self.inclusive else certainty < threshold

    def never(self, layers: int, classes: int) -> float:
        """Threshold at which no row exits before the last layer."""
        low, high = self.bounds(classes)
        return min(high, UNBOUNDED) if self.higher_is_more_certain else max(low, -UNBOUNDED)

    def always(self, layers: int, classes: int) -> float:
        """Threshold at which every row exits at the first layer where the criterion allows it."""
        low, high = self.bounds(classes)
        return max(low, -UNBOUNDED) if self.higher_is_more_certain else min(high, UNBOUNDED)

    def uncertain(self, classes: int) -> float:
        """Certainty that passes no threshold. Not for inclusive criteria."""
        return max(self.bounds(classes)[0], -UNBOUNDED) if self.higher_is_more_certain else UNBOUNDED

    def grid(self, layers: int, classes: int, count: int = 200) -> list[float]:
        """Data-independent thresholds from ``never`` to ``always``.

        Half of them are evenly spaced. The other half is spaced by a constant factor from ``never`` on, starting at a
        millionth of the range, because most certainties are close to that end. Without bounds, thresholds are spaced by
        a constant factor on both sides of zero.
        """
        never, always = self.never(layers, classes), self.always(layers, classes)
        if self.counts:
            return [float(k) for k in range(round(never), round(always) - 1, -1)]
        if max(abs(never), abs(always)) < UNBOUNDED:
            steps = np.union1d(np.linspace(0, 1, count // 2), np.logspace(-6, 0, count // 2))
            return [float(never + step * (always - never)) for step in steps]
        sizes = np.logspace(-6, 6, count // 2 - 1)
        middle = np.concatenate([sizes[::-1], [0.0], -sizes])  # in descending order
        return [never, *(middle if self.higher_is_more_certain else middle[::-1]).tolist(), always]

    def check(self, threshold: float) -> None:
        """Raises InputError unless ``threshold`` is in the range of this criterion."""
        low, high = self.bounds(2)
        if not self.higher_is_more_certain:
            high = np.inf  # the upper bound depends on the number of classes
        if not np.isfinite(threshold) or not low <= threshold <= high:
            limits = "a finite number" + (f" of at least {low:g}" if np.isfinite(low) else "")
            limits += f" and at most {high:g}" if np.isfinite(high) else ""
            raise InputError(f"threshold {threshold} is out of range: for {self.name} it must be {limits}")


class Confidence(Criterion):
    """Highest class probability, in (0, 1]."""

    name = "confidence"
    probability = True
    description = "the highest class probability; a row exits above the threshold (section 3 of the paper)"

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, 1.0

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        powers = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
        return 1.0 / np.add.reduce(powers, axis=-1), None  # the ufuncs avoid the Python overhead of max and sum


class Entropy(Criterion):
    """Entropy of the class probabilities in nats, in [0, ln C], with 0 log 0 = 0. Logits are shifted so that exp cannot
    overflow."""

    name = "entropy"
    description = "the entropy of the class probabilities in nats; a row exits below the threshold (DeeBERT)"
    higher_is_more_certain = False

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, float(np.log(classes))

    def always(self, layers: int, classes: int) -> float:
        return float(np.log(classes)) + 1e-3  # strictly above the entropy of equal probabilities

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        shifted = logits - logits.max(axis=-1, keepdims=True)
        powers = np.exp(shifted)
        total = powers.sum(axis=-1)
        finite = np.maximum(shifted, -6e4)  # below -6e4 exp is 0 in every dtype; 0 x -inf would be NaN
        return np.log(total) - (powers * finite).sum(axis=-1) / total, None


class Lte(Criterion):
    """Learned certainty u_i = sigmoid(c.h_i + b), in [0, 1] (equation 8), computed by the segment."""

    name = "lte"
    probability = True
    description = "the learned certainty; a row exits above the threshold (section 4.2 of the paper)"
    for_regression = True
    needs_lte = True

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, 1.0

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        assert lte is not None, "ExitPolicy.check rejects this criterion for models without LTE"
        return lte, None


class Patience(Criterion):
    """Number of consecutive layers that agree with the layer before them (PABEE): they predict the same class, or
    values that differ by less than ``tolerance``. A row exits when the number reaches the threshold."""

    name = "patience"
    description = "the number of consecutive exits that agree; a row exits when it reaches the threshold (PABEE)"
    inclusive = True
    counts = True
    for_regression = True

    def bounds(self, classes: int) -> tuple[float, float]:
        return 1.0, np.inf  # with 0, every row would exit at the first layer, which cannot agree with an earlier one

    def never(self, layers: int, classes: int) -> float:
        return float(layers)

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        prediction = predictions(logits)
        if memory is None:
            streak = np.zeros(prediction.shape, dtype=np.int64)
        else:
            assert isinstance(memory, Streak)
            same = agrees(prediction, memory.prediction, logits.shape[-1] == 1, parameters.tolerance)
            streak = np.where(same, memory.value + 1, 0)
        return streak, Streak(prediction, streak)


class Fixed(Criterion):
    """Number of exits that a row has reached. Every row exits at the same layer: the layer-wise baseline (section 5.1
    of the paper), with which adaptive criteria compete."""

    name = "fixed"
    description = "no adaptive exit: every row exits at the same layer, the shallowest that satisfies the rule"
    inclusive = True
    counts = True
    for_regression = True
    adaptive = False
    schema_version = 2

    def bounds(self, classes: int) -> tuple[float, float]:
        return 1.0, np.inf

    def never(self, layers: int, classes: int) -> float:
        return float(layers)

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        assert memory is None or isinstance(memory, Streak)
        reached = np.ones(logits.shape[:-1], dtype=np.int64) if memory is None else memory.value + 1
        return reached, Streak(reached, reached)


class Agreement(Criterion):
    """Confidence summed over the consecutive exits that predict the same class, in (0, n].

    S_1 = C_1. S_i = S_{i-1} + C_i if exits i - 1 and i predict the same class, else C_i, with the confidence C_i. This
    is the score of BEEM with exit weights of 1 (Bajpai and Hanawal, ICLR 2025, "BEEM: Boosting Performance of Early
    Exit DNNs using Multi-Exit Classifiers as Experts").
    """

    name = "agreement"
    description = "the confidence summed over consecutive exits that agree; a row exits above the threshold (BEEM)"
    schema_version = 2

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, np.inf

    def never(self, layers: int, classes: int) -> float:
        return float(layers)  # each confidence is at most 1

    def grid(self, layers: int, classes: int, count: int = 200) -> list[float]:
        """Thresholds k - x for the sums of k = n, ..., 1 exits: x = 0, and from a millionth to 1 by a constant
        factor, because most confidences are close to 1."""
        steps = (0.0, *np.logspace(-6, 0, max(2, count // layers))[:-1])
        sums = [float(k - step) for k in range(layers - 1, 0, -1) for step in steps]
        return [self.never(layers, classes), *sums, 0.0]

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, parameters: Parameters) -> Certainty:
        confidence = 1.0 / np.add.reduce(np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True)), axis=-1)
        prediction = predictions(logits)
        if memory is not None:
            assert isinstance(memory, Streak)
            confidence = confidence + np.where(prediction == memory.prediction, memory.value, 0)
        return confidence, Streak(prediction, confidence)
