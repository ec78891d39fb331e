"""Risks that ``--risk`` bounds: the loss of a row, the rows that count, and the test of a bound.

A loss compares a policy's prediction with full depth's, with the label, or with one class. A risk is the expected loss
over the rows of a group: all rows, one class (``per class``), or the rows that exit by a layer (``per exit``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError
from berxit.runtime.risk import betting_p_value, hoeffding_bentkus, rows_needed
from berxit.train.evaluation import Predictions

DISAGREEMENT, LABEL_ERROR, MISSES = "disagreement", "label-error", "misses:"
OF = (DISAGREEMENT, LABEL_ERROR, f"{MISSES}CLASS")
"""Values of ``--risk-of``."""
PER = ("all", "class", "exit")
"""Values of ``--per``."""


@dataclass(frozen=True)
class Loss:
    """Losses of predictions on the rows of a pass."""

    predictions: Predictions
    of: str

    def __post_init__(self) -> None:
        """Raises InputError for a loss that does not exist, or that does not fit the data."""
        if self.of.startswith(MISSES):
            self._positive()
        elif self.of not in (DISAGREEMENT, LABEL_ERROR):
            raise InputError(f"--risk-of {self.of} is unknown: choose one of {', '.join(OF)}")
        if self.predictions.unlabelled and self.of != DISAGREEMENT:
            raise InputError(f"--risk-of {self.of} needs labels, and this data has none: use --risk-of {DISAGREEMENT}")

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """(M,) the rows that count: all, or those with the class or label that must not be missed."""
        p = self.predictions
        return np.flatnonzero(self._has(p.labels)) if self.of.startswith(MISSES) else np.arange(len(p.labels))

    def __call__(self, predicted: npt.NDArray) -> npt.NDArray[np.float64]:
        """Losses of predictions (..., N) on the rows that count -> (..., M).

        From 0 to 1; for ``label-error`` from -1 to 1, the error minus that of full depth.
        """
        p, rows = self.predictions, self.rows
        predicted, full, labels = predicted[..., rows], p.full_depth[rows], p.labels[rows]
        if self.of.startswith(MISSES):
            return np.asarray(~self._has(predicted), dtype=np.float64)
        if self.of == DISAGREEMENT:
            return self._error(predicted, full)
        return self._error(predicted, labels) - self._error(full, labels)

    def p_value(self, losses: npt.NDArray[np.float64], risk: float) -> float:
        """The p-value of the hypothesis that the risk is above ``risk``, for losses (M,). 1 for no rows."""
        if not len(losses):
            return 1.0
        if self.of == LABEL_ERROR:
            return betting_p_value(losses, risk)
        return hoeffding_bentkus(float(losses.mean()), len(losses), risk)

    def least_rows(self, risk: float, delta: float) -> int:
        """Number of rows from which a sample without any loss passes the test."""
        if self.of != LABEL_ERROR:
            return rows_needed(risk, delta)
        rows = 1
        while betting_p_value(np.zeros(rows), risk) > delta:
            rows += max(1, rows // 50)
        return rows

    def _error(self, predicted: npt.NDArray, target: npt.NDArray) -> npt.NDArray[np.float64]:
        """1 for another class, else 0; for regression the difference as a share of the labels' range, at most 1."""
        p = self.predictions
        if not p.regression:
            return np.asarray(predicted != target, dtype=np.float64)
        spread = float(np.ptp(p.labels)) or 1.0
        return np.minimum(np.abs(predicted.astype(np.float64) - target) / spread, 1)

    def _has(self, numbers: npt.NDArray) -> npt.NDArray[np.bool_]:
        """True for each prediction or label that is, or contains, the class that must not be missed."""
        return self.predictions.task_kind.has(numbers, self._positive(), self.predictions.names)

    def _positive(self) -> int:
        name, names = self.of.removeprefix(MISSES), self.predictions.names
        if name not in names:
            known = f"it has {', '.join(names)}" if names else "regression models have no classes"
            raise InputError(f"--risk-of {self.of}: the model has no class '{name}'; {known}")
        return names.index(name)


@dataclass(frozen=True)
class GroupTest:
    """Test of the hypothesis that the risk of some group is above a bound."""

    loss: Loss
    risk: float
    groups: Sequence[npt.NDArray[np.integer]]
    """Rows of each group."""

    def p_value(self, predicted: npt.NDArray) -> float:
        """The largest p-value of all groups, for predictions (N,). It is valid for "some group is above the bound"."""
        losses = np.full(predicted.shape, np.nan)
        losses[self.loss.rows] = self.loss(predicted)
        return max(self.loss.p_value(losses[rows], self.risk) for rows in self.groups)


def classes_of(loss: Loss) -> list[npt.NDArray[np.int64]]:
    """For ``per class``: the rows of each class, by label; for ``disagreement`` by full depth's prediction.

    Raises InputError for regression and for ``misses``, which is the risk of one class already.
    """
    p = loss.predictions
    if p.task_kind.name != "classification" or loss.of.startswith(MISSES):
        raise InputError("--per class needs a classification model, and --risk-of disagreement or label-error")
    groups = p.full_depth if loss.of == DISAGREEMENT else p.labels
    return [np.flatnonzero(groups == number) for number in range(p.outputs)]
