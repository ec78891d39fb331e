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
from berxit.runtime.json_data import parse, to_json
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
from berxit.runtime.policies.learned import feature_names
from berxit.train.evaluation import Predictions
from berxit.train.fitting import ExitLinks, agreement, fit_temperatures, fit_weights

TOLERANCE = 0.5
"""Tolerance of patience on regression if none was searched for; the policy's default, in label units."""
FOLDS = 5
"""Of cross-fitting."""
LEAST_ROWS = 50
"""Smallest number of rows for a fit."""
PROBABILITY = "confidence"
"""The criterion whose direction and range are those of a probability."""
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
    fit_temperatures: bool = False
    """Fit a temperature per exit."""
    thresholds_per_exit: bool = False
    """Fit a threshold per exit: the thresholds at which exits agree with full depth with equal probability."""

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
        return {name: to_json(value) for name, value in found.items() if value != getattr(defaults, name)} or None

    @property
    def is_fitted(self) -> bool:
        """True if the policy has parameters that are fitted on data."""
        return self.fit_temperatures or self.thresholds_per_exit or criterion_named(self.criterion).fitted

    def check(self, predictions: Predictions) -> None:
        """Raises InputError for a specification that does not fit the model or the data."""
        if unknown := set(self.full_depth_classes) - set(predictions.names):
            known = f": it has {', '.join(predictions.names)}" if predictions.names else ", which has none"
            raise InputError(f"'{min(unknown)}' is no class of this model{known}")
        layers = int(predictions.exit_layers[-1])
        if not 1 <= self.patience <= layers:
            raise InputError(f"patience is {self.patience}: it must be a number of exits, from 1 to {layers}")
        if wrong := [layer for layer in self.off if not 1 <= layer < layers]:
            raise InputError(f"exit {wrong[0]} cannot be switched off: the model has layers 1 to {layers}")
        if self.fit_temperatures and predictions.regression:
            raise InputError("temperatures need class probabilities: calibrate a regression model without them")
        if predictions.task_kind.several and (self.fit_temperatures or self.full_depth_classes):
            what = "--full-depth-class" if self.full_depth_classes else "--fit-temperatures"
            raise InputError(f"{what} needs one class per text: omit it for a {predictions.kind} model")
        if self.thresholds_per_exit and criterion_named(self.criterion).fitted:
            raise InputError(f"'{self.criterion}' is comparable between exits: calibrate without thresholds per exit")
        if self.thresholds_per_exit and criterion_named(self.criterion).counts:
            raise InputError(f"'{self.criterion}' counts exits: calibrate without thresholds per exit")
        if self.is_fitted and (rows := len(predictions.labels)) < LEAST_ROWS:
            raise InputError(
                f"fitting needs at least {LEAST_ROWS} examples, and the data has {rows}: calibrate on more data, or"
                " with --criterion confidence and without fitted temperatures and thresholds per exit"
            )


