"""What a calibration is asked for: a share of the score to keep, a risk not to exceed, or milliseconds not to exceed.

A rule is numbers and one function: from a stored pass and a criterion to the operating point that it chooses. It is
kept in the calibration's record, so that another pass (fewer exits, other weights) can be asked the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import stats

from berxit.devices import Machine, this_machine
from berxit.runtime.errors import BerxitError, InputError, NoisyError
from berxit.runtime.json_data import parse, read_json
from berxit.runtime.measurement import Line
from berxit.runtime.noise import Noise, bench_problems, noisy
from berxit.runtime.policies import CRITERIA
from berxit.train.backbones import adapter_for
from berxit.train.configuration import MultiExitConfig
from berxit.train.evaluation import (
    TOLERANCE,
    OperatingPoint,
    Predictions,
    answers_at,
    check_never,
    operating_points,
    places_at,
    trade_off,
)

FIXED_TOLERANCES = (0.02, 0.05, 0.1, 0.2)
"""Of patience on regression under a risk, as shares of the labels' range: fixed before any data is seen."""


@dataclass(frozen=True)
class Keep:
    """The cheapest point whose score is at least ``keep`` times full depth's: the checkpoint's, for every precision."""

    stricter: ClassVar[str] = "a higher --keep"
    looser: ClassVar[str] = "a lower --keep"

    keep: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(
                f"--keep {self.keep} is out of range: the share of the last exit's score to keep is above 0, up to 1"
            )

    def in_words(self, metric: str) -> str:
        return f"the cheapest threshold that keeps {self.keep:g} of the last exit's {metric}"

    def choose(self, predictions: Predictions, criterion: str) -> OperatingPoint:
        """The point; the one that never exits early where none keeps that much, as a bundle's own pass can show.

        Raises BerxitError where full depth's score is not above zero.
        """
        points = operating_points(predictions, criterion)
        full = predictions.full_depth_score
        if not full > 0:
            raise BerxitError(
                f"the last exit's {predictions.metric} is {full:.3f} on this data: nothing to keep. Train longer"
            )
        good = [point for point in points if point.score >= self.keep * full]
        return _cheapest(good) if good else points[-1]  # the last candidate never stops early

    def kept(self, predictions: Predictions, criterion: str, point: OperatingPoint) -> bool:
        """True where the point's score is that share of full depth's."""
        return point.score >= self.keep * predictions.full_depth_score


