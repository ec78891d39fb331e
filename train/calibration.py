"""Chooses the threshold: the cheapest that keeps what the user asked for, on data that training has not seen."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import write_json
from runtime.errors import BerxitError, InputError
from runtime.policies import ExitPolicy
from train.evaluation import OperatingPoint, Predictions, candidate_thresholds, layer_scores, trade_off

POLICY_FILE = "exit_policy.json"
"""Beside the checkpoint's weights: the policy and the record of how it was chosen."""


@dataclass(frozen=True)
class Calibration:
    """How a threshold was chosen, and what it gave on the calibration data."""

    criterion: str
    rule: str
    """What was asked for, in words: "keep 99% of the last exit's f1"."""
    data: str
    data_sha256: str
    examples: int
    metric: str
    full_depth_score: float
    """The last exit's score on the calibration data."""
    score: float
    """The policy's score on the same data."""
    average_exit_layer: float
    saved_layers: float
    histogram: tuple[int, ...]
    """(n,) how many examples left at each layer."""


def keep_share(predictions: Predictions, criterion: str, keep: float) -> tuple[ExitPolicy, OperatingPoint]:
    """The cheapest threshold whose score is at least ``keep`` times the last exit's; never stopping always is one.

    Raises InputError for a share outside (0, 1], or a criterion that cannot work here.
    """
    if not 0 < keep <= 1:
        raise InputError(f"--keep {keep} is out of range: the share of the last exit's score to keep is above 0, up to 1")
    full = layer_scores(predictions)[-1]
    points = trade_off(predictions, criterion, candidate_thresholds(predictions, criterion))
    good = [point for point in points if point.score >= keep * full]
    if not good:  # only where the last exit's score is below zero, as a correlation can be
        raise BerxitError(f"the last exit's {predictions.metric} is {full:.3f} on this data: nothing to keep. Train longer")
    best = min(good, key=lambda point: (point.average_exit_layer, -point.score))
    return ExitPolicy.uniform(criterion, best.threshold, predictions.layers), best


def write_policy(checkpoint: Path, policy: ExitPolicy, calibration: Calibration) -> Path:
    path = checkpoint / POLICY_FILE
    write_json({"policy": asdict(policy), "calibration": asdict(calibration)}, path)
    return path


def read_policy(checkpoint: Path) -> tuple[ExitPolicy, dict[str, Any]] | None:
    """The checkpoint's policy and how it was chosen, or None where it was never calibrated."""
    path = checkpoint / POLICY_FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in data["policy"].items()}
        return ExitPolicy(**fields), data["calibration"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BerxitError(f"{path} is damaged ({error}): run berxit-calibrate again") from None
