"""``berxit-train``: a pre-trained encoder and labelled text in, a multi-exit checkpoint out."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from berxit.runtime.console import debug_option
from berxit.runtime.metrics import METRICS
from berxit.toolkit.commands.options import (
    PATH,
    data_for,
    data_option,
    force_option,
    hush_libraries,
    quiet_option,
    skip_bad_rows_option,
)
from berxit.train.strategies import STRATEGIES


@click.command("train")
@click.option("--model", required=True, help="Pre-trained encoder: a folder, or a name on the Hugging Face hub.")
@click.option("--task", "task_name", required=True, help="rte, mrpc, sst2, qnli, qqp, mnli, stsb, sick, or custom.")
@data_option
@click.option("--output", type=PATH, required=True, help="The checkpoint: a folder that is not there yet.")
@click.option(
    "--strategy", default=next(iter(STRATEGIES)), show_default=True, metavar="NAME", help=f"{', '.join(STRATEGIES)}."
)
@click.option("--lte/--no-lte", default=True, show_default=True, help="Learn when to exit, too.")
@click.option("--layers", type=int, help="Take only the first so many layers of the encoder.")
@click.option("--exit-head", default="linear", show_default=True, help="linear (the paper), or pooler (dense + tanh).")
@click.option(
    "--pooling", default="first", show_default=True, help="What exits read: first token (the paper), or mean."
)
@click.option("--epochs", default=3.0, show_default=True, type=float)
@click.option("--max-steps", type=int, help="Stop after so many optimiser steps, whatever --epochs says.")
@click.option("--batch-size", default=8, show_default=True, type=int)
@click.option("--learning-rate", default=2e-5, show_default=True, type=float)
@click.option("--head-learning-rate", type=float, help="Of exits and LTE.  [default: --learning-rate, as the paper]")
@click.option("--gradient-accumulation", default=1, show_default=True, type=int, help="Batches per optimiser step.")
@click.option("--bf16", is_flag=True, help="Mixed precision: bfloat16 where it is safe, float32 where it is not.")
@click.option("--warm-up-steps", default=0, show_default=True, type=int, help="Train the last exit alone at first.")
@click.option("--distillation", default=0.0, show_default=True, help="Weight of learning the last exit's answers, too.")
@click.option(
    "--layer-weights", default="uniform", show_default=True, help="Of the exits' losses: uniform, linear, or n numbers."
)
@click.option("--tensorboard", type=PATH, help="Folder for TensorBoard's logs.")
@click.option("--max-length", default=128, show_default=True, type=int, help="Tokens per input; longer ones are cut.")
@click.option("--seed", default=42, show_default=True, type=int)
@click.option("--limit-train", type=int, help="Train on the first N examples only.")
@click.option("--dev-fraction", type=float, help="Hold out this share of the rows as the dev split.  [default: none]")
@click.option("--text-column", "text_columns", multiple=True, help="custom: column with text; twice for pairs.")
@click.option("--label-column", help="custom: column with labels.  [default: label]")
@click.option("--regression", is_flag=True, help="custom: labels are numbers.")
@click.option("--metric", help=f"custom: {', '.join(METRICS)}.")
@click.option("--positive", help="custom, --metric f1: the class that F1 scores, where the names leave it open.")
@skip_bad_rows_option
@force_option
@quiet_option
@debug_option
def command(
    model: str,
    task_name: str,
    data: Path | None,
    output: Path,
    strategy: str,
    lte: bool,
    layers: int | None,
    exit_head: str,
    pooling: str,
    epochs: float,
    max_steps: int | None,
    batch_size: int,
    learning_rate: float,
    head_learning_rate: float | None,
    gradient_accumulation: int,
    bf16: bool,
    warm_up_steps: int,
    distillation: float,
    layer_weights: str,
    tensorboard: Path | None,
    max_length: int,
    seed: int,
    limit_train: int | None,
    dev_fraction: float | None,
    text_columns: tuple[str, ...],
    label_column: str | None,
    regression: bool,
    metric: str | None,
    positive: str | None,
    skip_bad_rows: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Fine-tune an encoder so that every layer can answer."""
    hush_libraries()
    from berxit.train.checkpoint import DEV_FILE
    from berxit.train.fine_tuning import fine_tune, has_dev, refuse_other_than_checkpoint
    from berxit.train.options import TrainingOptions
    from berxit.train.tasks import custom_task, get_task
    from berxit.train.trainer import processes_here

    options = TrainingOptions(
        model=model,
        strategy=strategy,
        lte=lte,
        layers=layers,
        exit_head=exit_head,
        pooling=pooling,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        gradient_accumulation=gradient_accumulation,
        bf16=bf16,
        warm_up_steps=warm_up_steps,
        distillation=distillation,
        layer_weights=layer_weights,
        max_length=max_length,
        seed=seed,
        limit_train=limit_train,
        dev_fraction=dev_fraction,
        skip_bad_rows=skip_bad_rows,
    )
    if task_name != "custom" and (text_columns or label_column or regression or metric or positive):
        get_task(task_name)
        raise click.UsageError(
            "--text-column, --label-column, --regression, --metric and --positive go with --task custom, not"
            f" {task_name}"
        )
    refuse_other_than_checkpoint(output, force)
    processes = processes_here()
    if task_name == "custom":
        data = data_for(task_name, data, "train")
        task = custom_task(
            data,
            text_columns or ("text",),
            label_column or "label",
            regression=regression,
            metric=metric,
            positive=positive,
            skip_bad_rows=skip_bad_rows,
        )
    else:
        task = get_task(task_name)
        with processes.local_main_process_first():  # of a machine's processes one fetches, the others find it there
            data = data_for(task_name, data, "train")
    fine_tune(
        task,
        data,
        options,
        output,
        logs=tensorboard,
        force=force,
        quiet=quiet,
        report=lambda line: click.echo(line, err=True),
    )
    if processes.is_main_process:  # under torchrun, one of several
        click.echo(f"checkpoint: {output}")
        if not has_dev(data) and dev_fraction is None:
            click.echo(
                f"{data} has no dev split, on which exits are calibrated: train again and hold out a tenth of it"
            )
            again = [*given_arguments(), "--dev-fraction", "0.1", *([] if force else ["--force"])]
            click.echo(f"next: berxit-train {shlex.join(again)}")
            return
        dev = output / DEV_FILE if dev_fraction is not None else data
        skip = ["--skip-bad-rows"] if skip_bad_rows else []
        click.echo(f"next: berxit-calibrate {shlex.join([str(output), '--data', str(dev), *skip])}")


def given_arguments() -> list[str]:
    """The arguments of this call, as the user could type them again."""
    context = click.get_current_context()
    arguments: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if context.get_parameter_source(str(parameter.name)) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if not isinstance(parameter, click.Option) or value is None:
            continue
        flag = parameter.secondary_opts[0] if value is False else parameter.opts[0]
        if parameter.is_flag:
            arguments.append(flag)
            continue
        for each in value if parameter.multiple else (value,):
            arguments += [flag, str(each)]
    return arguments
