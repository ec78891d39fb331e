"""``berxit-export``: a checkpoint in, a bundle for a target out."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from berxit import devices
from berxit.exporters.options import ExportOptions
from berxit.exporters.targets import (
    TARGETS,
    batches_by_target,
    by_target,
    layouts_by_target,
    precisions_by_target,
    targets_with,
    variants_by_target,
    versions_by_target,
)
from berxit.runtime.arguments import refuse_alone
from berxit.runtime.console import FiniteRange, debug_option, progress_bar, register_flags, register_option
from berxit.toolkit.api import export
from berxit.toolkit.commands.options import (
    PATH,
    checkpoint_argument,
    force_option,
    quiet_option,
    silence_library_logs,
    warn,
)


def _lengths(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        lengths = tuple(sorted({int(part) for part in value.split(",")})) if value else ()
    except ValueError:
        raise click.BadParameter(f"'{value}': give numbers of tokens, as 32,64,128") from None
    if any(length < 1 for length in lengths):
        raise click.BadParameter(f"'{value}': a length is at least 1")
    return lengths


def _exits(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...] | str:
    if value == "auto":
        return value
    try:
        return tuple(int(part) for part in value.split(",")) if value else ()
    except ValueError:
        raise click.BadParameter(f"'{value}': give layers as 2,4,6, or auto") from None


def _names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",")) if value else ()


@click.command("export")
@checkpoint_argument
@click.option(
    "--data", type=PATH, help="The calibration data: a file or a folder.  [default: the texts that calibration stored]"
)
@click.option("--target", type=click.Choice(list(TARGETS)), help="Format of the segments. Or give --device.")
@click.option("--device", help="A name that `berxit devices` lists: fills in what is not given here.")
@click.option("--output", type=PATH, help="The bundle: a folder that does not exist yet.  [default: CHECKPOINT-TARGET]")
@click.option("--precision", help=f"{by_target(precisions_by_target())}. The first is the default.")
@click.option(
    "--lengths", callback=_lengths, help=f"{targets_with('lengths')}: input lengths to prepare for, as 32,64,128."
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    help=f"Largest number of rows per call of a segment. Defaults: {by_target(batches_by_target())}.",
)
@click.option(
    "--target-version",
    help=f"The oldest system that must run it. {by_target(versions_by_target())}. The first is the default.",
)
@click.option(
    "--exits",
    callback=_exits,
    help="Layers that get an exit, as 2,4,6; auto chooses them by measurement.  [default: all]",
)
@click.option(
    "--scores/--no-scores",
    default=True,
    help=f"{by_target(precisions_by_target(scored=True))}: run the calibration data through the bundle, report the"
    " scores, and choose the threshold from the bundle's outputs.  [default: --scores]",
)
@click.option(
    "--most-flips",
    type=FiniteRange(0, 100),
    metavar="PERCENT",
    help="With --scores: write nothing if more predictions differ from the checkpoint's full depth.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help=f"{targets_with('threads')}: default number of CPU threads of the bundle.  [default: the device's]",
)
@click.option("--accept-noise", is_flag=True, help="With --exits auto: choose on a busy machine, too.")
@click.option(
    "--layout", help=f"Memory layout of hidden states. {by_target(layouts_by_target())}. The first is the default."
)
@click.option(
    "--target-options",
    callback=_names,
    metavar="NAME,NAME",
    help=f"Variants of the segments. {by_target(variants_by_target())}.",
)
@click.option("--sign", type=PATH, help="Private ed25519 key (PEM), which signs the bundle.")
@force_option
@quiet_option
@register_option
@debug_option
def command(
    checkpoint: Path,
    data: Path | None,
    target: str | None,
    device: str | None,
    output: Path | None,
    precision: str | None,
    lengths: tuple[int, ...],
    max_batch: int | None,
    target_version: str | None,
    exits: tuple[int, ...] | str,
    scores: bool,
    most_flips: float | None,
    threads: int | None,
    accept_noise: bool,
    layout: str | None,
    target_options: tuple[str, ...],
    sign: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Split CHECKPOINT into one segment per layer, verify every exit, and write a bundle."""
    if exits != "auto":
        refuse_alone({"--accept-noise": accept_noise}, "--exits auto")
    silence_library_logs()
    exported = export(
        checkpoint,
        output,
        target=target,
        device=device,
        options=ExportOptions(precision, lengths, max_batch, target_version, layout, exits, threads, target_options),
        data=data,
        scores=scores,
        most_flips=most_flips,
        accept_noise=accept_noise,
        sign=sign,
        force=force,
        progress=progress_bar("exporting", quiet),
    )
    click.echo("\n".join(exported.report))
    if exported.manifest.calibration is None:
        click.echo("not calibrated: the bundle never exits early. Run berxit-calibrate, then export again")
    warn(exported.warnings)
    click.echo(f"bundle: {exported.bundle}")
    click.echo(next_step(exported.bundle, exported.manifest.target, exported.device))


def next_step(bundle: Path, target: str, profile: devices.Device | None) -> str:
    """The next step: measure the bundle on this machine or on its device, or add it to an app."""
    bench = f"python -m runtime.bench {shlex.quote(str(bundle))}{register_flags()}"
    machine = devices.this_machine()
    here = profile.matches(machine) if profile else target in devices.recognise(machine).targets
    if here:
        return f"next: {bench}"
    if profile is None:
        return f"next, on a device for {target} (berxit devices): {bench}"
    if profile.in_an_app:
        return (
            f"next: add {bundle} to the app for {profile.description}, whose runner.verify() checks it: docs/coreml.md"
        )
    return f"next, on {profile.description}: {bench}"
