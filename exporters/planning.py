"""Decisions of an export before it writes a file: exits, policy, golden texts, lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from berxit.exporters.bundle_scores import calibration_file
from berxit.exporters.exit_placement import checked_exits, place_automatically
from berxit.exporters.golden_samples import golden_texts
from berxit.exporters.loading import LoadedCheckpoint
from berxit.exporters.options import Messages
from berxit.exporters.segments import Segments
from berxit.exporters.targets import Settings
from berxit.runtime.calibration import ExitPlacement
from berxit.runtime.errors import InputError
from berxit.runtime.tokenization import Text
from berxit.train.calibration import CalibratedPolicy


@dataclass(frozen=True)
class Plan:
    """Decisions of an export."""

    settings: Settings
    segments: Segments
    """With the chosen exits."""
    samples: Sequence[Text]
    """Texts of the golden inputs."""
    calibrated: CalibratedPolicy | None
    """The policy for the chosen exits; None if the checkpoint is not calibrated."""
    placement: ExitPlacement | None
    """None if the exits were not chosen by measurement."""
    scored: bool
    """True if the export measures the bundle's scores and chooses the thresholds again."""
    data_file: Path | None
    """The calibration data for that; None: the texts that the calibration stored."""


def make_plan(
    checkpoint: LoadedCheckpoint,
    settings: Settings,
    exits: tuple[int, ...] | str,
    data: Path | None,
    messages: Messages,
    *,
    scores: bool,
    accept_noise: bool,
) -> Plan:
    """Parameters as those of ``export``. Raises InputError and BerxitError as ``export`` does."""
    model, calibrated, precision = checkpoint.model, checkpoint.calibrated, settings.precision
    settings = settings.for_model(model.config.max_length)
    scored = scores and precision.scored and calibrated is not None
    data_file = None
    if data and scored and calibrated:
        data_file = calibration_file(data, checkpoint.path, calibrated.calibration)
    needed_by = precision.name if precision.scored else None
    samples = golden_texts(checkpoint.path, model.config, data_file or data, needed_by, messages.warn)
    segments, placement = checkpoint.segments, None
    if exits == "auto":
        placement = place_automatically(checkpoint, settings, samples, messages, accept_noise=accept_noise)
        messages.report(str(placement))
        exits = placement.exits
    if checkpoint.fixed:
        if exits:
            raise InputError(
                f"--exits does not go with a fixed exit at layer {model.layers}: omit --exits, or run berxit-calibrate"
                " without --fixed"
            )
        exits = (model.layers,)
    if exits:
        kept = checked_exits(exits, model.layers)
        segments = segments.with_exits(kept)
        if calibrated:
            calibrated = checkpoint.calibrated_for(kept)
            messages.report(f"calibrated for these exits: {calibrated.calibration.summary()}")
    return Plan(settings, segments, samples, calibrated, placement, scored, data_file)
