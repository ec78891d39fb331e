"""Sweeps: the outcomes of many exit policies on the rows of a pass. Trade-off curves and their bootstrap use them.

Two kinds of sweep:

- An oracle sweep applies all thresholds of one family to the rows that are reported. Its curve is an oracle curve: a
  user cannot pick a point of it without these rows.
- A held-out sweep chooses every policy on other rows (cross-fitting): the rows of a fold are predicted under the policy
  that was chosen on the other folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.metrics import METRICS
from berxit.train.curves import Curve
from berxit.train.evaluation import Predictions
from berxit.train.families import (
    OperatingPoint,
    PolicyFamily,
    PolicySpec,
    exits_under,
    families,
    folds,
    predicted_at,
)

LAYER_WISE = "fixed"
"""The criterion under which all rows exit at the same layer."""
COSTS_PER_LAYER = 8
"""Costs per layer for which a held-out sweep chooses a policy."""

Candidate = tuple[PolicyFamily, OperatingPoint]
"""A family of policies, and the point of one of its thresholds on the rows of the choice."""
Chooser = Callable[[npt.NDArray[np.intp], list[Candidate]], list[Candidate]]
"""Maps the rows of a choice and all candidates to T chosen candidates."""


@dataclass(frozen=True)
class Sweep:
    """Outcomes of T policies on the N rows of a pass."""

    predictions: Predictions
    predicted: npt.NDArray
    """(T, N) class numbers or values."""
    layers: npt.NDArray[np.integer]
    """(T, N) the layer of the model at which each row exits."""
    oracle: bool
    """True if all rows have the same thresholds, which were not chosen on other rows."""

    @property
    def depth(self) -> int:
        """Number of layers of the model."""
        return int(self.predictions.exit_layers[-1])

    @property
    def costs(self) -> npt.NDArray[np.float64]:
        """(T,) average exit layers."""
        return np.asarray(self.layers.mean(axis=1, dtype=np.float64))

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """(T,) scores of the task's metric."""
        return METRICS[self.predictions.metric].scores(self.predicted, self.predictions.labels)

    def curve(self) -> Curve:
        """Score over average exit layer. Policies with equal average exit layer have one point: their mean score."""
        layers, place = np.unique(self.costs, return_inverse=True)
        return Curve(layers, np.bincount(place, self.scores) / np.bincount(place), self.depth)


def sweep(predictions: Predictions, criterion: str) -> Sweep:
    """The trade-off of a criterion: an oracle sweep over its thresholds.

    Patience on regression has a second parameter, the tolerance. Its sweep is held out: for each cost, patience and
    tolerance are those with the best score on the other folds. Raises as ``families`` does.
    """
    spec = PolicySpec(criterion)
    tried = families(predictions, spec)
    if len(tried) > 1:
        n = int(predictions.exit_layers[-1])
        return held_out(predictions, spec, within(np.linspace(1, n, COSTS_PER_LAYER * (n - 1) + 1)))
    (only,) = tried
    taken = only.exits_taken(only.candidates())
    return Sweep(predictions, predicted_at(predictions, taken), predictions.exit_layers[taken - 1], oracle=True)


def held_out(predictions: Predictions, spec: PolicySpec, choose: Chooser) -> Sweep:
    """The policies that ``choose`` selects on the other folds, for every fold. Raises as ``families`` does."""
    outcomes = list(_by_fold(predictions, spec, choose))
    rows = np.argsort(np.concatenate([held for held, _, _ in outcomes]))
    predicted = np.concatenate([found for _, found, _ in outcomes], axis=1)[:, rows]
    return Sweep(predictions, predicted, np.concatenate([at for _, _, at in outcomes], axis=1)[:, rows], oracle=False)


def _by_fold(
    predictions: Predictions, spec: PolicySpec, choose: Chooser
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray, npt.NDArray[np.integer]]]:
    """For each fold its rows (F,), their predictions (T, F) and their exit layers (T, F)."""
    fold_of = folds(len(predictions.labels))
    for fold in np.unique(fold_of):
        seen, held = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        tried = families(predictions.select_rows(seen), spec)
        candidates = [(each, point) for each in tried for point in each.points(each.candidates())]
        part = predictions.select_rows(held)
        policies = [family.policy_at(point.threshold) for family, point in choose(seen, candidates)]
        taken = np.stack([exits_under(part, policy) for policy in policies])
        yield held, predicted_at(part, taken), part.exit_layers[taken - 1]


def within(costs: Sequence[float] | npt.NDArray) -> Chooser:
    """Chooses for each cost (an average exit layer) the most expensive candidate of each family that does not exceed
    it, and of these the one with the best score. If there is none, the cheapest candidate."""

    def choose(rows: npt.NDArray[np.intp], candidates: list[Candidate]) -> list[Candidate]:
        chosen = []
        for cost in costs:
            most: dict[int, Candidate] = {}
            for candidate in candidates:
                family, point = candidate
                if point.average_exit_layer <= cost + 1e-9:
                    before = most.get(id(family))
                    if before is None or point.average_exit_layer >= before[1].average_exit_layer:
                        most[id(family)] = candidate
            best = max(most.values(), key=lambda found: found[1].score, default=None)
            chosen.append(best or min(candidates, key=_cost))
        return chosen

    return choose


def reaching(targets: Callable[[npt.NDArray[np.intp]], Sequence[float]]) -> Chooser:
    """Chooses for each target score the cheapest candidate that reaches it, or full depth if none does. ``targets``:
    the rows of the choice -> the target scores on these rows."""

    def choose(rows: npt.NDArray[np.intp], candidates: list[Candidate]) -> list[Candidate]:
        full = max(candidates, key=_cost)
        return [
            min((found for found in candidates if found[1].score >= target), key=_cost, default=full)
            for target in targets(rows)
        ]

    return choose


def _cost(candidate: Candidate) -> tuple[float, float]:
    return candidate[1].average_exit_layer, -candidate[1].score
