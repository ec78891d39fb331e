"""A risk that is bounded among the rows that exit at layer k or before, for every k.

The early exits are rare, so at a strict threshold too few rows exit there for a test. One half of the rows therefore
decides which exits to switch off at each threshold and in which order to test the results. The other half tests them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from berxit.train.evaluation import Predictions
from berxit.train.families import PolicyFamily, PolicySpec, family
from berxit.train.risks import Loss

GRID = 40
"""Number of thresholds that are tried."""
MARGIN = 0.5
"""On the first half, an exit must pass at this share of delta, so that it probably passes on the second half."""


@dataclass(frozen=True)
class PerExitChoice:
    """The threshold, the exits that are switched off (layers of the model), and whether a test succeeded."""

    threshold: float
    off: tuple[int, ...]
    met: bool


@dataclass(frozen=True)
class _Half:
    """A half of the rows, under policies of one specification."""

    predictions: Predictions
    spec: PolicySpec
    loss: Loss
    risk: float

    def family(self, off: tuple[int, ...]) -> PolicyFamily:
        return family(self.predictions, replace(self.spec, off=off))

    def p_values(self, threshold: float, off: tuple[int, ...]) -> dict[int, float]:
        """Exit number (1 to n - 1) at which a row exits -> the p-value of the rows that exit there or before."""
        each = self.family(off)
        taken = each.exits_taken([threshold])[0]
        losses = np.full(len(taken), np.nan)
        losses[self.loss.rows] = self.loss(each.predicted([threshold])[0])
        counted = ~np.isnan(losses)
        return {
            int(number): self.loss.p_value(losses[counted & (taken <= number)], self.risk)
            for number in np.unique(taken)
            if number < self.predictions.layers
        }


def choose_per_exit(predictions: Predictions, spec: PolicySpec, loss: Loss, risk: float, delta: float) -> PerExitChoice:
    """The cheapest policy whose risk among the rows that exit at layer k or before is at most ``risk`` for every k,
    with probability 1 - ``delta``. Full depth if no policy passes.

    The candidates are tested in the order of their p-values on the first half, and the first failure ends the sequence
    (fixed sequence testing). A policy's p-value is the largest of its exits.
    """
    order = np.random.default_rng(0).permutation(len(predictions.labels))
    halves = np.sort(order[::2]), np.sort(order[1::2])
    first, second = (
        _Half(part, spec, Loss(part, loss.of), risk) for part in (predictions.select_rows(rows) for rows in halves)
    )
    never = first.family(spec.off).never
    chosen, least = PerExitChoice(never, spec.off, met=False), float(predictions.exit_layers[-1])
    for _, threshold, off in sorted(_candidates(first, delta)):
        tested = second.p_values(threshold, off)
        if not tested or max(tested.values()) > delta:
            break
        average = second.family(off).points([threshold])[0].average_exit_layer
        if average < least:
            chosen, least = PerExitChoice(threshold, off, met=True), average
    return chosen


def _candidates(half: _Half, delta: float) -> Iterator[tuple[float, float, tuple[int, ...]]]:
    """The largest p-value, the threshold, and the exits that are switched off, of each policy that exits early."""
    exits = half.predictions.exit_layers.tolist()
    grid = half.family(half.spec.off).grid()
    for threshold in grid[1 :: max(1, len(grid) // GRID)]:
        off = half.spec.off
        while failing := [k for k, p in half.p_values(threshold, off).items() if p > MARGIN * delta]:
            off = (*off, exits[failing[0] - 1])
        if left := half.p_values(threshold, off):
            yield max(left.values()), threshold, off
