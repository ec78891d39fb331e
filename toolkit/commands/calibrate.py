"""``berxit-calibrate``: chooses the exit threshold on data that the checkpoint was not trained on."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from berxit.runtime.console import debug_option, progress_bar
from berxit.toolkit.api import calibrate, check_rules, default_bundle
from berxit.toolkit.commands.options import (
    PATH,
    batch_size_option,
    checkpoint_argument,
    criterion_option,
    data_option,
    quiet_option,
    say,
    silence_library_logs,
    skip_bad_rows_option,
    split_option,
    warn,
)


@click.command("calibrate")
@checkpoint_argument
@data_option
@split_option
@criterion_option
@click.option("--keep", type=float, help="Share of the last exit's score to keep.  [default: 0.99]")
@click.option("--risk", type=float, help="Instead: largest mean difference of predictions from the last exit's.")
@click.option(
    "--delta", type=float, help="With --risk: largest probability that the risk is exceeded.  [default: 0.05]"
)
@click.option(
    "--budget-ms", type=float, help="Instead: largest mean latency in milliseconds per input, predicted from --bench."
)
@click.option("--bench", type=PATH, help="With --budget-ms: the bench.json of a bundle of this checkpoint.")
@click.option("--accept-noise", is_flag=True, help="With --budget-ms: use a bench of a busy machine, too.")
@batch_size_option
@skip_bad_rows_option
@quiet_option
@debug_option
def command(
    checkpoint: Path,
    data: Path | None,
    split: str,
    criterion: str | None,
    keep: float | None,
    risk: float | None,
    delta: float | None,
    budget_ms: float | None,
    bench: Path | None,
    accept_noise: bool,
    batch_size: int,
    skip_bad_rows: bool,
    quiet: bool,
) -> None:
    """Choose CHECKPOINT's exit threshold and write it to exit_policy.json, with a record of the choice.

    One of three rules chooses it: the cheapest threshold that keeps the share --keep of the last exit's score; the
    cheapest threshold whose risk of a different prediction than the last exit's is at most --risk, with probability
    1 - --delta; or the best score within --budget-ms. Exports copy the policy to their bundles.
    """
    check_rules(keep, risk, delta, budget_ms, bench)  # before torch is imported
    silence_library_logs()
    from berxit.train.calibration import POLICY_FILE

    chosen = calibrate(
        checkpoint,
        data,
        keep=keep,
        risk=risk,
        delta=delta,
        budget_ms=budget_ms,
        bench=bench,
        accept_noise=accept_noise,
        split=split,
        criterion=criterion,
        batch_size=batch_size,
        skip_bad_rows=skip_bad_rows,
        progress=progress_bar("calibrating", quiet),
        report=say,
    )
    click.echo(f"{chosen.description}:")
    click.echo(chosen.summary())
    click.echo(f"written: {checkpoint / POLICY_FILE}")
    warn(chosen.warnings)
    exported = default_bundle(checkpoint, "onnxruntime").exists()
    force = " --force" if exported else ""
    click.echo(f"next: berxit-export --target onnxruntime {shlex.quote(str(checkpoint))}{force}")
