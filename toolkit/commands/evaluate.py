"""``berxit-eval``: every exit's score, and what each threshold would save, from one pass over the data."""

from __future__ import annotations

from pathlib import Path

import click

from berxit.runtime.console import debug_option, progress_bar
from berxit.runtime.examples import split_files
from berxit.toolkit.commands.options import (
    PATH,
    batch_size_option,
    checkpoint_argument,
    criterion_option,
    data_for,
    data_option,
    quiet_option,
    silence_library_logs,
    skip_bad_rows_option,
    split_option,
    warn,
)


@click.command("eval")
@checkpoint_argument
@data_option
@split_option
@batch_size_option
@criterion_option
@click.option("--output", type=PATH, help="Folder of the results.  [default: CHECKPOINT/eval-FILE, as eval-dev]")
@skip_bad_rows_option
@quiet_option
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
    """Score every exit of CHECKPOINT, and the trade-off between layers and score by every exit criterion.

    Writes predictions.npz (every exit's output for every example), eval.json, eval.md and eval.png. Of MNLI, --split
    dev is both its dev splits, one after the other.
    """
    silence_library_logs()
    from berxit.toolkit.evaluation_report import evaluate, write_evaluation
    from berxit.train.checkpoint import load_checkpoint, read_config
    from berxit.train.evaluation import best_device, predict
    from berxit.train.tasks import task_of

    data = data_for(read_config(checkpoint)["task"], data, split)
    files = split_files(data, split)
    model, tokenizer = load_checkpoint(checkpoint, best_device())
    for file in files:
        examples = task_of(model.config).read(file, split, skip_bad_rows=skip_bad_rows)
        if examples.skipped:
            click.echo(examples.skipped_line(file), err=True)
        predictions = predict(model, tokenizer, examples, batch_size, progress_bar("evaluating", quiet), str(file))
        evaluation = evaluate(predictions, criterion)
        click.echo(f"\n{file}: {evaluation.text()}\n")
        warn(evaluation.warnings)
        folder = output or checkpoint / f"eval-{file.stem}"
        if output and len(files) > 1:
            folder = output / file.stem
        click.echo(f"written: {', '.join(map(str, write_evaluation(evaluation, predictions, folder)))}")
