"""``berxit-eval``: the score of every exit and the saved layers of each threshold, from one pass over the data."""

from __future__ import annotations

from pathlib import Path

import click

from berxit.runtime.console import debug_option, progress_bar, register_option
from berxit.runtime.storage import check_results_folder
from berxit.toolkit.commands.options import (
    PATH,
    adaptive_criterion_option,
    batch_size_option,
    check_split,
    checkpoint_argument,
    checkpoint_data_option,
    quiet_option,
    say,
    silence_library_logs,
    skip_bad_rows_option,
    split_option,
    warn,
)


@click.command("eval")
@checkpoint_argument
@checkpoint_data_option
@split_option
@batch_size_option
@adaptive_criterion_option
@click.option("--output", type=PATH, help="Folder of the results.  [default: CHECKPOINT/eval-FILE, as eval-dev]")
@skip_bad_rows_option
@quiet_option
@register_option
@debug_option
def command(
    checkpoint: Path,
    data: Path | None,
    split: str,
    batch_size: int,
    criterion: str | None,
    output: Path | None,
    skip_bad_rows: bool,
    quiet: bool,
) -> None:
    """Score every exit of CHECKPOINT, and compute the trade-off between layers and score for every exit criterion.

    Writes predictions.npz (every exit's output for every example), eval.json, eval.md and eval.png. MNLI has two dev
    splits: --split dev evaluates both.
    """
    if output or checkpoint.is_dir():
        check_results_folder(output or checkpoint)
    silence_library_logs()
    check_split(checkpoint, data)
    from berxit.toolkit.api import evaluate

    results = evaluate(
        checkpoint,
        data,
        split=split,
        criterion=criterion,
        batch_size=batch_size,
        skip_bad_rows=skip_bad_rows,
        progress=progress_bar("evaluating", quiet),
        report=say,
    )
    for result in results:
        click.echo(f"\n{result.file}: {result.evaluation.text()}\n")
        warn(result.evaluation.warnings)
        folder = output or checkpoint / f"eval-{result.file.stem}"
        if output and len(results) > 1:
            folder = output / result.file.stem
        click.echo(f"written: {', '.join(map(str, result.write(folder)))}")
