"""Families of exit policies on a stored pass: policies that differ in one threshold only. Rules choose from them.

A family is built from a ``PolicySpec``. Parameters that are fitted on data (temperatures, thresholds per exit, the
criterion ``learned``) are cross-fitted: the certainties of a row come from a fit on the other folds, so that fitting
and the choice of the threshold never share a row. The stored policy has the parameters that were fitted on all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.runtime.calibration import Calibration
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import parse
from berxit.runtime.metrics import METRICS
from berxit.runtime.policies import (
    CRITERIA,
    Criterion,
    ExitPolicy,
    certainties,
    criterion_named,
    exit_layers,
    exit_layers_at,
)
from berxit.train.evaluation import Predictions

TOLERANCE = 0.5
"""Tolerance of patience on regression if none was searched for; the policy's default, in label units."""
FIXED_TOLERANCES = (0.02, 0.05, 0.1, 0.2)
"""Tolerances of patience on regression under a guarantee, as shares of the labels' range. The guarantee requires that
they do not depend on the data."""


@dataclass(frozen=True)
class PolicySpec:
    """Everything about a policy except its threshold, which a rule chooses."""

    criterion: str
    patience: int = 1
    """Number of consecutive exits that must pass the threshold."""
    off: tuple[int, ...] = ()
    """Layers of the model whose exit is switched off."""
    full_depth_classes: tuple[str, ...] = ()
    """Classes for which no input exits early: the threshold of these classes is ``never``."""

    @classmethod
    def of(cls, calibration: Calibration) -> PolicySpec:
        """The specification in a calibration record. Raises BerxitError for settings that do not exist."""
        data = {"criterion": calibration.criterion, **(calibration.settings or {})}
        spec: PolicySpec = parse(PolicySpec, data, "calibration: settings")
        return spec

    @property
    def settings(self) -> dict[str, Any] | None:
        """The fields besides the criterion that do not have their defaults, for the calibration record."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "criterion"}
        defaults = PolicySpec(self.criterion)
        return {name: value for name, value in found.items() if value != getattr(defaults, name)} or None

    def policy(self, predictions: Predictions, tolerance: float = TOLERANCE) -> ExitPolicy:
        """The policy without early exits, for the exits of a pass.

        Raises InputError for a specification that does not fit the model.
        """
        criterion, exits = criterion_named(self.criterion), predictions.exit_layers.tolist()
        never = criterion.never(predictions.layers, predictions.logits.shape[2])
        policy = replace(
            ExitPolicy.uniform(self.criterion, never, predictions.layers, tolerance),
            patience=min(self.patience, predictions.layers),
            off=tuple(exits.index(layer) + 1 for layer in self.off if layer in exits),
        )
        policy.check(regression=predictions.regression, lte=predictions.lte is not None)
        if unknown := set(self.full_depth_classes) - set(predictions.names):
            known = f": it has {', '.join(predictions.names)}" if predictions.names else ", which has none"
            raise InputError(f"'{min(unknown)}' is no class of this model{known}")
        return policy


@dataclass(frozen=True)
class OperatingPoint:
    """Score and cost of one threshold: a point of the trade-off curve."""

    threshold: float
    average_exit_layer: float
    score: float
    histogram: tuple[int, ...]
    """(n,) number of examples that exit at each layer of the model."""
    tolerance: float = TOLERANCE
    """Patience on regression: largest difference that counts as agreement, in label units."""

    @property
    def saved_layers(self) -> float:
        """1 - average exit layer / n."""
        return 1 - self.average_exit_layer / len(self.histogram)


@dataclass(frozen=True)
class PolicyFamily:
    """Policies that differ in one threshold only, on the N rows and n exits of a stored pass."""

    predictions: Predictions
    policy: ExitPolicy
    """The policy without early exits, for the exits of the pass."""
    certainty: npt.NDArray
    """(N, n) certainties."""
    full_depth_classes: tuple[int, ...] = ()
    """Predicted classes for which no row exits early."""

    @property
    def criterion(self) -> Criterion:
        """Direction and range of the certainties."""
        return CRITERIA[self.policy.criterion]

    @property
    def never(self) -> float:
        """The threshold at which no row exits early."""
        return self.criterion.never(self.predictions.layers, self.predictions.logits.shape[2])

    def grid(self) -> list[float]:
        """Thresholds that do not depend on the data, from full depth towards lower cost."""
        return self.criterion.grid(self.predictions.layers, self.predictions.logits.shape[2])

    def candidates(self, count: int = 200) -> list[float]:
        """Thresholds from "always exit" to "never exit", spread evenly over the certainties in the data.

        Each one is the midpoint of two certainties, so that rounding on a device changes no row's exit.
        """
        if self.criterion.counts:
            return self.grid()[::-1]
        always = self.criterion.always(self.predictions.layers, self.predictions.logits.shape[2])
        values = np.unique(self.certainty[:, :-1])
        middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(values.dtype)
        middles = middles[(middles > values[:-1]) & (middles < values[1:])]  # Adjacent floats have no midpoint.
        spread = middles[np.linspace(0, len(middles) - 1, min(count - 2, len(middles))).astype(int)]
        return [always, *(spread if self.criterion.higher_is_more_certain else spread[::-1]).tolist(), self.never]

    def exits_taken(self, thresholds: Sequence[float]) -> npt.NDArray[np.integer]:
        """(T, N) number of the exit (1 to n) of each row under each of T thresholds.

        Raises InputError for a threshold out of range.
        """
        values = np.array([float(threshold) for threshold in thresholds])
        if not self.full_depth_classes:
            return exit_layers_at(self.policy, self.certainty, values)
        p = self.predictions
        table = np.tile(values[:, None, None], (1, p.layers - 1, p.logits.shape[2]))
        table[:, :, self.full_depth_classes] = self.never
        return exit_layers_at(self.policy, self.certainty, table, p.predicted())

    def predicted(self, thresholds: Sequence[float]) -> npt.NDArray:
        """(T, N) predictions under each of T thresholds: class numbers or values."""
        return predicted_at(self.predictions, self.exits_taken(thresholds))

    def points(self, thresholds: Sequence[float]) -> list[OperatingPoint]:
        """The operating point of each of T thresholds."""
        p, taken = self.predictions, self.exits_taken(thresholds)
        layers = p.exit_layers
        histograms = np.zeros((len(taken), layers[-1]), dtype=np.int64)
        counts = [(taken == number).sum(axis=1) for number in range(1, p.layers + 1)]
        histograms[:, layers - 1] = np.stack(counts, axis=1)
        averages = (histograms @ np.arange(1, layers[-1] + 1)) / taken.shape[1]
        scores = METRICS[p.metric].scores(predicted_at(p, taken), p.labels)
        found = zip(thresholds, averages, scores, histograms, strict=True)
        return [
            OperatingPoint(float(t), float(a), float(s), tuple(int(c) for c in h), self.policy.tolerance)
            for t, a, s, h in found
        ]

    def policy_at(self, threshold: float) -> ExitPolicy:
        """The policy with this threshold, for all layers of the model."""
        p, entry = self.predictions, float(threshold)
        if not self.full_depth_classes:
            chosen = self.policy.with_threshold(entry)
        else:
            classes = range(p.logits.shape[2])
            row = tuple(self.never if number in self.full_depth_classes else entry for number in classes)
            chosen = replace(self.policy, thresholds=(row,) * (p.layers - 1))
        return chosen.spread_over(p.exit_layers.tolist())

    def check(self) -> PolicyFamily:
        """This family. Raises BerxitError unless every row exits at the last layer under the threshold ``never``.

        Every rule falls back to full depth, so a criterion with a wrong range would break the guarantee.
        """
        early = int((self.exits_taken([self.never]) < self.predictions.layers).sum())
        if early:
            raise BerxitError(
                f"criterion '{self.policy.criterion}': {early} rows exit early at its threshold 'never',"
                f" {self.never:g}: fix never() or bounds() of its class"
            )
        return self


def family(predictions: Predictions, spec: PolicySpec, tolerance: float = TOLERANCE) -> PolicyFamily:
    """The policies of a specification on a stored pass. ``tolerance``: of patience on regression.

    Raises InputError for a specification that does not fit the model, BerxitError for a criterion whose threshold
    ``never`` does not reach the last layer.
    """
    policy = spec.policy(predictions, tolerance)
    certainty = certainties(policy, predictions.logits, predictions.lte)
    classes = tuple(predictions.names.index(name) for name in spec.full_depth_classes)
    return PolicyFamily(predictions, policy, certainty, classes).check()


def families(predictions: Predictions, spec: PolicySpec, *, fixed: bool = False) -> list[PolicyFamily]:
    """The families among which a rule chooses: one, but one per tolerance for patience on regression.

    ``fixed``: tolerances that do not depend on the data, as a guarantee requires. Raises as ``family`` does.
    """
    if not (criterion_named(spec.criterion).counts and predictions.regression):
        return [family(predictions, spec)]
    if fixed:
        tolerances = [share * float(np.ptp(predictions.labels)) for share in FIXED_TOLERANCES]
    else:
        tolerances = candidate_tolerances(predictions)
    return [family(predictions, spec, tolerance) for tolerance in tolerances]


def candidate_tolerances(predictions: Predictions) -> list[float]:
    """Tolerances of patience on regression: the 10th to 90th percentile of the differences between the predictions of
    consecutive exits. They adapt to the scale of the labels. A model with a single exit gets the default.
    """
    differences = np.abs(np.diff(predictions.predicted(), axis=1))
    spread = np.unique(np.quantile(differences, np.arange(0.1, 0.95, 0.1))) if differences.size else np.array([])
    return [float(tolerance) for tolerance in spread if tolerance > 0] or [TOLERANCE]


def operating_points(predictions: Predictions, spec: PolicySpec) -> list[OperatingPoint]:
    """The operating points of all candidate thresholds of all families. Raises as ``family`` does."""
    found = families(predictions, spec)
    return [point for each in found for point in each.points(each.candidates())]


def exits_under(predictions: Predictions, policy: ExitPolicy) -> npt.NDArray[np.integer]:
    """(N,) number of the exit (1 to n) of each row of a stored pass. ``policy`` is for all layers of the model."""
    policy = policy.at_exits(predictions.exit_layers.tolist())
    return exit_layers(policy, certainties(policy, predictions.logits, predictions.lte), predictions.logits)


def predicted_under(predictions: Predictions, policy: ExitPolicy) -> npt.NDArray:
    """(N,) predictions of a policy on a stored pass. ``policy`` is for all layers of the model."""
    return predicted_at(predictions, exits_under(predictions, policy)[None])[0]


def operating_point(predictions: Predictions, policy: ExitPolicy) -> OperatingPoint:
    """Score and cost of a policy on a stored pass. ``policy`` is for all layers of the model."""
    taken = exits_under(predictions, policy)
    layers = predictions.exit_layers[taken - 1]
    histogram = np.bincount(layers - 1, minlength=predictions.exit_layers[-1])
    first = policy.thresholds[0] if policy.thresholds else 0.0
    return OperatingPoint(
        min(first) if isinstance(first, tuple) else first,
        float(layers.mean()),
        predictions.score(predicted_at(predictions, taken[None])[0]),
        tuple(int(n) for n in histogram),
        policy.tolerance,
    )


def predicted_at(predictions: Predictions, taken: npt.NDArray) -> npt.NDArray:
    """The predictions at the exits taken: exit numbers (T, N) -> class numbers or values (T, N)."""
    return predictions.predicted()[np.arange(taken.shape[1]), taken - 1]


def applicable_criteria(predictions: Predictions) -> list[str]:
    """The criteria that fit the model, in the order of CRITERIA."""
    return [
        name
        for name, criterion in CRITERIA.items()
        if (criterion.for_regression or not predictions.regression)
        and not (criterion.needs_lte and predictions.lte is None)
    ]
