"""Exit policies: when an answer is sure enough to stop.

Evaluation, calibration and the device run these same functions on the same arrays, so a threshold that was chosen on
one pass over the data means the same thing on the device.

A criterion turns what a layer says into one number per row. The rows whose number passes the layer's threshold leave:
above it for confidence (section 4.1 of the paper), LTE (section 4.2) and patience (PABEE), below it for entropy
(DeeBERT). The last layer always answers.

Shapes: B rows, n layers, C outputs (classes, or 1 for regression). Layers count from 1.
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
    """What patience carries from one layer to the next."""

    prediction: npt.NDArray
    """(B,) the last layer's class, or its value for regression."""
    streak: Ints
    """(B,) how many layers in a row have agreed with the one before them."""

    def keep(self, rows: Bools) -> Memory:
        return Memory(self.prediction[rows], self.streak[rows])


Certainty = tuple[npt.NDArray, Memory | None]
"""(B,) numbers, and what to remember for the next layer."""


UNBOUNDED = float(np.finfo(np.float32).max)
"""The threshold beyond every certainty of a criterion without bounds: JSON has no infinity."""


class Criterion(ABC):
    """An exit criterion: one certainty per row, and everything that depends on its direction and range.

    A new criterion is a subclass here and an entry in CRITERIA. Help texts, figures, thresholds and test vectors are
    derived from its attributes.
    """

    name: str
    description: str
    """One line for help texts and documentation."""
    higher_is_surer = True
    inclusive = False
    """A row also exits where its certainty equals the threshold."""
    counts = False
    """The certainty is a whole number of layers."""
    for_regression = False
    needs_lte = False

    @abstractmethod
    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, tolerance: float) -> Certainty:
        """Certainty of one exit's output: logits (B, C), lte (B,) or None -> (B,)."""

    def bounds(self, classes: int) -> tuple[float, float]:
        """The smallest and the largest certainty possible; infinite by default."""
        return -np.inf, np.inf

    def exits(self, certainty: npt.NDArray, threshold: float | npt.NDArray) -> Bools:
        """Whether each certainty passes the threshold."""
        if self.higher_is_surer:
            return certainty >= threshold if self.inclusive else certainty > threshold
        return certainty <= threshold if self.inclusive else certainty < threshold

    def never(self, layers: int, classes: int) -> float:
        """A threshold at which no row exits before the last layer."""
        low, high = self.bounds(classes)
        return min(high, UNBOUNDED) if self.higher_is_surer else max(low, -UNBOUNDED)

    def always(self, layers: int, classes: int) -> float:
        """A threshold at which every row exits at the first layer that allows it."""
        low, high = self.bounds(classes)
        return max(low, -UNBOUNDED) if self.higher_is_surer else min(high, UNBOUNDED)

    def grid(self, layers: int, classes: int, count: int = 200) -> list[float]:
        """Thresholds from ``never`` to ``always`` that do not depend on any data.

        Half of them are evenly spaced. Certainties crowd at the certain end of the range, so the distances of the
        other half from that end grow by a constant factor, from a millionth of the range. Without bounds, thresholds
        are spaced by a constant factor on both sides of zero.
        """
        never, always = self.never(layers, classes), self.always(layers, classes)
        if self.counts:
            return [float(k) for k in range(round(never), round(always) - 1, -1)]
        if max(abs(never), abs(always)) < UNBOUNDED:
            steps = np.union1d(np.linspace(0, 1, count // 2), np.logspace(-6, 0, count // 2))
            return [float(never + step * (always - never)) for step in steps]
        sizes = np.logspace(-6, 6, count // 2 - 1)
        middle = np.concatenate([sizes[::-1], [0.0], -sizes])  # descending
        return [never, *(middle if self.higher_is_surer else middle[::-1]).tolist(), always]

    def check(self, threshold: float) -> None:
        """Raises InputError unless ``threshold`` can separate certainties of this criterion."""
        low, high = self.bounds(2)
        if not self.higher_is_surer:
            high = np.inf  # the upper bound depends on the number of classes
        if not np.isfinite(threshold) or not low <= threshold <= high:
            limits = "a finite number" + (f" of at least {low:g}" if np.isfinite(low) else "")
            limits += f" and at most {high:g}" if np.isfinite(high) else ""
            raise InputError(f"threshold {threshold} is out of range: for {self.name} it must be {limits}")


class Confidence(Criterion):
    """The highest class probability, in (0, 1]."""

    name = "confidence"
    description = "the highest class probability; a row exits above the threshold (section 3 of the paper)"

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, 1.0

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, tolerance: float) -> Certainty:
        powers = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
        return 1.0 / np.add.reduce(powers, axis=-1), None  # max and sum, without the layers of Python around them


class Entropy(Criterion):
    """The entropy of the class probabilities in nats, in [0, ln C], with 0 log 0 = 0; logits are shifted so that exp
    cannot overflow."""

    name = "entropy"
    description = "the entropy of the class probabilities in nats; a row exits below the threshold (DeeBERT)"
    higher_is_surer = False

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, float(np.log(classes))

    def always(self, layers: int, classes: int) -> float:
        return float(np.log(classes)) + 1e-3  # strictly above the entropy of equal probabilities

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, tolerance: float) -> Certainty:
        shifted = logits - logits.max(axis=-1, keepdims=True)
        powers = np.exp(shifted)
        total = powers.sum(axis=-1)
        finite = np.maximum(shifted, -6e4)  # exp is 0 there in every dtype, and 0 x -inf would be NaN
        return np.log(total) - (powers * finite).sum(axis=-1) / total, None


class Lte(Criterion):
    """The learned certainty u_i = sigmoid(c.h_i + b), in [0, 1] (equation 8); the segment has computed it."""

    name = "lte"
    description = "the learned certainty; a row exits above the threshold (section 4.2 of the paper)"
    for_regression = True
    needs_lte = True

    def bounds(self, classes: int) -> tuple[float, float]:
        return 0.0, 1.0

    def certainty(self, logits: Floats, lte: Floats | None, memory: Memory | None, tolerance: float) -> Certainty:
        assert lte is not None, "the policy was checked against the model when it was loaded"
        return lte, None


class Patience(Criterion):
    """How many layers in a row agree with the one before them (PABEE): the same class, or values that differ by less
    than ``tolerance``. Rows leave once the count reaches the threshold."""

    name = "patience"
    description = "the number of consecutive exits that agree; a row exits when it reaches the threshold (PABEE)"
    inclusive = True
    counts = True
    for_regression = True

    def bounds(self, classes: int) -> tuple[float, float]:
        return 1.0, np.inf  # 0 would exit at the first layer, which has no earlier one to agree with

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
    """The entry of CRITERIA. Raises InputError for an unknown name."""
    if name not in CRITERIA:
        raise InputError(f"unknown exit criterion '{name}': choose one of {', '.join(CRITERIA)}")
    return CRITERIA[name]


@dataclass(frozen=True)
class ExitPolicy:
    """A criterion with one threshold per layer that may stop; plain data, stored in the manifest."""

    criterion: str
    """A name in CRITERIA."""
    thresholds: tuple[float, ...]
    """(n - 1,) layers 1 to n - 1; the last layer always answers."""
    temperatures: tuple[float, ...]
    """(n,) each layer's logits are divided by its own before the criterion and the scores see them."""
    tolerance: float = 0.5
    """Patience on regression: the largest difference that still counts as agreement, in label units."""

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
        """The same threshold at every layer, as in the paper."""
        return cls(criterion, (float(threshold),) * (layers - 1), (1.0,) * layers, tolerance)

    @classmethod
    def full_depth(cls, layers: int, regression: bool = False) -> ExitPolicy:
        """Never stop early: what a model that was not calibrated does."""
        criterion = CRITERIA["patience" if regression else "confidence"]
        return cls.uniform(criterion.name, criterion.never(layers, 2), layers)

    @property
    def layers(self) -> int:
        return len(self.temperatures)

    @property
    def deepest(self) -> int:
        """The layer at which every row exits, whatever its certainty."""
        return self.layers

    def with_threshold(self, threshold: float) -> ExitPolicy:
        return ExitPolicy(self.criterion, (float(threshold),) * (self.layers - 1), self.temperatures, self.tolerance)

    def at_depth(self, depth: int) -> FixedDepth:
        """The same certainties, but every row leaves after layer ``depth``, sure or not."""
        return FixedDepth(self.criterion, self.thresholds, self.temperatures, self.tolerance, depth)

    def at_exits(self, exits: Sequence[int]) -> ExitPolicy:
        """For stored passes over these layers only: its layer i is ``exits[i - 1]``, the last one the model's last."""
        thresholds = tuple(self.thresholds[layer - 1] for layer in exits[:-1])
        return ExitPolicy(self.criterion, thresholds, tuple(self.temperatures[i - 1] for i in exits), self.tolerance)

    def check(self, *, regression: bool, lte: bool) -> None:
        """Raises InputError where the criterion cannot work on this model."""
        criterion = CRITERIA[self.criterion]
        if regression and not criterion.for_regression:
            raise InputError(f"'{self.criterion}' needs class probabilities: use lte or patience for regression")
        if criterion.needs_lte and not lte:
            raise InputError(f"'{self.criterion}' needs a model trained with --lte: train again, or choose another")

    def certainty(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        """How sure each row is after ``layer``: logits (B, C), lte (B,) or None -> (B,)."""
        temperature = self.temperatures[layer - 1]
        if temperature != 1.0 and logits.shape[-1] > 1:
            logits = logits / logits.dtype.type(temperature)
        return CRITERIA[self.criterion].certainty(logits, lte, memory, self.tolerance)

    def exits(self, layer: int, certainty: npt.NDArray) -> Bools:
        """Which rows leave after ``layer``: (B,) -> (B,)."""
        if layer == self.layers:
            return np.ones(certainty.shape, dtype=bool)
        return CRITERIA[self.criterion].exits(certainty, self.thresholds[layer - 1])


@dataclass(frozen=True)
class FixedDepth(ExitPolicy):
    """Every row leaves after the same layer: the layer-wise baseline, and full depth."""

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
    """Every layer's certainty from one stored pass: logits (B, n, C), lte (B, n) or None -> (B, n)."""
    memory: Memory | None = None
    columns = []
    for layer in range(1, policy.layers + 1):
        column, memory = policy.certainty(
            layer, logits[:, layer - 1], None if lte is None else lte[:, layer - 1], memory
        )
        columns.append(column)
    return np.stack(columns, axis=1)


def exit_layers(policy: ExitPolicy, certainty: npt.NDArray) -> Ints:
    """The layer at which each row leaves: certainty (B, n) -> (B,), from 1 to n."""
    stops = [policy.exits(layer, certainty[:, layer - 1]) for layer in range(1, policy.layers + 1)]
    return np.stack(stops, axis=1).argmax(axis=1) + 1


def exit_layers_at(policy: ExitPolicy, certainty: npt.NDArray, thresholds: Sequence[float]) -> Ints:
    """``exit_layers`` under each of T thresholds, the same at every layer: certainty (B, n) -> (T, B).

    Raises InputError for a threshold out of range. One comparison of (T, B) per layer, so that hundreds cost little.
    """
    criterion = CRITERIA[policy.criterion]
    for threshold in thresholds:
        criterion.check(threshold)
    kind = certainty.dtype if certainty.dtype.kind == "f" else np.dtype(np.float64)
    column = np.array(thresholds, dtype=kind)[:, None]  # compared as one threshold is: in the certainty's own precision
    going = np.ones((len(column), len(certainty)), dtype=bool)
    layers = np.ones(going.shape, dtype=np.uint8 if policy.layers < 256 else np.int64)
    for layer in range(1, policy.layers):
        going &= ~criterion.exits(certainty[:, layer - 1], column)
        layers += going
    return layers
