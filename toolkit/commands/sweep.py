"""``berxit sweep``: searches learning rates, pooling and strategy, ranked by the area of the trade-off curve."""

from __future__ import annotations

from pathlib import Path

import click

from berxit.runtime.console import FiniteRange, debug_option, progress_bar, register_flags, register_option
from berxit.runtime.policies import criterion_from
from berxit.toolkit.commands.options import (
    PATH,
    adaptive_criterion_option,
    data_option,
    force_option,
    quiet_option,
    say,
    silence_library_logs,
    task_options,
)
from berxit.train.recipes import DEFAULT
from berxit.train.strategies import CLASS_WEIGHTS, STRATEGIES

TRIALS = 20
"""Number of trials if no budget is given."""
_SEARCHED = ", ".join(name for name, each in STRATEGIES.items() if not each.last_exit_only)


@click.command("sweep")
@click.option("--model", required=True, help="Pre-trained encoder: a folder, or a name on the Hugging Face hub.")
@click.option("--task", "task_name", required=True, help="rte, mrpc, sst2, qnli, qqp, mnli, stsb, sick, or custom.")
@data_option
@click.option("--output", type=PATH, default=Path("sweep"), show_default=True, help="Folder of the sweep.")
@click.option("--trials", type=click.IntRange(min=1), help=f"Number of trials.  [default: {TRIALS}, or --minutes]")
@click.option("--minutes", type=FiniteRange(min=0, min_open=True), help="Time of all trials.")
@click.option(
    "--strategy", "strategies", multiple=True, metavar="NAME", help=f"Can be repeated.  [default: {_SEARCHED}]"
)
@click.option("--pooling", "poolings", multiple=True, metavar="NAME", help="Can be repeated.  [default: first, mean]")
@click.option(
    "--learning-rate", nargs=2, type=float, metavar="LOW HIGH", default=(1e-5, 5e-4), show_default=True, help="Range."
)
@click.option(
    "--head-learning-rate",
    nargs=2,
    type=float,
    metavar="LOW HIGH",
    default=(1e-5, 1e-2),
    show_default=True,
    help="Range of the learning rate of exits and LTE.",
)
@adaptive_criterion_option
@click.option("--lte/--no-lte", default=True, show_default=True, help="Train the LTE module, too.")
@click.option("--layers", type=int, help="Use only the first N layers of the encoder.")
@click.option("--epochs", default=3.0, show_default=True, type=float)
@click.option("--batch-size", default=DEFAULT["batch_size"], show_default=True, type=int)
@click.option("--max-length", default=128, show_default=True, type=int, help="Tokens per input.")
@click.option("--class-weights", default="none", show_default=True, metavar="NAME", help=f"{', '.join(CLASS_WEIGHTS)}.")
@click.option("--seed", default=42, show_default=True, type=int)
@click.option("--limit-train", type=int, help="Use the first N training examples only.")
@task_options
@force_option
@quiet_option
@register_option
@debug_option
def command(
    model: str,
    task_name: str,
    data: Path | None,
    output: Path,
    trials: int | None,
    minutes: float | None,
    strategies: tuple[str, ...],
    poolings: tuple[str, ...],
    learning_rate: tuple[float, float],
    head_learning_rate: tuple[float, float],
    criterion: str | None,
    lte: bool,
    layers: int | None,
    epochs: float,
    batch_size: int,
    max_length: int,
    class_weights: str,
    seed: int,
    limit_train: int | None,
    text_columns: tuple[str, ...],
    label_column: str | None,
    heads: tuple[str, ...],
    kind: str | None,
    regression: bool,
    metric: str | None,
    positive: str | None,
    skip_bad_rows: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Search learning rates, pooling and strategy for a model and a task, within a budget of trials or minutes.

    A trial is a fine-tuning. Its rank is the area under its trade-off curve, on training rows that are held out for
    this purpose. The dev split chooses nothing. An interrupted sweep continues with the same command, and a larger
    budget adds trials. Writes sweep.md, sweep.json, sweep.png and the checkpoint OUTPUT/best, and prints the
    berxit-train command of the best setting.
    """
    import optuna  # noqa: F401  # before the data is read: without it, one line names the extra

    silence_library_logs()
    from berxit.toolkit.sweep.findings import best_of, sweep_findings, train_command
    from berxit.toolkit.sweep.search import Budget, SweepRequest, search
    from berxit.toolkit.sweep.space import Space, searchable
    from berxit.train.configuration import POOLINGS
    from berxit.train.hub import task_data
    from berxit.train.options import TrainingOptions
    from berxit.train.tasks import TaskOptions, kind_of
    from berxit.train.user_strategies import strategy_from

    described = TaskOptions(text_columns, label_column, kind_of(kind, regression), metric, positive, heads)
    described.check(task_name)
    references = {strategy_from(text): text for text in strategies}
    space = Space(
        tuple(references) or searchable(),
        poolings or tuple(POOLINGS),
        learning_rate,
        head_learning_rate,
    )
    base = TrainingOptions(
        model=model,
        lte=lte,
        layers=layers,
        epochs=epochs,
        batch_size=batch_size,
        max_length=max_length,
        class_weights=class_weights,
        seed=seed,
        limit_train=limit_train,
        skip_bad_rows=skip_bad_rows,
    )
    files = task_data(task_name, data, "train", say)
    task = described.task(task_name, files, skip_bad_rows=skip_bad_rows)
    sweep = SweepRequest(task, files, base, space, output, criterion_from(criterion) if criterion else None)
    budget = Budget(trials if trials or minutes else TRIALS, minutes)
    done, rows = search(sweep, budget, force=force, bar=lambda label: progress_bar(label, quiet), report=say)
    findings = sweep_findings(sweep, done, rows)
    click.echo(f"\n{findings.text()}\n")
    click.echo(f"written: {', '.join(map(str, [*findings.write(output), output / 'best']))}")
    checkpoint = output.with_name(f"{output.name}-checkpoint")
    best = train_command(sweep, best_of(done), described, data, checkpoint, references)
    click.echo(f"next: {best}{register_flags()}")
