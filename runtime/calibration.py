"""The calibration record: how the thresholds of a policy were chosen, as bundles and checkpoints store it.

A runner does not need it. ``berxit inspect``, the bench and the export read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from berxit.runtime.drift import Reference
from berxit.runtime.errors import BerxitError
from berxit.runtime.json_data import OMIT_DEFAULT, since
from berxit.runtime.noise import Noise, noisy

PAYS = 0.01
"""An adaptive policy pays if it saves at least this share of the layers more than the best fixed exit."""
OLDER_KEYS = {"rule": "description", "asked": "requirement"}
OLDER_PLACEMENT_KEYS = {"milliseconds": "expected_ms", "all_milliseconds": "all_exits_ms"}
"""Key in a record or placement of an older version -> the field."""


@dataclass(frozen=True)
class Costs:
    """Costs of one input on the exporting machine."""

    layer_ms: float
    """Time of one encoder layer."""
    exit_ms: float
    """Time of one exit: head, decision, and the end of a segment."""
    noise: Noise | None = None
    """Noise of the measurement; None for costs that were not measured."""

    def milliseconds(self, exits: Sequence[int], histogram: Sequence[int]) -> float:
        """Expected time of an average input in ms, without embeddings and tokenization.

        ``histogram`` (n,): number of inputs that exit at each layer; only layers of ``exits`` have any.
        """
        layers = np.arange(1, len(histogram) + 1)
        passed = np.searchsorted(exits, layers, side="right")
        return float(np.asarray(histogram) @ (layers * self.layer_ms + passed * self.exit_ms) / sum(histogram))


@dataclass(frozen=True)
class ExitPlacement:
    """The exits that ``--exits auto`` chose, with the expected time of an average input in ms."""

    exits: tuple[int, ...]
    costs: Costs
    expected_ms: float
    all_exits_ms: float
    """The same with an exit after every layer and the threshold chosen for these exits."""

    def with_histogram(self, histogram: Sequence[int]) -> ExitPlacement:
        """The same exits, if ``histogram`` (n,) inputs exit at each layer."""
        return replace(self, expected_ms=self.costs.milliseconds(self.exits, histogram))

    def _noise(self) -> str:
        if self.costs.noise is None:
            return ""
        problems = self.costs.noise.problems()
        return f" (warning: {noisy('accepted', problems)})" if problems else f" ({self.costs.noise})"

    def __str__(self) -> str:
        return (
            f"exits after layers {', '.join(map(str, self.exits))}: here a layer takes {self.costs.layer_ms:.3f} ms and"
            f" an exit {self.costs.exit_ms:.3f} ms; expected {self.expected_ms:.2f} ms per input instead of"
            f" {self.all_exits_ms:.2f} with all exits{self._noise()}"
        )


@dataclass(frozen=True)
class FixedExit:
    """The competitor of an adaptive policy: the same rule, but one exit layer for all inputs."""

    layer: int
    """The last layer if no other satisfies the rule."""
    score: float
    """On the calibration data."""


@dataclass(frozen=True)
class Calibration:
    """Calibration record: the rule, the data, and the chosen policy's results on them."""

    criterion: str
    description: str
    """The rule as a sentence: "the cheapest threshold that keeps 0.99 of the last exit's f1"."""
    data: str
    """Name of the data file, without its folder."""
    data_sha256: str
    examples: int
    metric: str
    full_depth_score: float
    """The checkpoint's score at full depth on the calibration data."""
    score: float
    """The policy's score on the same data. It is too high as an estimate for new data, because the threshold was
    chosen on this data; see ``expected_score``."""
    average_exit_layer: float
    saved_layers: float
    histogram: tuple[int, ...]
    """(n,) number of examples that exit at each layer."""
    threshold: float
    requirement: dict[str, float | bool | str]
    """The rule with its numbers: the fields of one of ``berxit.train.rules.Rule``."""
    constant_score: float | None = None
    """The score of the best prediction that is the same for every example; None in older records."""
    positive: str | None = None
    """The class that F1 scores; None for another metric, and in older records."""
    warnings: tuple[str, ...] = ()
    """Reasons why the policy may mean little: scores at chance, or a rule that could not be kept. Empty: none."""
    settings: dict[str, Any] | None = field(default=None, metadata=since(2))
    """Settings of the policy besides the criterion: fields of ``berxit.train.families.PolicySpec`` that do not have
    their defaults. None: all have."""
    expected_score: float | None = field(default=None, metadata=OMIT_DEFAULT)
    """Expected score on new data, by cross-fitting: thresholds chosen on four fifths of the rows, scored on the rest.
    None in older records, and if a fifth less data is too little for the rule."""
    expected_interval: tuple[float, float] | None = field(default=None, metadata=OMIT_DEFAULT)
    """Bootstrap interval of ``expected_score``, 5th to 95th percentile."""
    unlabelled: bool = field(default=False, metadata=since(2))
    """True if the data has no labels. Scores then compare with full depth's predictions."""
    fixed: FixedExit | None = field(default=None, metadata=since(2))
    """The best fixed exit by the same rule. None for a fixed policy, and in older records."""
    reference: Reference | None = field(default=None, metadata=since(2))
    """Histograms of the calibration data under the policy, for monitoring. None in older records."""
    placement: ExitPlacement | None = field(default=None, metadata=OMIT_DEFAULT)
    """In the manifest of a bundle whose exits were placed automatically; None for others."""

    def describe_policy(self) -> str:
        """Criterion, threshold and settings of the policy."""
        settings = self.settings or {}
        if settings.get("thresholds_per_exit"):
            parts = [f"{self.criterion} thresholds per exit, for an agreement of {self.threshold:.6g} with full depth"]
        else:
            parts = [f"{self.criterion} threshold {self.threshold:.6g}"]
        if "patience" in settings:
            parts.append(f"at {settings['patience']} consecutive exits")
        if "off" in settings:
            parts.append(f"without the exits {', '.join(map(str, settings['off']))}")
        if "full_depth_classes" in settings:
            parts.append(f"full depth for {', '.join(settings['full_depth_classes'])}")
        if settings.get("fit_temperatures"):
            parts.append("fitted temperatures")
        return ", ".join(parts)

    def summary(self) -> str:
        layers = len(self.histogram)
        if self.criterion == "fixed":
            exits = f"every input exits at layer {self.average_exit_layer:.0f} of {layers}"
        else:
            exits = f"{self.describe_policy()}: average exit layer {self.average_exit_layer:.2f} of {layers}"
        score = f"{self.metric} {self.score:.4f} of {self.full_depth_score:.4f} at full depth"
        if self.unlabelled:
            score = f"{self.metric} {self.score:.4f} with full depth's predictions as labels"
        return (
            f"{exits} ({self.saved_layers:.0%} saved), {score}, on the {self.examples} examples of {self.data}"
            f"{self._expected()}"
        )

    @property
    def comparison(self) -> str:
        """A sentence that compares the policy with the best fixed exit; empty if there is none."""
        if self.fixed is None:
            return ""
        layers = len(self.histogram)
        saved = 1 - self.fixed.layer / layers
        best = (
            f"the best fixed exit is layer {self.fixed.layer} ({saved:.0%} saved, {self.metric} {self.fixed.score:.4f})"
        )
        if self.fixed.layer == layers:
            best = "no fixed exit before the last layer satisfies the rule"
        budget = "budget_ms" in self.requirement
        if self.score > self.fixed.score if budget else self.saved_layers > saved + PAYS:
            return f"adaptive exits pay here: {best}"
        if self.fixed.layer == layers:
            return ""
        return f"adaptive exits do not pay here: {best}. To use it, calibrate with --fixed"

    def _expected(self) -> str:
        if self.expected_score is None or self.expected_interval is None:
            return ""
        low, high = self.expected_interval
        return f"; expected on new data: {self.expected_score:.4f} ({low:.4f} to {high:.4f})"

    def check(self, layers: int, where: str) -> None:
        """Raises BerxitError unless the histogram counts every example of a model of ``layers`` layers."""
        counted = len(self.histogram), sum(self.histogram)
        if counted != (layers, self.examples) or min(self.histogram) < 0 or self.examples < 1:
            raise BerxitError(
                f"{where}: histogram has {counted[0]} entries with the sum {counted[1]}, expected {layers} for the"
                f" layers, with the sum {self.examples} of the examples. Calibrate and export again"
            )
        if self.reference is not None:
            self.reference.check(self.histogram, where)


def upgraded(record: Any) -> Any:
    """The JSON data of a stored record, with the keys of earlier versions renamed. Anything else is returned unchanged.

    Earlier versions stored the rule as ``rule`` and ``asked``, before that only the share to keep as ``keep``; the data
    file with its folder; the expected times of a placement as ``milliseconds`` and ``all_milliseconds``. Their rule for
    a share to keep did not allow for chance, so it is ``optimistic``.
    """
    if not isinstance(record, dict):
        return record
    record = {OLDER_KEYS.get(key, key): value for key, value in record.items()}
    if "keep" in record:
        record["requirement"] = {"keep": record.pop("keep")}
    if isinstance(record.get("requirement"), dict) and set(record["requirement"]) == {"keep"}:
        record["requirement"] = {**record["requirement"], "optimistic": True}
    if isinstance(record.get("data"), str):
        record["data"] = Path(record["data"]).name
    if isinstance(record.get("placement"), dict):
        record["placement"] = {OLDER_PLACEMENT_KEYS.get(key, key): value for key, value in record["placement"].items()}
    return record