@dataclass(frozen=True)
class Risk:
    """The cheapest point whose risk is at most ``risk`` with probability 1 - ``delta``, over the draw of the data.

    The risk is the expected loss against full depth on new inputs of the same kind. A row's loss: 1 where the answer is
    not the last exit's, else 0; for regression how far it is from the last exit's, as a share of the labels' range, at
    most 1. Learn-then-Test (Angelopoulos et al., 2021, "Learn then Test: Calibrating Predictive Algorithms to Achieve
    Risk Control", arXiv 2110.01052): thresholds that are fixed beforehand are tested from never stopping towards the
    cheap end, each by its Hoeffding-Bentkus p-value at level delta, up to the first that fails (fixed sequence
    testing). Patience on regression has one such sequence per tolerance, which share delta.
    """

    stricter: ClassVar[str] = "a lower --risk"
    looser: ClassVar[str] = "a higher --risk"

    risk: float
    delta: float = 0.05

    def __post_init__(self) -> None:
        for flag, value in (("risk", self.risk), ("delta", self.delta)):
            if not 0 < value < 1:
                raise InputError(f"--{flag} {value} is out of range: it lies between 0 and 1")

    def in_words(self, metric: str) -> str:
        return (
            f"the cheapest threshold whose answers differ from the last exit's by at most {self.risk:g} on average,"
            f" with probability {1 - self.delta:g}"
        )

    def choose(self, predictions: Predictions, criterion: str) -> OperatingPoint:
        """The point; the one that never exits early where none is proven. It has no loss but in a bundle's own pass.

        Raises InputError for too few examples to prove anything.
        """
        tolerances = self._tolerances(predictions, criterion)
        delta = self.delta / len(tolerances)
        n = len(predictions.labels)
        if hoeffding_bentkus(0.0, n, self.risk) > delta:
            least = math.ceil(math.log(delta) / math.log1p(-self.risk))
            raise InputError(
                f"--risk {self.risk:g} --delta {self.delta:g} needs at least {least} examples to allow anything, and"
                f" there are {n}: calibrate on more, or allow more"
            )
        thresholds = CRITERIA[criterion].grid(predictions.layers, predictions.logits.shape[2])
        safe = trade_off(predictions, criterion, thresholds[:1])
        check_never(safe[0], predictions, criterion)
        for tolerance in tolerances:
            losses = losses_at(predictions, criterion, thresholds, tolerance)
            points = trade_off(predictions, criterion, thresholds, tolerance)
            for point, loss in zip(points, losses, strict=True):
                if hoeffding_bentkus(float(loss), n, self.risk) > delta:
                    break
                safe.append(point)
        return _cheapest(safe)

    def kept(self, predictions: Predictions, criterion: str, point: OperatingPoint) -> bool:
        """True where the point's risk is proven."""
        loss = float(losses_at(predictions, criterion, [point.threshold], point.tolerance)[0])
        delta = self.delta / len(self._tolerances(predictions, criterion))
        return hoeffding_bentkus(loss, len(predictions.labels), self.risk) <= delta

    def _tolerances(self, predictions: Predictions, criterion: str) -> list[float]:
        if CRITERIA[criterion].counts and predictions.regression:
            return [share * float(np.ptp(predictions.labels)) for share in FIXED_TOLERANCES]
        return [TOLERANCE]


