"""Export of a checkpoint as a bundle: load, plan, write, verify, recalibrate, and only then move it into place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from berxit.exporters.bundle_scores import Recalibrated, recalibrate
from berxit.exporters.loading import load
from berxit.exporters.options import ExportOptions, Messages
from berxit.exporters.parity import verify
from berxit.exporters.planning import Plan, make_plan
from berxit.exporters.targets import find_target
from berxit.exporters.writing import Written, write_files
from berxit.runtime.bundle import Manifest, Parity, read_manifest, schema_version, write_manifest
from berxit.runtime.bundle_files import MANIFEST
from berxit.runtime.errors import InputError
from berxit.runtime.policies.registry import BUILT_IN
from berxit.runtime.progress import Progress, silent
from berxit.runtime.signing import SIGNATURE, private_key
from berxit.runtime.storage import write_whole
from berxit.train.checkpoint import apply_umask


def export(
    checkpoint: Path,
    target: str,
    output: Path,
    *,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    force: bool = False,
    accept_noise: bool = False,
    scores: bool = True,
    data: Path | None = None,
    most_flips: float | None = None,
    sign: Path | None = None,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] | None = None,
) -> Manifest:
    """Writes the bundle ``output`` for a target, as a whole or not at all.

    ``scores``: for a precision that may change predictions, run the calibration data through the bundle, measure the
    scores, and choose the thresholds from the bundle's outputs. ``data``: the calibration data, a file or its folder;
    default: the texts that the calibration stored. It also provides the golden inputs if the checkpoint has no samples.
    ``most_flips``: write nothing if more than this percentage of the bundle's predictions on this data differ from full
    depth of the checkpoint. ``accept_noise``: place exits automatically on a busy machine, too. ``sign``: PEM file of a
    private ed25519 key, which signs the manifest. ``report`` receives the lines of the report, ``warn`` (default:
    ``report``) what was not measured, and why scores or golden inputs may mean little.

    Raises InputError for an unknown target or precision, an output that exists, or a precision that needs texts of the
    task if there are none; BerxitError for a checkpoint that cannot be read, an exit that differs from it,
    or too many flips.
    """
    messages = Messages(progress, report, warn or report)
    settings = find_target(target).settings(options)
    if data is not None and not data.exists():
        raise InputError(f"no data at {data}: give the file or folder that the checkpoint was calibrated on")
    key = None if sign is None else private_key(sign)
    loaded = load(checkpoint)
    plan = make_plan(loaded, settings, options.exits, data, messages, scores=scores, accept_noise=accept_noise)
    if most_flips is not None and not plan.scored:
        raise InputError(
            f"--most-flips needs a calibrated checkpoint and a precision whose predictions the export measures:"
            f" {settings.precision.name} of {target} is not measured here. Omit it, or choose another --precision"
        )
    with write_whole(output, force=force) as folder:
        written = write_files(loaded, plan.settings, plan.segments, plan.samples, folder, progress)
        backend = settings.target.load_writer().checking_backend(folder, written.draft, None)
        parity = verify(written, backend, settings.precision, settings.target.proof, checkpoint, report)
        measured = None
        if plan.scored:
            measured = recalibrate(loaded, written, backend, plan.data_file, messages, most_flips)
        del backend  # it maps files of the folder, which is renamed below
        manifest = finish_manifest(written, plan, parity, measured, messages)
        write_manifest(manifest, folder)
        if key is not None:
            (folder / SIGNATURE).write_bytes(key.sign((folder / MANIFEST).read_bytes()))
        apply_umask(folder)
        read_manifest(folder, verify=False)  # a bundle that no runtime opens is not published
    return manifest


def finish_manifest(
    written: Written, plan: Plan, parity: Parity, measured: Recalibrated | None, messages: Messages
) -> Manifest:
    """The manifest with the results of the parity check, the policy, and how its thresholds were chosen."""
    manifest = _manifest(written, plan, parity, measured, messages)
    return replace(manifest, schema_version=schema_version(manifest))


def _manifest(
    written: Written, plan: Plan, parity: Parity, measured: Recalibrated | None, messages: Messages
) -> Manifest:
    """The manifest before its schema version is known."""
    calibrated = measured.chosen if measured else plan.calibrated
    if calibrated is None:
        return replace(written.draft, parity=parity)
    record = calibrated.calibration
    if plan.placement:
        placement = plan.placement.with_histogram(calibrated.calibration.histogram)
        record = replace(record, placement=placement)
        if measured:
            messages.report(f"expected with this threshold: {placement.expected_ms:.2f} ms per input")
    for line in calibrated.calibration.warnings:
        messages.warn(line)
    if calibrated.policy.criterion not in BUILT_IN:
        messages.warn(
            f"the bundle needs your own criterion '{calibrated.policy.criterion}': register it where the bundle is"
            " loaded (--register FILE.py:NAME, or runtime.register_criterion). Runners in other languages reject it"
        )
    scores = measured.scores if measured else None
    return replace(
        written.draft,
        policy=calibrated.policy,
        calibration=record,
        parity=parity,
        scores=scores,
    )
