"""Exit policies: criteria and thresholds that decide at which layer an input exits.

Evaluation, calibration and the device run the same functions on the same arrays. Therefore a threshold that was chosen
on a stored pass has the same effect on the device.

A criterion computes one certainty per row from the outputs of a layer. A row exits if its certainty passes the
threshold of the layer: above it for confidence (section 4.1 of the paper) and LTE (section 4.2), at or above it for
patience (PABEE), below it for entropy (DeeBERT). At the last layer every row exits.

Shapes: B rows, n layers, C outputs (classes, or 1 for regression). Layers are numbered from 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Memory(NamedTuple):
    """State of the patience criterion that is passed from one layer to the next."""

    prediction: npt.NDArray
    """(B,) predicted class of the last layer; its value for regression."""
    streak: Ints
    """(B,) number of consecutive layers that agreed with the layer before them."""

    def keep(self, rows: Bools) -> Memory:
        """State of the rows that continue."""
        return Memory(self.prediction[rows], self.streak[rows])


Certainty = tuple[npt.NDArray, Memory | None]
"""(B,) certainties, and the state for the next layer."""


UNBOUNDED = float(np.finfo(np.float32).max)
"""Threshold beyond every certainty, for criteria without bounds. It is finite because JSON has no infinity."""


class Criterion(ABC):
    """Exit criterion: computes one certainty per row and compares it with a threshold.

    To add a criterion, write a subclass and add it to CRITERIA. Help texts, figures, thresholds and test vectors are
    derived from its attributes.
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

    @abstractmethod
    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, tolerance: float) -> Certainty:
        """Certainty of one exit's outputs: logits (B, C), lte (B,) or None -> (B,)."""

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
    description = "the highest class probability; a row exits above the threshold (section 3 of the paper)"

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, 1.0

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, tolerance: float) -> Certainty:
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

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, tolerance: float) -> Certainty:
        shifted = logits - logits.max(axis=-1, keepdims=True)
        powers = np.exp(shifted)
        total = powers.sum(axis=-1)
        finite = np.maximum(shifted, -6e4)  # below -6e4 exp is 0 in every dtype; 0 x -inf would be NaN
        return np.log(total) - (powers * finite).sum(axis=-1) / total, None


class Lte(Criterion):
    """Learned certainty u_i = sigmoid(c.h_i + b), in [0, 1] (equation 8), computed by the segment."""

    name = "lte"
    description = "the learned certainty; a row exits above the threshold (section 4.2 of the paper)"
    for_regression = True
    needs_lte = True

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, 1.0

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, tolerance: float) -> Certainty:
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

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, tolerance: float) -> Certainty:
        regression = logits.shape[-1] == 1
        prediction = logits[..., 0] if regression else logits.argmax(axis=-1)
        if memory is None:
            streak = np.zeros(prediction.shape, dtype=np.int64)
        else:
            same = np.abs(prediction - memory.prediction) < tolerance if regression else prediction == memory.prediction
            streak = np.where(same, memory.streak + 1, 0)
        return streak, Memory(prediction, streak)


CRITERIA: dict[str, Criterion] = {c.name: c for c in (Confidence(), Entropy(), Lte(), Patience())}


def criterion_named(name: str) -> Criterion:
    """Criterion of CRITERIA. Raises InputError for an unknown name."""
    if name not in CRITERIA:
        raise InputError(f"unknown exit criterion '{name}': choose one of {', '.join(CRITERIA)}")
    return CRITERIA[name]