@dataclass(frozen=True)
class Budget:
    """The best score among the points whose mean latency, predicted from a bench, is at most ``budget_ms``."""

    stricter: ClassVar[str] = "a higher --budget-ms"
    looser: ClassVar[str] = "a higher --budget-ms"

    budget_ms: float
    intercept_ms: float
    ms_per_layer: float
    measured: str
    """What was measured, and where."""

    def __post_init__(self) -> None:
        if not 0 < self.budget_ms < math.inf:
            raise InputError(f"--budget-ms {self.budget_ms} is out of range: milliseconds are above 0, and finite")
        if not (math.isfinite(self.intercept_ms) and 0 < self.ms_per_layer < math.inf):
            raise InputError(
                f"{self.measured}: a layer costs {self.ms_per_layer:.3g} ms by that bench, which predicts nothing."
                " Bench again when no other process is busy"
            )

    @classmethod
    def of_bench(cls, budget_ms: float, bench: Path, config: MultiExitConfig, *, accept_noise: bool = False) -> Budget:
        """From bench.json, or the folder that berxit-bench wrote it to; ``config`` is the checkpoint's.

        Raises InputError for a bench of a model for another task or with other layers, or of one depth only,
        BerxitError for no bench, NoisyError for a bench of a busy machine unless ``accept_noise``.
        """
        path = bench / "bench.json" if bench.is_dir() else bench
        if not path.is_file():
            raise InputError(f"no bench at {path}: --bench is the bench.json that berxit-bench wrote")
        data = read_json(path)
        if missing := {"line", "task", "layers", "device", "backend", "machine"} - set(data):
            raise BerxitError(f"{path} is no bench.json: it has no '{min(missing)}'. Run berxit-bench again")
        layers = adapter_for(config.backbone).layers
        if (data["task"], data["layers"]) != (config.task, layers):
            raise InputError(
                f"{path} is of a {data['layers']}-layer model for {data['task']}, the checkpoint has {layers} layers"
                f" for {config.task}: bench a bundle of this checkpoint"
            )
        if data["line"] is None:
            raise InputError(
                f"{path}: its latencies are all of one depth, which predict no other: bench a bundle with several exits"
            )
        line: Line = parse(Line, data["line"], f"{path}: line")
        noise: Noise | None = parse(Noise, data["noise"], f"{path}: noise") if data.get("noise") else None
        if (problems := bench_problems(noise, line)) and not accept_noise:
            raise NoisyError(
                f"{noisy(str(path), problems)}: no threshold is chosen by it. Bench again when no other process is"
                " busy, or add --accept-noise"
            )
        measured = f"{path.name} of {data['device']}, {data['backend']}"
        machine = str(parse(Machine, data["machine"], f"{path}: machine"))
        if machine != str(this_machine()):
            measured += f", on another machine than this: {machine}"
        if problems:
            measured += "; noisy, accepted"
        return cls(budget_ms, line.intercept_ms, line.ms_per_layer, measured)

    def milliseconds(self, point: OperatingPoint) -> float:
        """Predicted mean latency."""
        return self.intercept_ms + self.ms_per_layer * point.average_exit_layer

    def in_words(self, metric: str) -> str:
        return (
            f"the best {metric} within {self.budget_ms:g} ms on average, by {self.intercept_ms:.3g} ms +"
            f" {self.ms_per_layer:.3g} ms per layer ({self.measured})"
        )

    def choose(self, predictions: Predictions, criterion: str) -> OperatingPoint:
        """Of equal scores the cheapest. Raises InputError where not even the cheapest point fits."""
        points = operating_points(predictions, criterion)
        fitting = [point for point in points if self.milliseconds(point) <= self.budget_ms]
        if not fitting:
            least = min(map(self.milliseconds, points))
            raise InputError(
                f"--budget-ms {self.budget_ms:g} is too little: the cheapest {criterion} threshold takes {least:.3g} ms"
                f" by {self.measured}. Allow more, or take fewer layers"
            )
        return max(fitting, key=lambda point: (point.score, -point.average_exit_layer))

    def kept(self, predictions: Predictions, criterion: str, point: OperatingPoint) -> bool:
        """True where the point is within the budget."""
        return self.milliseconds(point) <= self.budget_ms


Rule = Keep | Risk | Budget


def hoeffding_bentkus(loss: float, n: int, risk: float) -> float:
    """The p-value of "the risk is above ``risk``", for a mean loss over ``n`` rows, each from 0 to 1.

    Angelopoulos et al. (2021), Hoeffding-Bentkus inequality: the smaller of exp(-n h(min(loss, risk), risk)) and
    e P(Bin(n, risk) <= ceil(n loss)), with h(a, b) = a ln(a / b) + (1 - a) ln((1 - a) / (1 - b)).
    """
    low = min(loss, risk)
    divergence = (low * math.log(low / risk) if low else 0.0) + (1 - low) * math.log((1 - low) / (1 - risk))
    at_most = math.ceil(round(n * loss, 6))  # 3 wrong of 100 are not 4 by rounding
    return float(min(math.exp(-n * divergence), math.e * stats.binom.cdf(at_most, n, risk)))


def losses_at(
    predictions: Predictions, criterion: str, thresholds: list[float], tolerance: float = TOLERANCE
) -> npt.NDArray[np.float64]:
    """The mean loss against full depth under each threshold, as ``Risk`` defines it: (T,)."""
    early = answers_at(predictions, places_at(predictions, criterion, thresholds, tolerance))
    last = predictions.full_depth
    if not predictions.regression:
        return np.asarray((early != last).mean(axis=1), dtype=np.float64)
    spread = float(np.ptp(predictions.labels)) or 1.0
    return np.minimum(np.abs(early.astype(np.float64) - last) / spread, 1).mean(axis=1)


def _cheapest(points: list[OperatingPoint]) -> OperatingPoint:
    """Of those that cost the same, the best."""
    return min(points, key=lambda point: (point.average_exit_layer, -point.score))
