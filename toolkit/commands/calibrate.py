"""``berxit-calibrate``: chooses the exit threshold on data that the checkpoint was not trained on."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from berxit.runtime.console import debug_option, progress_bar, register_flags, register_option
from berxit.runtime.extensions import is_reference
from berxit.toolkit.api import calibrate, default_bundle
from berxit.toolkit.commands.options import (
    PATH,
    batch_size_option,
    check_split,
    checkpoint_argument,
    checkpoint_data_option,
    criterion_option,
    quiet_option,
    say,
    silence_library_logs,
    skip_bad_rows_option,
    split_option,
    warn,
)
from berxit.toolkit.rule_options import RuleOptions


@click.command("calibrate")
@checkpoint_argument
@checkpoint_data_option
@split_option
@criterion_option
@click.option("--fixed", is_flag=True, help="One exit layer for all inputs; exports then have no deeper layers.")
@click.option("--keep", type=float, help="Share of the last exit's score to keep on new data.  [default: 0.99]")
@click.option("--risk", type=float, help="Instead: largest mean loss, see --risk-of.")
@click.option("--risk-of", metavar="LOSS", help="With --risk: disagreement, label-error or misses:CLASS.")
@click.option("--per", help="With --risk: bound it for all inputs, each class, or the inputs of each exit.  [all]")
@click.option("--delta", type=float, help="With --keep or --risk: probability that it fails.  [default: 0.1]")
@click.option("--optimistic", is_flag=True, help="With --keep: no guarantee for new data, only the score on this data.")
@click.option("--budget-ms", type=float, help="Instead: mean milliseconds per input, as --bench predicts them.")
@click.option("--bench", type=PATH, help="With --budget-ms: the bench.json of a bundle of this checkpoint.")
@click.option("--accept-noise", is_flag=True, help="With --budget-ms: use a bench of a busy machine, too.")
@click.option("--patience", default=1, show_default=True, help="Consecutive exits that must pass the threshold.")
@click.option("--off", multiple=True, type=int, metavar="LAYER", help="A layer whose exit is switched off.")
@click.option("--full-depth-class", multiple=True, metavar="NAME", help="A class for which no input exits early.")
@click.option("--fit-temperatures", is_flag=True, help="Fit a temperature per exit.")
@click.option("--thresholds-per-exit", is_flag=True, help="Fit a threshold per exit, at which all agree equally often.")
@batch_size_option
@skip_bad_rows_option
@quiet_option
@register_option
@debug_option
def command(
    checkpoint: Path,
    data: Path | None,
    split: str,
    criterion: str | None,
    fixed: bool,
    keep: float | None,
    risk: float | None,
    risk_of: str | None,
    per: str | None,
    delta: float | None,
    optimistic: bool,
    budget_ms: float | None,
    bench: Path | None,
    accept_noise: bool,
    patience: int,
    off: tuple[int, ...],
    full_depth_class: tuple[str, ...],
    fit_temperatures: bool,
    thresholds_per_exit: bool,
    batch_size: int,
    skip_bad_rows: bool,
    quiet: bool,
) -> None:
    """Choose CHECKPOINT's exit threshold and write it to exit_policy.json, with a record of the choice.

    There are three rules. --keep: the cheapest threshold whose score on new data is at least this share of the last
    exit's, with probability 1 - DELTA. --risk: the cheapest threshold whose loss on new data is at most this much on
    average, with probability 1 - DELTA. The loss is disagreement with the last exit (the data then needs no labels),
    label-error (above the last exit's), or misses:CLASS. --budget-ms: the best score within this mean latency. Exports
    copy the threshold into their bundles.

    The other options describe the policies among which the rule chooses.
    """
    RuleOptions(
        keep, risk, risk_of, per, delta, optimistic, budget_ms, bench, accept_noise
    )  # checked before torch is imported
    silence_library_logs()
    check_split(checkpoint, data)
    from berxit.train.calibration import POLICY_FILE

    chosen = calibrate(
        checkpoint,
        data,
        keep=keep,
        risk=risk,
        risk_of=risk_of,
        per=per,
        delta=delta,
        optimistic=optimistic,
        budget_ms=budget_ms,
        bench=bench,
        accept_noise=accept_noise,
        split=split,
        criterion=criterion,
        fixed=fixed,
        patience=patience,
        off=off,
        full_depth_classes=full_depth_class,
        fit_temperatures=fit_temperatures,
        thresholds_per_exit=thresholds_per_exit,
        batch_size=batch_size,
        skip_bad_rows=skip_bad_rows,
        progress=progress_bar("calibrating", quiet),
        report=say,
    )
    click.echo(f"{chosen.description}:")
    click.echo(chosen.summary())
    click.echo(f"written: {checkpoint / POLICY_FILE}")
    if chosen.comparison:
        click.echo(chosen.comparison)
    warn(chosen.warnings)
    exported = default_bundle(checkpoint, "onnxruntime").exists()
    force = " --force" if exported else ""
    own = register_flags(*([criterion] if criterion and is_reference(criterion) else []))
    click.echo(f"next: berxit-export --target onnxruntime {shlex.quote(str(checkpoint))}{force}{own}")
