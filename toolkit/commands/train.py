"""``berxit-train``: fine-tunes a pre-trained encoder on labelled text and writes a multi-exit checkpoint."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from berxit.runtime.console import debug_option, given, progress_bar, register_flags, register_option
from berxit.runtime.extensions import is_reference
from berxit.runtime.storage import check_results_folder
from berxit.toolkit.commands.options import (
    PATH,
    data_option,
    force_option,
    quiet_option,
    say,
    silence_library_logs,
    task_options,
)
from berxit.train.recipes import DEFAULT, PAPER
from berxit.train.strategies import CLASS_WEIGHTS, STRATEGIES


def described(recipe: dict[str, Any]) -> str:
    """The recipe as options of the command line."""
    named = {**recipe, "head_learning_rate": recipe["head_learning_rate"] or recipe["learning_rate"]}
    return " ".join(
        f"--{name.replace('_', '-')} {value:g}" if isinstance(value, float) else f"--{name.replace('_', '-')} {value}"
        for name, value in named.items()
    )


@click.command("train")
@click.option(
    "--model",
    required=True,
    help="Pre-trained encoder: a folder, or a name on the hub. Or a checkpoint to continue from.",
)
@click.option("--task", "task_name", required=True, help="rte, mrpc, sst2, qnli, qqp, mnli, stsb, sick, or custom.")
@data_option
@click.option("--output", type=PATH, required=True, help="The checkpoint: a folder that does not exist yet.")
@click.option(
    "--strategy",
    default=next(iter(STRATEGIES)),
    show_default=True,
    metavar="NAME",
    help=f"{', '.join(STRATEGIES)}, or your own as FILE.py:NAME.",
)
@click.option("--lte/--no-lte", default=True, show_default=True, help="Train the LTE module, too.")
@click.option("--layers", type=int, help="Use only the first N layers of the encoder.")
@click.option("--exit-head", default="linear", show_default=True, help="linear (the paper), or pooler (dense + tanh).")
@click.option(
    "--pooling",
    help="Input of the exits: mean over the tokens, or first token.  [default: mean, or that of a checkpoint]",
)
@click.option("--epochs", default=3.0, show_default=True, type=float)
@click.option("--max-steps", type=int, help="Stop after N optimizer steps; overrides --epochs.")
@click.option("--batch-size", default=DEFAULT["batch_size"], show_default=True, type=int)
@click.option("--learning-rate", default=DEFAULT["learning_rate"], show_default=True, type=float)
@click.option(
    "--head-learning-rate",
    default=DEFAULT["head_learning_rate"],
    show_default=True,
    type=float,
    help="Learning rate of exits and LTE.",
)
@click.option("--paper", is_flag=True, help=f"The paper's recipe: {described(PAPER)}. Other options take precedence.")
@click.option("--gradient-accumulation", default=1, show_default=True, type=int, help="Batches per optimizer step.")
@click.option("--bf16", is_flag=True, help="Mixed precision: bfloat16 matmuls, float32 weights and losses.")
@click.option("--warm-up-steps", default=0, show_default=True, type=int, help="Steps that train the last exit alone.")
@click.option(
    "--distillation", default=0.0, show_default=True, help="Weight of the distillation loss to the last exit."
)
@click.option(
    "--layer-weights",
    default="uniform",
    show_default=True,
    help="Weights of the exits' losses: uniform, linear, or n numbers.",
)
@click.option("--tensorboard", type=PATH, help="Folder for TensorBoard logs.")
@click.option(
    "--max-length", default=128, show_default=True, type=int, help="Tokens per input; longer inputs are truncated."
)
@click.option("--seed", default=42, show_default=True, type=int)
@click.option("--limit-train", type=int, help="Train on the first N examples only.")
@click.option(
    "--dev-fraction",
    type=float,
    help="Share of the rows to hold out as the dev split, if the data has none; 0: none.  [default: 0.1]",
)
@click.option("--early-stopping", type=int, metavar="N", help="Stop after N epochs without a better score.")
@click.option("--class-weights", default="none", show_default=True, metavar="NAME", help=f"{', '.join(CLASS_WEIGHTS)}.")
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
    strategy: str,
    lte: bool,
    layers: int | None,
    exit_head: str,
    pooling: str | None,
    epochs: float,
    max_steps: int | None,
    batch_size: int,
    learning_rate: float,
    head_learning_rate: float | None,
    paper: bool,
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
    early_stopping: int | None,
    class_weights: str,
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
    """Fine-tune an encoder so that every layer can make a prediction."""
    if tensorboard is not None:
        check_results_folder(tensorboard, "--tensorboard")
    silence_library_logs()
    from berxit.toolkit.api import fine_tune
    from berxit.train.options import TrainingOptions

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
        early_stopping=early_stopping,
        class_weights=class_weights,
        skip_bad_rows=skip_bad_rows,
    )
    if paper:
        options = replace(options, **{name: value for name, value in PAPER.items() if not given(name)})
    result = fine_tune(
        options,
        data,
        output,
        task=task_name,
        text_columns=text_columns,
        label_column=label_column,
        heads=heads,
        kind=kind,
        regression=regression,
        metric=metric,
        positive=positive,
        tensorboard=tensorboard,
        force=force,
        progress=progress_bar("fine-tuning", quiet),
        report=say,
    )
    if not result.main_process:
        return
    click.echo(f"checkpoint: {result.checkpoint}")
    if result.calibration_data is None:
        click.echo(
            f"{result.data} has no dev split, which calibration needs: train again and hold out a tenth of the rows"
        )
        again = [*given_arguments(), "--dev-fraction", "0.1", *([] if force else ["--force"])]
        click.echo(f"next: berxit-train {shlex.join(again)}{register_flags()}")
        return
    skip = ["--skip-bad-rows"] if skip_bad_rows else []
    calibrate = [str(result.checkpoint), "--data", str(result.calibration_data), *skip]
    own = register_flags(*([metric] if metric and is_reference(metric) else []))
    click.echo(f"next: berxit-calibrate {shlex.join(calibrate)}{own}")


def given_arguments() -> list[str]:
    """The command-line arguments of this call, for a command to rerun."""
    context = click.get_current_context()
    arguments: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if not given(str(parameter.name)):
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