@dataclass(frozen=True)
class ExitPolicy:
    """Exit criterion with one threshold per layer; stored in the manifest."""

    criterion: str
    """Name of a criterion in CRITERIA."""
    thresholds: tuple[float, ...]
    """(n - 1,) thresholds of layers 1 to n - 1. At layer n every row exits."""
    temperatures: tuple[float, ...]
    """(n,) temperature per layer. The logits of a layer are divided by it before certainty and scores are computed."""
    tolerance: float = 0.5
    """Patience on regression: two values that differ by less agree; in units of the labels."""

    def __post_init__(self) -> None:
        criterion = criterion_named(self.criterion)
        if len(self.temperatures) != len(self.thresholds) + 1:
            raise InputError(
                f"exit policy has {len(self.thresholds)} thresholds and {len(self.temperatures)} temperatures:"
                " n layers need n - 1 and n"
            )
        for threshold in self.thresholds:
            criterion.check(threshold)
        if not all(t > 0 and np.isfinite(t) for t in self.temperatures):
            raise InputError("temperatures must be finite and above 0")
        if not 0 <= self.tolerance < np.inf:
            raise InputError(f"tolerance is {self.tolerance}: it must be a finite number of at least 0")

    @classmethod
    def uniform(cls, criterion: str, threshold: float, layers: int, tolerance: float = 0.5) -> ExitPolicy:
        """Policy with the same threshold at every layer, as in the paper."""
        return cls(criterion, (float(threshold),) * (layers - 1), (1.0,) * layers, tolerance)

    @classmethod
    def full_depth(cls, layers: int, regression: bool = False) -> ExitPolicy:
        """Policy of an uncalibrated model: no row exits before the last layer."""
        criterion = CRITERIA["patience" if regression else "confidence"]
        return cls.uniform(criterion.name, criterion.never(layers, 2), layers)

    @property
    def layers(self) -> int:
        return len(self.temperatures)

    @property
    def deepest(self) -> int:
        """Layer at which every row exits, regardless of its certainty."""
        return self.layers

    def with_threshold(self, threshold: float) -> ExitPolicy:
        return ExitPolicy(self.criterion, (float(threshold),) * (self.layers - 1), self.temperatures, self.tolerance)

    def at_depth(self, depth: int) -> FixedDepth:
        """Policy with the same criterion, in which every row exits at layer ``depth``, regardless of its certainty."""
        return FixedDepth(self.criterion, self.thresholds, self.temperatures, self.tolerance, depth)

    def at_exits(self, exits: Sequence[int]) -> ExitPolicy:
        """Policy for stored passes over the layers ``exits`` only: its layer i is ``exits[i - 1]``. The last entry must
        be the last layer of the model."""
        thresholds = tuple(self.thresholds[layer - 1] for layer in exits[:-1])
        return ExitPolicy(self.criterion, thresholds, tuple(self.temperatures[i - 1] for i in exits), self.tolerance)

    def check(self, *, regression: bool, lte: bool) -> None:
        """Raises InputError if the criterion does not work for such a model."""
        criterion = CRITERIA[self.criterion]
        if regression and not criterion.for_regression:
            raise InputError(f"'{self.criterion}' needs class probabilities: use lte or patience for regression")
        if criterion.needs_lte and not lte:
            raise InputError(f"'{self.criterion}' needs a model trained with --lte: train again, or choose another")

    def certainty(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        """Certainty of each row at ``layer``: logits (B, C), lte (B,) or None -> (B,)."""
        temperature = self.temperatures[layer - 1]
        if temperature != 1.0 and logits.shape[-1] > 1:
            logits = logits / logits.dtype.type(temperature)
        return CRITERIA[self.criterion].certainty(logits, lte, memory, self.tolerance)

    def exits(self, layer: int, certainty: npt.NDArray) -> Bools:
        """Boolean array: True for each row that exits at ``layer``: (B,) -> (B,)."""
        if layer == self.layers:
            return np.ones(certainty.shape, dtype=bool)
        return CRITERIA[self.criterion].exits(certainty, self.thresholds[layer - 1])


@dataclass(frozen=True)
class FixedDepth(ExitPolicy):
    """Policy in which every row exits at the same layer: the layer-wise baseline, and full depth."""

    depth: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.depth <= self.layers:
            raise InputError(f"depth {self.depth} is out of range: the model has layers 1 to {self.layers}")

    @property
    def deepest(self) -> int:
        return self.depth

    def exits(self, layer: int, certainty: npt.NDArray) -> Bools:
        return np.full(certainty.shape, layer >= self.depth)


def certainties(policy: ExitPolicy, logits: Floats, lte: Floats | None) -> npt.NDArray:
    """Certainty at every layer, from a stored pass: logits (B, n, C), lte (B, n) or None -> (B, n)."""
    memory: Memory | None = None
    columns = []
    for layer in range(1, policy.layers + 1):
        column, memory = policy.certainty(
            layer, logits[:, layer - 1], None if lte is None else lte[:, layer - 1], memory
        )
        columns.append(column)
    return np.stack(columns, axis=1)


def exit_layers(policy: ExitPolicy, certainty: npt.NDArray) -> Ints:
    """Exit layer of each row, from 1 to n: certainty (B, n) -> (B,)."""
    stops = [policy.exits(layer, certainty[:, layer - 1]) for layer in range(1, policy.layers + 1)]
    return np.stack(stops, axis=1).argmax(axis=1) + 1


def exit_layers_at(policy: ExitPolicy, certainty: npt.NDArray, thresholds: Sequence[float]) -> Ints:
    """``exit_layers`` under each of T thresholds, the same at every layer: certainty (B, n) -> (T, B).

    Raises InputError for a threshold out of range. Each layer needs one comparison of shape (T, B), so that hundreds of
    thresholds are cheap.
    """
    criterion = CRITERIA[policy.criterion]
    for threshold in thresholds:
        criterion.check(threshold)
    kind = certainty.dtype if certainty.dtype.kind == "f" else np.dtype(np.float64)
    column = np.array(thresholds, dtype=kind)[:, None]  # compared in the precision of the certainty, as in ``exits``
    going = np.ones((len(column), len(certainty)), dtype=bool)
    layers = np.ones(going.shape, dtype=np.uint8 if policy.layers < 256 else np.int64)
    for layer in range(1, policy.layers):
        going &= ~criterion.exits(certainty[:, layer - 1], column)
        layers += going
    return layers
