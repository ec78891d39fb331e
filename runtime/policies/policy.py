"""Exit policies: a criterion with the thresholds and settings that decide at which layer an input exits.

Evaluation, calibration and the device run the same functions on the same arrays. Therefore a threshold that was chosen
on a stored pass has the same effect on the device.

Shapes: B rows, n layers, C classes (1 for regression). Layers are numbered from 1. Logits are (B, C), or (B, D, C) for
texts with D decisions (``runtime.kinds``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError
from berxit.runtime.json_data import required_version, since
from berxit.runtime.policies.criteria import (
    Bools,
    Certainty,
    Criterion,
    Floats,
    Ints,
    Memory,
    Parameters,
)
from berxit.runtime.policies.learned import feature_names
from berxit.runtime.policies.registry import CRITERIA, criterion_named

Threshold = float | tuple[float, ...]
"""Threshold of one layer: a number, or one number per predicted class."""


class Window(NamedTuple):
    """Memory of a policy with patience: that of its criterion, and the certainties of the last exits."""

    criterion: Memory | None
    certainties: tuple[npt.NDArray, ...]
    """At most patience - 1 arrays (B,), the latest last."""

    def keep(self, rows: Bools) -> Window:
        """State of the rows that continue."""
        kept = None if self.criterion is None else self.criterion.keep(rows)
        return Window(kept, tuple(certainty[rows] for certainty in self.certainties))


class Decisions(NamedTuple):
    """Memory of a criterion for texts with several decisions: that of all decisions of all rows."""

    criterion: Memory
    per_row: int
    """D, the number of decisions per row."""

    def keep(self, rows: Bools) -> Decisions:
        """State of the rows that continue."""
        return Decisions(self.criterion.keep(np.repeat(rows, self.per_row)), self.per_row)


@dataclass(frozen=True)
class ExitPolicy:
    """Exit criterion with one threshold per layer; stored in the manifest.

    The certainty of layer i is u_i, computed by the criterion from the logits divided by the layer's temperature. With
    a patience of k, it is the least certain of the last k exits, min(u_{i-k+1}, ..., u_i) (max if a lower value means
    a higher certainty). A row therefore exits when k consecutive exits pass the threshold (PCEE-BERT, Zhang et al.,
    2022, "PCEE-BERT: Accelerating BERT Inference via Patient and Confident Early Exiting"). A row exits at layer i if
    the certainty passes the layer's threshold; a threshold may depend on the class that the layer predicts. At layer n
    every row exits.
    """

    criterion: str
    """Name of a criterion in CRITERIA."""
    thresholds: tuple[Threshold, ...]
    """(n - 1,) thresholds of layers 1 to n - 1; each a number, or C numbers, one per predicted class."""
    temperatures: tuple[float, ...]
    """(n,) temperature per layer. The logits of a layer are divided by it before certainty and scores are computed."""
    tolerance: float = 0.5
    """Regression: two values that differ by less agree; in units of the labels."""
    patience: int = field(default=1, metadata=since(2))
    """Number of consecutive exits that must pass the threshold."""
    off: tuple[int, ...] = field(default=(), metadata=since(2))
    """Layers whose exit is switched off: the policy skips them, as if they had no exit."""
    weights: tuple[tuple[float, ...], ...] = field(default=(), metadata=since(2))
    """(n - 1, F + 1) fitted weights of layers 1 to n - 1, the intercept first; empty for a criterion without a fit."""

    def __post_init__(self) -> None:
        criterion = criterion_named(self.criterion)
        if len(self.temperatures) != len(self.thresholds) + 1:
            raise InputError(
                f"exit policy has {len(self.thresholds)} thresholds and {len(self.temperatures)} temperatures:"
                " n layers need n - 1 and n"
            )
        for threshold in self.thresholds:
            for number in threshold if isinstance(threshold, tuple) else (threshold,):
                criterion.check(number)
        if not all(t > 0 and np.isfinite(t) for t in self.temperatures):
            raise InputError("temperatures must be finite and above 0")
        if not 0 <= self.tolerance < np.inf:
            raise InputError(f"tolerance is {self.tolerance}: it must be a finite number of at least 0")
        if not 1 <= self.patience <= self.layers:
            raise InputError(f"patience is {self.patience}: it must be a number of exits, from 1 to {self.layers}")
        if self.patience > 1 and criterion.counts:
            raise InputError(f"the certainty of '{self.criterion}' counts layers: use it with a patience of 1")
        if criterion.fitted and (len(self.weights) != len(self.thresholds) or not _all_finite(self.weights)):
            raise InputError(
                f"'{self.criterion}' has {len(self.weights)} rows of weights for {self.layers} layers: it needs"
                f" {len(self.thresholds)} with finite numbers, which berxit-calibrate fits"
            )
        if self.weights and not criterion.fitted:
            raise InputError(f"'{self.criterion}' has no weights: remove them, or use another criterion")
        if wrong := [layer for layer in self.off if not 1 <= layer < self.layers]:
            raise InputError(
                f"exit {wrong[0]} cannot be switched off: give layers from 1 to {self.layers - 1}, because every row"
                " exits at the last layer"
            )

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

    @property
    def schema_version(self) -> int:
        """The first schema version of bundles whose readers know every part of this policy."""
        per_class = any(isinstance(threshold, tuple) for threshold in self.thresholds)
        return max(required_version(self), CRITERIA[self.criterion].schema_version, 2 if per_class else 1)

    def with_threshold(self, threshold: float) -> ExitPolicy:
        """The policy with the same threshold at every layer, for every class."""
        return replace(self, thresholds=(float(threshold),) * (self.layers - 1))

    def at_depth(self, depth: int) -> FixedDepth:
        """Policy with the same criterion, in which every row exits at layer ``depth``, regardless of its certainty."""
        return FixedDepth(**self._values(), depth=depth)

    def at_exits(self, exits: Sequence[int]) -> ExitPolicy:
        """Policy for stored passes over the layers ``exits`` only: its layer i is ``exits[i - 1]``. The last entry must
        be the last layer of the model."""
        return replace(
            self,
            thresholds=tuple(self.thresholds[layer - 1] for layer in exits[:-1]),
            temperatures=tuple(self.temperatures[layer - 1] for layer in exits),
            patience=min(self.patience, len(exits)),
            weights=tuple(self.weights[layer - 1] for layer in exits[:-1]) if self.weights else (),
            off=tuple(place for place, layer in enumerate(exits, 1) if layer in self.off),
        )

    def spread_over(self, exits: Sequence[int]) -> ExitPolicy:
        """The opposite of ``at_exits``: a policy for a model whose layers ``exits`` have this policy's exits. A layer
        without an exit has the values of the next exit, which no runner reads."""
        places = np.searchsorted(exits, np.arange(1, exits[-1] + 1)).tolist()
        last = self.thresholds[-1] if self.thresholds else CRITERIA[self.criterion].never(self.layers, 2)
        return replace(
            self,
            thresholds=tuple((*self.thresholds, last)[place] for place in places[:-1]),
            temperatures=tuple(self.temperatures[place] for place in places),
            weights=tuple((*self.weights, self.weights[-1])[place] for place in places[:-1]) if self.weights else (),
            off=tuple(exits[place - 1] for place in self.off),
        )

    def check(self, *, outputs: int, lte: bool, several: bool = False) -> None:
        """Raises InputError if the policy does not work for a model.

        ``outputs``: C, 1 for regression. ``several``: the model's texts have several decisions.
        """
        criterion, regression = CRITERIA[self.criterion], outputs == 1
        if several:
            self._check_several(criterion)
        if regression and not criterion.for_regression:
            raise InputError(
                f"'{self.criterion}' needs class probabilities: use lte, patience or learned for regression"
            )
        if criterion.needs_lte and not lte:
            raise InputError(f"'{self.criterion}' needs a model trained with --lte: train again, or choose another")
        counts = {len(threshold) for threshold in self.thresholds if isinstance(threshold, tuple)}
        if counts - {outputs} or (regression and counts):
            raise InputError(
                f"a threshold has {min(counts)} numbers: it needs one number, or one per class"
                + ("" if regression else f" ({outputs})")
            )
        if regression and self.weights and not self.tolerance > 0:
            raise InputError(f"'{self.criterion}' needs a tolerance above 0 for regression")
        features = len(feature_names(outputs))
        if wrong := [row for row in self.weights if len(row) != features + 1]:
            raise InputError(
                f"'{self.criterion}' has {len(wrong[0])} weights at a layer: this model needs {features + 1}"
            )

    def _check_several(self, criterion: Criterion) -> None:
        """Raises InputError for parts of a policy that need one prediction per text."""
        if criterion.fitted:
            raise InputError(f"'{self.criterion}' needs one class per text: use confidence, entropy, patience or lte")
        if any(isinstance(threshold, tuple) for threshold in self.thresholds):
            raise InputError("thresholds per class need one class per text: use one threshold for all labels")

    def certainty(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        """Certainty of each row at ``layer``: logits (B, C) or (B, D, C), lte (B,) or None -> (B,).

        With D decisions, the certainty of a row is that of its least certain decision.
        """
        logits = self.scaled(layer, logits)
        if self._plain:
            return self._certainty_of_exit(layer, logits, lte, memory)
        return self._certainty_of_window(layer, logits, lte, memory)

    def _certainty_of_exit(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        parameters = self._parameters[layer - 1]
        if logits.ndim == 2:
            return self._criterion.certainty(logits, lte, memory, parameters)
        rows, count, classes = logits.shape
        repeated = None if lte is None else np.repeat(lte, count)
        state = memory.criterion if isinstance(memory, Decisions) else None
        of_all, after = self._criterion.certainty(logits.reshape(rows * count, classes), repeated, state, parameters)
        least = np.minimum if self._criterion.higher_is_more_certain else np.maximum
        return least.reduce(of_all.reshape(rows, count), axis=1), None if after is None else Decisions(after, count)

    def scaled(self, layer: int, logits: Floats) -> Floats:
        """Logits of a classifier divided by the temperature of ``layer``."""
        temperature = self.temperatures[layer - 1]
        return logits if temperature == 1.0 or logits.shape[-1] == 1 else logits / logits.dtype.type(temperature)

    def exits(self, layer: int, certainty: npt.NDArray, logits: Floats | None = None) -> Bools:
        """Boolean array: True for each row that exits at ``layer``: (B,) -> (B,). Logits (B, C) are needed for
        thresholds per class."""
        if layer == self.layers:
            return np.ones(certainty.shape, dtype=bool)
        if layer in self.off:
            return np.zeros(certainty.shape, dtype=bool)
        threshold = self.thresholds[layer - 1]
        if isinstance(threshold, tuple):
            assert logits is not None, "thresholds per class need the predicted class"
            return self._criterion.exits(certainty, np.array(threshold, certainty.dtype)[logits.argmax(axis=-1)])
        return self._criterion.exits(certainty, threshold)

    def _certainty_of_window(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        before = memory if isinstance(memory, Window) else Window(None, ())
        certainty, state = self._certainty_of_exit(layer, logits, lte, before.criterion)
        recent = (*before.certainties, certainty)
        if len(recent) == self.patience:
            least = np.minimum if self._criterion.higher_is_more_certain else np.maximum
            smallest = least.reduce(recent) if self.patience > 1 else certainty
        else:
            smallest = np.full_like(certainty, self._criterion.uncertain(logits.shape[-1]))
        if layer in self.off:
            return smallest, memory
        return smallest, Window(state, recent[-(self.patience - 1) :] if self.patience > 1 else ())

    @cached_property
    def _criterion(self) -> Criterion:
        return CRITERIA[self.criterion]

    @cached_property
    def _plain(self) -> bool:
        """True if the certainty is that of the criterion."""
        return self.patience == 1 and not self.off

    @cached_property
    def _parameters(self) -> tuple[Parameters, ...]:
        """(n,) parameters of the criterion at each layer."""
        weights = (*self.weights, ()) if self.weights else ((),) * self.layers
        return tuple(Parameters(self.tolerance, row) for row in weights)

    def _values(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(ExitPolicy)}


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

    def exits(self, layer: int, certainty: npt.NDArray, logits: Floats | None = None) -> Bools:
        return np.full(certainty.shape, layer >= self.depth)


def _all_finite(rows: Sequence[Sequence[float]]) -> bool:
    return all(np.isfinite(number) for row in rows for number in row)


def certainties(policy: ExitPolicy, logits: Floats, lte: Floats | None) -> npt.NDArray:
    """Certainty at every layer, from a stored pass: logits (B, n, C) or (B, n, D, C), lte (B, n) or None ->
    (B, n)."""
    memory: Memory | None = None
    columns = []
    for layer in range(1, policy.layers + 1):
        column, memory = policy.certainty(
            layer, logits[:, layer - 1], None if lte is None else lte[:, layer - 1], memory
        )
        columns.append(column)
    return np.stack(columns, axis=1)


def exit_layers(policy: ExitPolicy, certainty: npt.NDArray, logits: Floats | None = None) -> Ints:
    """Exit layer of each row, from 1 to n: certainty (B, n) -> (B,). Logits (B, n, C) are needed for thresholds per
    class."""
    stops = [
        policy.exits(layer, certainty[:, layer - 1], None if logits is None else logits[:, layer - 1])
        for layer in range(1, policy.layers + 1)
    ]
    return np.stack(stops, axis=1).argmax(axis=1) + 1


def exit_layers_at(
    criterion: Criterion,
    certainty: npt.NDArray,
    thresholds: npt.ArrayLike,
    predicted: npt.NDArray | None = None,
    off: Sequence[int] = (),
) -> Ints:
    """``exit_layers`` under each of T sets of thresholds: certainty (B, n) -> (T, B).

    ``thresholds``: (T,), the same at every layer; (T, n - 1); or (T, n - 1, C) per predicted class, with ``predicted``
    (B, n). ``off``: layers whose exit is switched off. Raises InputError for a threshold out of range. Each layer needs
    one comparison of shape (T, B), so that hundreds of thresholds are cheap.
    """
    values = np.asarray(thresholds, dtype=np.float64)
    for threshold in np.unique(values).tolist():
        criterion.check(threshold)
    if certainty.dtype.kind == "f":
        values = values.astype(certainty.dtype)  # compared in the precision of the certainty, as in ``exits``
    going = np.ones((len(values), len(certainty)), dtype=bool)
    layers = np.ones(going.shape, dtype=np.uint8 if certainty.shape[1] < 256 else np.int64)
    for layer in range(1, certainty.shape[1]):
        if layer not in off:
            column = values if values.ndim == 1 else values[:, layer - 1]
            if column.ndim == 2:
                assert predicted is not None, "thresholds per class need the predicted class"
                column = column[:, predicted[:, layer - 1]]
            else:
                column = column[:, None]
            going &= ~criterion.exits(certainty[:, layer - 1], column)
        layers += going
    return layers