@dataclass(frozen=True)
class FittedSpec:
    """A specification with its fitted parameters, for the n exits of a pass."""

    policy: ExitPolicy
    """The policy without early exits."""
    links: ExitLinks | None
    """The threshold of exit i is that of the probability which its link gives; None: all exits have one threshold."""

    @classmethod
    def fit(cls, spec: PolicySpec, predictions: Predictions, tolerance: float) -> FittedSpec:
        """Fits the parameters on all rows of a pass. Raises InputError for a criterion that does not fit the model."""
        p, criterion, exits = predictions, criterion_named(spec.criterion), predictions.exit_layers.tolist()
        outputs = p.outputs
        plain = ExitPolicy(
            spec.criterion,
            (criterion.never(p.layers, outputs),) * (p.layers - 1),
            fit_temperatures(p) if spec.fit_temperatures else (1.0,) * p.layers,
            tolerance,
            min(spec.patience, p.layers),
            tuple(exits.index(layer) + 1 for layer in spec.off if layer in exits),
            ((0.0,) * (len(feature_names(outputs)) + 1),) * (p.layers - 1) if criterion.fitted else (),
        )
        plain.check(outputs=outputs, lte=p.lte is not None, several=p.task_kind.several)
        policy = replace(plain, weights=fit_weights(p, plain)) if criterion.fitted else plain
        if not spec.thresholds_per_exit:
            return cls(policy, None)
        certainty = certainties(policy, p.logits, p.lte)
        return cls(policy, ExitLinks.fit(criterion, outputs, certainty, agreement(p)))

    def certainty(self, predictions: Predictions) -> npt.NDArray:
        """(N, n) certainties on any rows; with links, probabilities of agreement."""
        found = certainties(self.policy, predictions.logits, predictions.lte)
        return found if self.links is None else self.links.probabilities(found)


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
    fitted: FittedSpec
    certainty: npt.NDArray
    """(N, n) certainties, cross-fitted if the specification has fitted parameters."""
    full_depth_classes: tuple[int, ...] = ()
    """Predicted classes for which no row exits early."""

    @property
    def policy(self) -> ExitPolicy:
        """The policy without early exits, for the exits of the pass."""
        return self.fitted.policy

    @property
    def criterion(self) -> Criterion:
        """Direction and range of the certainties: those of a probability with thresholds per exit."""
        return CRITERIA[self.policy.criterion if self.fitted.links is None else PROBABILITY]

    @property
    def never(self) -> float:
        """The threshold at which no row exits early."""
        return self.criterion.never(self.predictions.layers, self.predictions.outputs)

    def grid(self) -> list[float]:
        """Thresholds that do not depend on the data, from full depth towards lower cost."""
        return self.criterion.grid(self.predictions.layers, self.predictions.outputs)

    def candidates(self, count: int = 200) -> list[float]:
        """Thresholds from "always exit" to "never exit", spread evenly over the certainties in the data.

        Each one is the midpoint of two certainties, so that rounding on a device changes no row's exit.
        """
        if self.criterion.counts:
            return self.grid()[::-1]
        always = self.criterion.always(self.predictions.layers, self.predictions.outputs)
        values = np.unique(self.certainty[:, :-1])
        middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(values.dtype)
        middles = middles[(middles > values[:-1]) & (middles < values[1:])]  # Adjacent floats have no midpoint.
        spread = middles[np.linspace(0, len(middles) - 1, min(count - 2, len(middles))).astype(int)]
        return [always, *(spread if self.criterion.higher_is_more_certain else spread[::-1]).tolist(), self.never]

    def exits_taken(self, thresholds: Sequence[float]) -> npt.NDArray[np.integer]:
        """(T, N) number of the exit (1 to n) of each row under each of T thresholds.

        Raises InputError for a threshold out of range.
        """
        p, values = self.predictions, np.array([float(threshold) for threshold in thresholds])
        if self.full_depth_classes:
            values = np.tile(values[:, None, None], (1, p.layers - 1, p.outputs))
            values[:, :, self.full_depth_classes] = self.never
        return exit_layers_at(self.criterion, self.certainty, values, p.predicted(), self.policy.off)

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
        p, links = self.predictions, self.fitted.links
        entries = (float(threshold),) * (p.layers - 1) if links is None else links.thresholds(threshold)
        thresholds: tuple[float | tuple[float, ...], ...] = entries
        if self.full_depth_classes:
            never = CRITERIA[self.policy.criterion].never(p.layers, p.outputs)
            classes = range(p.outputs)
            thresholds = tuple(
                tuple(never if number in self.full_depth_classes else entry for number in classes) for entry in entries
            )
        return replace(self.policy, thresholds=thresholds).spread_over(p.exit_layers.tolist())

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
    spec.check(predictions)
    fitted = FittedSpec.fit(spec, predictions, tolerance)
    certainty = fitted.certainty(predictions)
    if spec.is_fitted:
        fold_of = folds(len(predictions.labels))
        for fold in range(FOLDS):
            rest = FittedSpec.fit(spec, predictions.select_rows(np.flatnonzero(fold_of != fold)), tolerance)
            held_out = np.flatnonzero(fold_of == fold)
            certainty[held_out] = rest.certainty(predictions.select_rows(held_out))
    classes = tuple(predictions.names.index(name) for name in spec.full_depth_classes)
    return PolicyFamily(predictions, fitted, certainty, classes).check()


def folds(rows: int) -> npt.NDArray[np.int64]:
    """(N,) fold of each row, from 0 to FOLDS - 1, in random order."""
    return np.random.default_rng(0).permutation(rows) % FOLDS


def families(predictions: Predictions, spec: PolicySpec, *, fixed: bool = False) -> list[PolicyFamily]:
    """The families among which a rule chooses: one, but one per tolerance for patience on regression.

    ``fixed``: tolerances that do not depend on the data, as a guarantee requires. Raises as ``family`` does.
    """
    counts, spread = criterion_named(spec.criterion).counts, float(np.ptp(predictions.labels))
    if not predictions.regression or not (counts or spec.is_fitted):
        return [family(predictions, spec)]
    if not counts:
        return [family(predictions, spec, spread)]
    tolerances = [share * spread for share in FIXED_TOLERANCES] if fixed else candidate_tolerances(predictions)
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
    """The adaptive criteria that fit the model and the number of rows, in the order of CRITERIA."""
    return [
        name
        for name, criterion in CRITERIA.items()
        if criterion.adaptive
        and (criterion.for_regression or not predictions.regression)
        and not (criterion.needs_lte and predictions.lte is None)
        and not (criterion.fitted and predictions.task_kind.several)
        and not (criterion.fitted and len(predictions.labels) < LEAST_ROWS)
    ]
