"""Monitoring of a runner in use: drift of its inputs, and agreement with full depth, both without labels."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from berxit.runtime.drift import DriftDetector, Reference
from berxit.runtime.errors import InputError
from berxit.runtime.kinds import KINDS, SPAN_BINS
from berxit.runtime.prediction import Prediction
from berxit.runtime.tables import plural
from berxit.runtime.tokenization import Text

_LOG = logging.getLogger(__name__)
FALSE_ALARMS = 0.01
"""Default probability of an alarm in 1,000 inputs that follow the calibration data."""
Z_90 = 1.6449
"""Quantile of the normal distribution for intervals that cover 90%."""


@dataclass(frozen=True)
class ShadowRuns:
    """Comparison of the predictions that exited with full depth, on a random share of the inputs."""

    runs: int
    disagreement: float
    """Share of predictions that differ from full depth's; for regression the mean absolute difference, in units of the
    labels."""
    interval: tuple[float, float]
    """Interval that covers the expected disagreement with probability 0.9."""


@dataclass(frozen=True)
class MonitorReport:
    """State of a monitor."""

    inputs: int
    """Number of inputs that were compared with the calibration data."""
    not_compared: int
    """Number of inputs that were not: a deadline stopped them, or the call had another policy."""
    drifted_at: int | None
    """Number of inputs until the alarm; None without an alarm."""
    average_exit_layer: float | None
    """Of the inputs; None before the first one."""
    calibrated_exit_layer: float
    """Average exit layer of the calibration data."""
    exits: tuple[float, ...]
    """(n,) share of inputs that exit at each layer."""
    predictions: tuple[float, ...]
    """(C,) share of each class, of each bin of values, or of each number of labels in a set."""
    calibrated_predictions: tuple[float, ...]
    """(C,) the same for the calibration data."""
    shadow: ShadowRuns | None
    """None without shadow runs."""

    @property
    def drifted(self) -> bool:
        """True if the inputs differ from the calibration data."""
        return self.drifted_at is not None

    def __str__(self) -> str:
        if self.average_exit_layer is None:
            return "no input was compared with the calibration data yet"
        found = (
            f"the inputs differ from the calibration data (alarm after {self.drifted_at})"
            if self.drifted
            else "the inputs look like the calibration data"
        )
        line = (
            f"{plural(self.inputs, 'input')}: {found}; average exit layer {self.average_exit_layer:.2f}, at calibration"
            f" {self.calibrated_exit_layer:.2f}"
        )
        if self.shadow is not None:
            low, high = self.shadow.interval
            line += (
                f"; disagreement with full depth {self.shadow.disagreement:.3g} ({low:.3g} to {high:.3g}) in"
                f" {plural(self.shadow.runs, 'shadow run')}"
            )
        return line


class Monitor:
    """Compares the predictions of a runner with its calibration data. Create it with ``EarlyExitRunner.monitor``.

    Safe to use from several threads. It stores counts, no texts.
    """

    def __init__(
        self,
        reference: Reference,
        labels: Sequence[str],
        full_depth: Callable[[list[Text]], list[Prediction]],
        *,
        shadow: float = 0.0,
        false_alarms: float = FALSE_ALARMS,
        on_drift: Callable[[MonitorReport], None] | None = None,
        seed: int | None = None,
    ) -> None:
        """``labels``: class names; empty for regression. ``full_depth``: predicts texts at full depth. The other
        arguments are those of ``EarlyExitRunner.monitor``.

        Raises InputError for a share or probability out of range.
        """
        if not 0 <= shadow <= 1:
            raise InputError(f"shadow is {shadow}: give the share of inputs to run to full depth, from 0 to 1")
        if not 0 < false_alarms < 1:
            raise InputError(f"false_alarms is {false_alarms}: give a probability above 0 and below 1")
        self._reference, self._numbers = reference, {name: number for number, name in enumerate(labels)}
        self._detector = DriftDetector(reference, false_alarms)
        self._full_depth, self._shadow, self._on_drift = full_depth, shadow, on_drift
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self.restart()

    def restart(self) -> None:
        """Forgets all inputs and the alarm."""
        with self._lock:
            self._detector.restart()
            self._exits = [0] * len(self._reference.exits.counts)
            self._predictions = [0] * len(self._reference.predictions.counts)
            self._not_compared = 0
            self._shadow_runs = 0
            self._differences = self._squares = 0.0

    def record(self, texts: Sequence[Text], predictions: Sequence[Prediction], *, shadow: bool = True) -> None:
        """Counts the predictions (B,) of a call. ``shadow``: also runs a random share of its texts (B,) to full
        depth."""
        alarm = False
        with self._lock:
            for prediction in predictions:
                alarm |= self._count(prediction)
            chosen = np.flatnonzero(self._random.random(len(texts)) < self._shadow) if shadow and self._shadow else ()
            report = self._report() if alarm else None
        if report is not None:
            _LOG.warning("%s", report)
            if self._on_drift is not None:
                self._on_drift(report)
        if len(chosen):
            deep = self._full_depth([texts[row] for row in chosen])
            self._compare([predictions[row] for row in chosen], deep)

    def skip(self, inputs: int) -> None:
        """Counts inputs that cannot be compared with the calibration data."""
        with self._lock:
            self._not_compared += inputs

    def report(self) -> MonitorReport:
        """The comparison up to now."""
        with self._lock:
            return self._report()

    @property
    def drifted(self) -> bool:
        """True after an alarm, until ``restart``."""
        return self._detector.alarm is not None

    def _number(self, prediction: Prediction) -> float:
        """The bin of a prediction, or its value: class number, or number of labels. Of heads, their number."""
        if prediction.heads is not None:
            return KINDS["heads"].number(prediction, tuple(self._numbers))
        if prediction.labels is not None:
            return len(prediction.labels)
        if prediction.spans is not None:
            return min(len(prediction.spans), SPAN_BINS - 1)
        return self._numbers[prediction.label] if isinstance(prediction.label, str) else prediction.label

    def _count(self, prediction: Prediction) -> bool:
        """Returns True at the first alarm."""
        if prediction.stopped_by == "deadline":
            self._not_compared += 1
            return False
        number = self._number(prediction)
        self._exits[prediction.exit_layer - 1] += 1
        self._predictions[self._reference.predictions.bin_of(number)] += 1
        return self._detector.add(prediction.exit_layer, prediction.certainty, number)

    def _compare(self, exited: Sequence[Prediction], deep: Sequence[Prediction]) -> None:
        pairs = zip((each.label for each in exited), (each.label for each in deep), strict=True)
        differences = [float(a != b) if isinstance(a, str) or isinstance(b, str) else abs(a - b) for a, b in pairs]
        with self._lock:
            self._shadow_runs += len(differences)
            self._differences += sum(differences)
            self._squares += sum(difference * difference for difference in differences)

    def _report(self) -> MonitorReport:
        inputs, layers = sum(self._exits), range(1, len(self._exits) + 1)
        calibrated = self._reference.exits.counts
        return MonitorReport(
            inputs=inputs,
            not_compared=self._not_compared,
            drifted_at=self._detector.alarm,
            average_exit_layer=_average(layers, self._exits) if inputs else None,
            calibrated_exit_layer=_average(layers, calibrated),
            exits=_shares(self._exits),
            predictions=_shares(self._predictions),
            calibrated_predictions=_shares(self._reference.predictions.counts),
            shadow=self._shadow_report() if self._shadow_runs else None,
        )

    def _shadow_report(self) -> ShadowRuns:
        n = self._shadow_runs
        mean = self._differences / n
        if self._numbers:
            return ShadowRuns(n, mean, wilson(mean, n))
        spread = Z_90 * math.sqrt(max(self._squares / n - mean * mean, 0) / n)
        return ShadowRuns(n, mean, (max(0.0, mean - spread), mean + spread))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share of ``n`` observations; it covers the true share with probability 0.9."""
    z2 = Z_90 * Z_90
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    spread = Z_90 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (max(0.0, middle - spread) if share > 0 else 0.0, min(1.0, middle + spread) if share < 1 else 1.0)


def _average(layers: Sequence[int], counts: Sequence[int]) -> float:
    return sum(layer * count for layer, count in zip(layers, counts, strict=True)) / sum(counts)


def _shares(counts: Sequence[int]) -> tuple[float, ...]:
    total = sum(counts) or 1
    return tuple(count / total for count in counts)
