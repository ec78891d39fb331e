"""``berxit-export``: a checkpoint in, a bundle for a target out."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import debug_option, progress_bar
from toolkit.commands.options import PATH, checkpoint_argument, force_option, hush_libraries, numbers, quiet_option


@click.command("export")
@checkpoint_argument
@click.option("--target", required=True, help="What will run it: onnxruntime, tensorrt.")
@click.option("--output", type=PATH, help="The bundle: a folder that is not there yet.  [default: CHECKPOINT-TARGET]")
@click.option("--precision", help="onnxruntime: fp32; tensorrt: fp16, fp32, int8.  [default: the target's first]")
@click.option("--lengths", callback=numbers, help="Tokens that inputs are padded to, such as 16,32,64,128.")
@click.option("--max-batch", type=click.IntRange(min=1), help="Rows that a segment must take at once.")
@click.option("--target-version", help="The oldest software that must read it: jetpack5, jetpack6, tensorrt10, ...")
@force_option
@quiet_option
@debug_option
def command(
    checkpoint: Path,
    target: str,
    output: Path | None,
    precision: str | None,
    lengths: tuple[int, ...],
    max_batch: int | None,
    target_version: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Cut CHECKPOINT into one segment per layer, check every exit, and write a bundle."""
    hush_libraries()
    from exporters.export import export
    from exporters.options import ExportOptions

    output = output or checkpoint.with_name(f"{checkpoint.resolve().name}-{target}")
    parity: list[str] = []
    manifest = export(
        checkpoint,
        target,
        output,
        options=ExportOptions(precision, lengths, max_batch, target_version),
        force=force,
        progress=progress_bar("exporting", quiet),
        report=parity.append,
    )
    click.echo("\n".join(parity))
    if manifest.calibration is None:
        click.echo("not calibrated: the bundle never stops early. Run berxit-calibrate, then export again")
    click.echo(f"bundle: {output}")
    click.echo(f"next: python -m runtime.bench {output}")
