"""``berxit-calibrate``: choose when the model stops, on data that training has not seen."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from berxit.runtime.console import debug_option, progress_bar
from berxit.toolkit.commands.options import (
    PATH,
    batch_size_option,
    checkpoint_argument,
    criterion_option,
    data_for,
    data_option,
    default_bundle,
    hush_libraries,
    quiet_option,
    skip_bad_rows_option,
    split_option,
    warn,
)

if TYPE_CHECKING:
    from berxit.train.rules import Rule


@click.command("calibrate")
@checkpoint_argument
@data_option
@split_option
@criterion_option
@click.option("--keep", type=float, help="Share of the last exit's score to keep.  [default: 0.99]")
@click.option("--risk", type=float, help="Instead: how far answers may be from the last exit's, on average.")
@click.option("--delta", type=float, help="With --risk: how probable it may be that it is exceeded.  [default: 0.05]")
@click.option("--budget-ms", type=float, help="Instead: mean milliseconds per input, as --bench predicts them.")
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
    """Choose CHECKPOINT's exit threshold and write it beside the weights, with how it was chosen.

    By one of three rules: the cheapest threshold that keeps the share --keep of the last exit's score; the cheapest
    whose risk of another answer than the last exit's is at most --risk, with probability 1 - --delta; or the best score
    within --budget-ms. Exports carry it into their bundles.
    """
    check_exclusive(keep, risk, delta, budget_ms, bench)
    hush_libraries()
    from berxit.train.calibration import POLICY_FILE, calibrate
    from berxit.train.checkpoint import read_config

    task_name = read_config(checkpoint)["task"]
    rule = rule_for(checkpoint, keep, risk, delta, budget_ms, bench, accept_noise=accept_noise)
    chosen = calibrate(
        checkpoint,
        data_for(task_name, data, split),
        split=split,
        criterion=criterion,
        rule=rule,
        batch_size=batch_size,
        skip_bad_rows=skip_bad_rows,
        progress=progress_bar("calibrating", quiet),
        report=lambda line: click.echo(line, err=True),
    )
    click.echo(f"{chosen.description}:")
    click.echo(chosen.summary())
    click.echo(f"written: {checkpoint / POLICY_FILE}")
    warn(chosen.warnings)
    there = default_bundle(checkpoint, "onnxruntime").exists()
    click.echo(f"next: berxit-export --target onnxruntime {shlex.quote(str(checkpoint))}{' --force' if there else ''}")


def check_exclusive(
    keep: float | None, risk: float | None, delta: float | None, budget_ms: float | None, bench: Path | None
) -> None:
    """Raises UsageError for two rules at once, or a rule's option without the rule."""
    rules = {"--keep": keep, "--risk": risk, "--budget-ms": budget_ms}
    given = [flag for flag, value in rules.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other: choose one")
    if delta is not None and risk is None:
        raise click.UsageError("--delta goes with --risk")
    if bench is not None and budget_ms is None:
        raise click.UsageError("--bench goes with --budget-ms")
    if budget_ms is not None and bench is None:
        raise click.UsageError("--budget-ms needs --bench bench.json: export CHECKPOINT, then berxit-bench the bundle")


def rule_for(
    checkpoint: Path,
    keep: float | None,
    risk: float | None,
    delta: float | None,
    budget_ms: float | None,
    bench: Path | None,
    *,
    accept_noise: bool = False,
) -> Rule:
    """What the options ask for, of this checkpoint."""
    from berxit.train.configuration import MultiExitConfig
    from berxit.train.rules import Budget, Keep, Risk

    if risk is not None:
        return Risk(risk) if delta is None else Risk(risk, delta)
    if budget_ms is not None and bench is not None:
        return Budget.of_bench(
            budget_ms, bench, MultiExitConfig.from_pretrained(str(checkpoint)), accept_noise=accept_noise
        )
    return Keep() if keep is None else Keep(keep)
