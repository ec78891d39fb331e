"""``berxit-eval``: every exit's score, and what each threshold would save, from one pass over the data."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import debug_option, progress_bar
from toolkit.commands.options import (
    PATH,
    batch_size_option,
    checkpoint_argument,
    data_for,
    data_option,
    hush_libraries,
    quiet_option,
    split_option,
)


@click.command("eval")
@checkpoint_argument
@data_option
@split_option
@batch_size_option
@click.option("--criterion", help="Of the trade-off table.  [default: confidence; lte for regression]")
@click.option("--output", type=PATH, help="Folder of the results.  [default: CHECKPOINT/eval-SPLIT]")
@quiet_option
@debug_option
def command(
    checkpoint: Path,
    data: Path | None,
    split: str,
    batch_size: int,
    criterion: str | None,
    output: Path | None,
    quiet: bool,
) -> None:
    """Score every exit of CHECKPOINT, and the trade-off between layers and score.

    Writes predictions.npz (every exit's output for every example), eval.json, eval.md and eval.png.
    """
    hush_libraries()
    from toolkit.evaluation_report import evaluate, write_evaluation
    from train.checkpoint import load_checkpoint, read_config
    from train.evaluation import predict
    from train.tasks import task_of

    data = data_for(read_config(checkpoint)["task"], data)
    model, tokenizer = load_checkpoint(checkpoint)
    examples = task_of(model.config).read(data, split)
    predictions = predict(model, tokenizer, examples, batch_size, progress_bar("evaluating", quiet))
    evaluation = evaluate(predictions, criterion)
    click.echo("\n" + evaluation.text() + "\n")
    files = write_evaluation(evaluation, predictions, output or checkpoint / f"eval-{split}")
    click.echo(f"written: {', '.join(map(str, files))}")
