"""Chooses the threshold: the cheapest that keeps what the user asked for, on data that training has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.bundle import sha256
from runtime.errors import BerxitError, InputError
from runtime.examples import find_split
from runtime.json_data import parse, read_json, write_json
from runtime.policies import ExitPolicy
from runtime.progress import Progress, silent
from train.checkpoint import load_checkpoint, read_record
from train.evaluation import (
    OperatingPoint,
    Predictions,
    candidate_thresholds,
    default_criterion,
    layer_scores,
    predict,
    trade_off,
)
from train.tasks import task_of

POLICY_FILE = "exit_policy.json"
"""Beside the checkpoint's weights: the policy and the record of how it was chosen."""
PASS_FILE = "calibration_pass.npz"
"""What every exit said of the calibration data: an export with fewer exits chooses its threshold anew from it."""


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
    threshold: float
    keep: float
    """The share of the last exit's score that was asked for."""

    def summary(self) -> str:
        return (
            f"{self.criterion} threshold {self.threshold:.6g}: average exit layer {self.average_exit_layer:.2f} of"
            f" {len(self.histogram)} ({self.saved_layers:.0%} saved), {self.metric} {self.score:.4f} of"
            f" {self.full_depth_score:.4f} at full depth, on the {self.examples} examples of {self.data}"
        )


def calibrate(
    checkpoint: Path,
    data: Path,
    *,
    split: str = "dev",
    criterion: str | None = None,
    keep: float = 0.99,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Calibration:
    """Chooses the checkpoint's policy on a split of ``data`` and writes it beside the weights.

    Raises InputError for the file that the checkpoint was trained on, or a criterion or share that cannot be.
    """
    path = find_split(data, split)
    digest = sha256(path)
    if digest == read_record(checkpoint).get("train_sha256"):
        raise InputError(
            f"{path} is what {checkpoint} was trained on: calibrate on data it has not seen, as --split dev"
        )
    model, tokenizer = load_checkpoint(checkpoint)
    examples = task_of(model.config).read(path, split)
    predictions = predict(model, tokenizer, examples, batch_size, progress)
    chosen = choose(predictions, criterion or default_criterion(predictions), keep, str(path), digest)
    predictions.save(checkpoint / PASS_FILE)
    write_policy(checkpoint, chosen)
    return chosen.calibration


def choose(predictions: Predictions, criterion: str, keep: float, data: str, data_sha256: str) -> CalibratedPolicy:
    """The policy on a stored pass over ``data``. Raises as ``keep_share`` does."""
    policy, point = keep_share(predictions, criterion, keep)
    calibration = Calibration(
        criterion=policy.criterion,
        rule=f"the cheapest threshold that keeps {keep:g} of the last exit's {predictions.metric}",
        data=data,
        data_sha256=data_sha256,
        examples=len(predictions.labels),
        metric=predictions.metric,
        full_depth_score=layer_scores(predictions)[-1],
        score=point.score,
        average_exit_layer=point.average_exit_layer,
        saved_layers=point.saved_layers,
        histogram=point.histogram,
        threshold=point.threshold,
        keep=keep,
    )
    return CalibratedPolicy(policy, calibration)


def choose_again(checkpoint: Path, calibration: Calibration, exits: Sequence[int]) -> CalibratedPolicy:
    """The same rule on the same data for a model that has only these exits. Raises BerxitError without the pass."""
    path = checkpoint / PASS_FILE
    if not path.is_file():
        raise BerxitError(
            f"{path} is not there, which fewer exits need for their threshold: run berxit-calibrate again"
        )
    c = calibration
    return choose(Predictions.load(path).at_exits(exits), c.criterion, c.keep, c.data, c.data_sha256)


def keep_share(predictions: Predictions, criterion: str, keep: float) -> tuple[ExitPolicy, OperatingPoint]:
    """The cheapest threshold whose score is at least ``keep`` times the last exit's; never stopping always is one.

    Raises InputError for a share outside (0, 1], or a criterion that cannot work here.
    """
    if not 0 < keep <= 1:
        raise InputError(
            f"--keep {keep} is out of range: the share of the last exit's score to keep is above 0, up to 1"
        )
    points = trade_off(predictions, criterion, candidate_thresholds(predictions, criterion))
    full = points[-1].score  # the last candidate never stops early
    good = [point for point in points if point.score >= keep * full]
    if not good:  # only where the last exit's score is below zero, as a correlation can be
        raise BerxitError(
            f"the last exit's {predictions.metric} is {full:.3f} on this data: nothing to keep. Train longer"
        )
    best = min(good, key=lambda point: (point.average_exit_layer, -point.score))
    return ExitPolicy.uniform(criterion, best.threshold, int(predictions.exit_layers[-1])), best


@dataclass(frozen=True)
class CalibratedPolicy:
    """exit_policy.json"""

    policy: ExitPolicy
    calibration: Calibration


def write_policy(checkpoint: Path, chosen: CalibratedPolicy) -> None:
    write_json(asdict(chosen), checkpoint / POLICY_FILE)


def read_policy(checkpoint: Path) -> CalibratedPolicy | None:
    """The checkpoint's policy and how it was chosen, or None where it was never calibrated."""
    path = checkpoint / POLICY_FILE
    return parse(CalibratedPolicy, read_json(path), str(path)) if path.is_file() else None
