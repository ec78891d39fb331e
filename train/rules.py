"""Calibration rules: a share of the score to keep, a risk limit, or a latency budget.

A rule consists of its numbers and a function from a stored pass and a criterion to an operating point. The calibration
record contains the rule, so that it can be applied to another pass (fewer exits, another precision).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from berxit.devices import Machine, this_machine
from berxit.runtime.backend_options import backend_label
from berxit.runtime.errors import BerxitError, InputError, NoisyError
from berxit.runtime.json_data import parse, read_json
from berxit.runtime.measurement import Line
from berxit.runtime.noise import Noise, bench_problems, noisy
from berxit.runtime.policies import ExitPolicy
from berxit.train.backbones import adapter_for
from berxit.train.configuration import MultiExitConfig
from berxit.train.evaluation import Predictions
from berxit.train.families import (
    OperatingPoint,
    PolicyFamily,
    PolicySpec,
    families,
    family,
    operating_point,
    predicted_under,
)
from berxit.train.guarantee import KeepTest
from berxit.train.per_exit import choose_per_exit
from berxit.train.risks import DISAGREEMENT, LABEL_ERROR, MISSES, PER, GroupTest, Loss, classes_of

DELTA = 0.1
"""Default probability that a guarantee fails."""


@dataclass(frozen=True)
class Choice:
    """The policy that a rule chose on a stored pass."""

    policy: ExitPolicy
    """For all layers of the model."""
    point: OperatingPoint
    """Its score and cost on the pass."""
    predicted: npt.NDArray
    """(N,) its predictions."""
    met: bool
    """False if the rule is not satisfied, and the policy therefore never exits early."""


Candidate = tuple[PolicyFamily, OperatingPoint]
"""A family of policies, and the point of one of its thresholds."""


def _choice(chosen: Candidate, met: Callable[[npt.NDArray], bool]) -> Choice:
    """The choice of a candidate. ``met``: predictions (N,) -> whether they satisfy the rule.

    The rule judges the cross-fitted predictions; point and predictions of the choice are those of the stored policy.
    """
    family, point = chosen
    policy = family.policy_at(point.threshold)
    return Choice(
        policy,
        replace(operating_point(family.predictions, policy), threshold=point.threshold),
        predicted_under(family.predictions, policy),
        met(family.predicted([point.threshold])[0]),
    )


@dataclass(frozen=True)
class Keep:
    """The cheapest threshold whose score on new data is at least ``keep`` times full depth's, with probability
    1 - ``delta`` over the choice of calibration data.

    New inputs must follow the distribution of the calibration data. Full depth is the checkpoint's, also for a bundle
    in another precision. The method is fixed sequence testing, as for ``Risk``: a grid of thresholds that does not
    depend on the data is tested from full depth towards lower cost, and the first failure ends the sequence. The test
    is a paired bootstrap (``KeepTest``).

    ``optimistic``: instead the cheapest threshold whose score on the calibration data is high enough. It was chosen for
    that score, so its score on new data is lower: on MRPC and SST-2 with 400 rows, 58% and 66% of such choices kept
    98.5% instead of the requested 99%.
    """

    needs_labels: ClassVar[bool] = True
    stricter: ClassVar[str] = "a higher --keep"

    keep: float = 0.99
    delta: float = DELTA
    optimistic: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(
                f"--keep {self.keep} is out of range: give a share of the last exit's score, above 0 and at most 1"
            )
        if not 0 < self.delta < 1:
            raise InputError(f"--delta {self.delta} is out of range: give a number above 0 and below 1")

    def describe(self, metric: str, chosen: str = "threshold") -> str:
        """The rule as a phrase. ``chosen``: what it chooses."""
        if self.optimistic:
            return f"the cheapest {chosen} that keeps {self.keep:g} of the last exit's {metric} on the calibration data"
        return (
            f"the cheapest {chosen} that keeps {self.keep:g} of the last exit's {metric} on new data, with probability"
            f" {1 - self.delta:g}"
        )

    def choose(self, predictions: Predictions, spec: PolicySpec) -> Choice:
        """The choice; full depth if no threshold passes.

        Raises BerxitError if the full-depth score is not above zero.
        """
        full = predictions.full_depth_score
        if not full > 0:
            raise BerxitError(
                f"the last exit's {predictions.metric} is {full:.3f} on the calibration data: --keep needs a score"
                " above 0. Train longer"
            )
        return self._optimistic(predictions, spec) if self.optimistic else self._tested(predictions, spec)

    def _optimistic(self, predictions: Predictions, spec: PolicySpec) -> Choice:
        enough = self.keep * predictions.full_depth_score
        points = [(each, point) for each in families(predictions, spec) for point in each.points(each.candidates())]
        good = [(each, point) for each, point in points if point.score >= enough]
        # The last candidate threshold never exits early.
        return _choice(_cheapest(good or points[-1:]), lambda predicted: predictions.score(predicted) >= enough)

    def _tested(self, predictions: Predictions, spec: PolicySpec) -> Choice:
        tried = families(predictions, spec, fixed=True)
        test, delta = KeepTest(predictions, self.keep), self.delta / len(tried)
        safe: list[Candidate] = []
        for each in tried:
            thresholds = each.grid()
            predicted = each.predicted(thresholds)
            passed = 1
            while passed < len(thresholds):
                tested_already = passed > 1 and np.array_equal(predicted[passed], predicted[passed - 1])
                if not tested_already and test.p_value(predicted[passed]) > delta:
                    break
                passed += 1
            safe += [(each, point) for point in each.points(thresholds[:passed])]
        return _choice(_cheapest(safe), lambda predicted: test.p_value(predicted) <= delta)


@dataclass(frozen=True)
class Risk:
    """The cheapest operating point whose risk is at most ``risk`` with probability 1 - ``delta`` over the choice of
    calibration data.

    The risk is the expected loss on new inputs, provided that they follow the same distribution. ``of`` names the loss
    of a row:

    - ``disagreement``: 1 if the prediction differs from full depth's, else 0. Needs no labels.
    - ``label-error``: the error minus that of full depth (1, 0 or -1), so the risk is the error that early exits add.
    - ``misses:CLASS``: 1 if a row of this class gets another prediction, else 0. Only rows of the class count.

    For regression an error is the difference as a share of the labels' range, at most 1. ``per``: ``all`` rows
    together; ``class``: the risk of every class is bounded; ``exit``: the risk of the rows that exit at layer k or
    before is bounded for every k, because a bound on the average can hide wrong early exits (Ringel et al., 2024,
    arXiv 2402.00857).

    The method is Learn-then-Test with fixed sequence testing (Angelopoulos et al., 2021, "Learn then Test: Calibrating
    Predictive Algorithms to Achieve Risk Control", arXiv 2110.01052). A grid of thresholds that does not depend on the
    data is tested from full depth towards lower cost; the first failure ends the sequence. The p-value is that of
    Hoeffding and Bentkus, for ``label-error`` that of betting. A bound on several groups is tested by the largest of
    their p-values. Patience on regression has one sequence per tolerance, which share delta.
    """

    stricter: ClassVar[str] = "a lower --risk"

    risk: float
    delta: float = DELTA
    of: str = DISAGREEMENT
    per: str = "all"

    def __post_init__(self) -> None:
        for flag, value in (("risk", self.risk), ("delta", self.delta)):
            if not 0 < value < 1:
                raise InputError(f"--{flag} {value} is out of range: give a number above 0 and below 1")
        if self.per not in PER:
            raise InputError(f"--per {self.per} is unknown: choose one of {', '.join(PER)}")

    @property
    def needs_labels(self) -> bool:
        """False if the loss compares with full depth only."""
        return self.of != DISAGREEMENT

    def describe(self, metric: str, chosen: str = "threshold") -> str:
        """The rule as a phrase. ``chosen``: what it chooses."""
        among = {"all": "on average", "class": "in every class", "exit": "among the inputs that exit by any layer"}
        if self.of == DISAGREEMENT:
            bound = f"whose predictions differ from the last exit's by at most {self.risk:g} {among[self.per]}"
        elif self.of == LABEL_ERROR:
            bound = f"whose error exceeds the last exit's by at most {self.risk:g} {among[self.per]}"
        else:
            bound = f"that misses at most {self.risk:g} of class '{self.of.removeprefix(MISSES)}'"
        return f"the cheapest {chosen} {bound}, with probability {1 - self.delta:g}"

    def choose(self, predictions: Predictions, spec: PolicySpec) -> Choice:
        """The choice; full depth if no test succeeds. Full depth has no loss, except on the pass of a bundle.

        Raises InputError for a loss that does not fit the data, if there are too few examples for any test to succeed,
        and if full depth itself misses too much of a class.
        """
        loss = Loss(predictions, self.of)
        groups = classes_of(loss) if self.per == "class" else [loss.rows]
        tried = families(predictions, spec, fixed=True)
        delta = self.delta / len(tried)
        self._check_rows(loss, groups, delta)
        test = GroupTest(loss, self.risk, groups)
        if self.of.startswith(MISSES) and predictions.reference is None:
            self._check_full_depth(loss, test, delta)
        if self.per == "exit":
            return self._per_exit(predictions, spec, loss)
        safe: list[Candidate] = []
        for each in tried:
            thresholds = each.grid()
            predicted = each.predicted(thresholds)
            passed = 1  # the first threshold never exits early
            while passed < len(thresholds):
                tested_already = passed > 1 and np.array_equal(predicted[passed], predicted[passed - 1])
                if not tested_already and test.p_value(predicted[passed]) > delta:
                    break
                passed += 1
            safe += [(each, point) for point in each.points(thresholds[:passed])]
        return _choice(_cheapest(safe), lambda predicted: test.p_value(predicted) <= delta)

    def _per_exit(self, predictions: Predictions, spec: PolicySpec, loss: Loss) -> Choice:
        found = choose_per_exit(predictions, spec, loss, self.risk, self.delta)
        each = family(predictions, replace(spec, off=found.off))
        return _choice((each, each.points([found.threshold])[0]), lambda predicted: found.met)

    def _check_rows(self, loss: Loss, groups: Sequence[npt.NDArray], delta: float) -> None:
        """Raises InputError if a group has too few rows for any test to succeed."""
        least = loss.least_rows(self.risk, delta)
        fewest = min(map(len, groups))
        if fewest < least:
            of = {"class": " of every class", "all": "", "exit": ""}[self.per]
            of = f" of class '{loss.of.removeprefix(MISSES)}'" if loss.of.startswith(MISSES) else of
            raise InputError(
                f"--risk {self.risk:g} --delta {self.delta:g} needs at least {least} examples{of}, and the calibration"
                f" data has {fewest}: calibrate on more data, or with a higher --risk or --delta"
            )

    def _check_full_depth(self, loss: Loss, test: GroupTest, delta: float) -> None:
        full = loss.predictions.full_depth
        if test.p_value(full) > delta:
            name, missed = loss.of.removeprefix(MISSES), float(loss(full).mean())
            raise InputError(
                f"full depth itself misses {missed:.1%} of the {len(loss.rows)} examples of class '{name}', so"
                f" --risk {self.risk:g} cannot be guaranteed: give a higher --risk, or train longer"
            )


@dataclass(frozen=True)
class Budget:
    """The operating point with the best score whose mean latency, predicted from a bench, is at most ``budget_ms``."""

    needs_labels: ClassVar[bool] = True
    stricter: ClassVar[str] = "a higher --budget-ms"

    budget_ms: float
    intercept_ms: float
    ms_per_layer: float
    measured: str
    """The bench: file, device and backend."""

    def __post_init__(self) -> None:
        if not 0 < self.budget_ms < math.inf:
            raise InputError(f"--budget-ms {self.budget_ms} is out of range: give milliseconds, above 0 and finite")
        if not (math.isfinite(self.intercept_ms) and 0 < self.ms_per_layer < math.inf):
            raise InputError(
                f"{self.measured}: the bench gives {self.ms_per_layer:.3g} ms per layer, which cannot predict latency:"
                " rerun berxit-bench when no other process is busy"
            )

    @classmethod
    def of_bench(cls, budget_ms: float, bench: Path, config: MultiExitConfig, *, accept_noise: bool = False) -> Budget:
        """The rule for a bench: bench.json, or its folder. ``config`` is the checkpoint's.

        Raises InputError if there is no bench, or if it is of another task, of another number of layers, or of one
        depth only. Raises BerxitError for a file that is not a bench.json, and NoisyError for a bench of a busy machine
        unless ``accept_noise``.
        """
        path = bench / "bench.json" if bench.is_dir() else bench
        if not path.is_file():
            raise InputError(f"no bench at {path}: give the bench.json that berxit-bench wrote, or its folder")
        data = read_json(path)
        if missing := {"line", "task", "layers", "device", "backend", "machine"} - set(data):
            raise BerxitError(f"{path} is not a bench.json: it has no '{min(missing)}'. Rerun berxit-bench")
        layers = adapter_for(config.backbone).layers
        if (data["task"], data["layers"]) != (config.task, layers):
            raise InputError(
                f"{path} is of a model with {data['layers']} layers for {data['task']}, the checkpoint has {layers}"
                f" layers for {config.task}: bench a bundle of this checkpoint"
            )
        if data["line"] is None:
            raise InputError(
                f"{path} has latencies of one depth only, which predict no others: bench a bundle with several exits"
            )
        line: Line = parse(Line, data["line"], f"{path}: line")
        noise: Noise | None = parse(Noise, data["noise"], f"{path}: noise") if data.get("noise") else None
        if (problems := bench_problems(noise, line)) and not accept_noise:
            raise NoisyError(
                f"{noisy(str(path), problems)}: it is too noisy to choose a threshold. Rerun berxit-bench when no other"
                " process is busy, or add --accept-noise"
            )
        backend = backend_label(data["backend"], data.get("backend_options", {}))
        measured = f"{path.name} of {data['device']}, {backend}"
        machine = str(parse(Machine, data["machine"], f"{path}: machine"))
        if machine != str(this_machine()):
            measured += f", measured on another machine: {machine}"
        if problems:
            measured += "; noisy, accepted"
        return cls(budget_ms, line.intercept_ms, line.ms_per_layer, measured)

    def milliseconds(self, point: OperatingPoint) -> float:
        """Predicted mean latency in ms."""
        return self.intercept_ms + self.ms_per_layer * point.average_exit_layer

    def describe(self, metric: str, chosen: str = "threshold") -> str:
        return (
            f"the best {metric} within {self.budget_ms:g} ms on average, predicted as {self.intercept_ms:.3g} ms +"
            f" {self.ms_per_layer:.3g} ms per layer ({self.measured})"
        )

    def choose(self, predictions: Predictions, spec: PolicySpec) -> Choice:
        """The choice; the cheapest of those with equal score. Raises InputError if no point is within the budget."""
        points = [(each, point) for each in families(predictions, spec) for point in each.points(each.candidates())]
        fitting = [(each, point) for each, point in points if self.milliseconds(point) <= self.budget_ms]
        if not fitting:
            least = min(self.milliseconds(point) for _, point in points)
            raise InputError(
                f"--budget-ms {self.budget_ms:g} is too low: the cheapest {spec.criterion} threshold takes {least:.3g}"
                f" ms according to {self.measured}. Give a higher budget, or train with fewer --layers"
            )
        best = max(fitting, key=lambda found: (found[1].score, -found[1].average_exit_layer))
        return _choice(best, lambda predicted: True)


Rule = Keep | Risk | Budget


def _cheapest(candidates: list[Candidate]) -> Candidate:
    """The cheapest candidate; the one with the best score of those with equal cost."""
    return min(candidates, key=lambda found: (found[1].average_exit_layer, -found[1].score))
