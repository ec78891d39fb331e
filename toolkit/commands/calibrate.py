"""``berxit-calibrate``: choose when the model stops, on data that training has not seen."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import debug_option, progress_bar
from toolkit.commands.options import (
    batch_size_option,
    checkpoint_argument,
    data_for,
    data_option,
    hush_libraries,
    quiet_option,
    split_option,
)


@click.command("calibrate")
@checkpoint_argument
@data_option
@split_option
@click.option("--criterion", help="confidence, entropy, lte or patience.  [default: confidence; lte for regression]")
@click.option("--keep", default=0.99, show_default=True, type=float, help="Share of the last exit's score to keep.")
@batch_size_option
@quiet_option
@debug_option
def command(
    checkpoint: Path, data: Path | None, split: str, criterion: str | None, keep: float, batch_size: int, quiet: bool
) -> None:
    """Choose CHECKPOINT's exit threshold and write it beside the weights, with how it was chosen.

    The cheapest threshold that keeps the share --keep of the last exit's score. Exports carry it into their bundles.
    """
    hush_libraries()
    from train.calibration import POLICY_FILE, calibrate
    from train.checkpoint import read_config

    chosen = calibrate(
        checkpoint,
        data_for(read_config(checkpoint)["task"], data),
        split=split,
        criterion=criterion,
        keep=keep,
        batch_size=batch_size,
        progress=progress_bar("calibrating", quiet),
    )
    click.echo(chosen.summary())
    click.echo(f"written: {checkpoint / POLICY_FILE}")
    click.echo(f"next: berxit-export --target onnxruntime {checkpoint}")
