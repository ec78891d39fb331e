"""Options and messages that several commands share."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from berxit.runtime.backends import options_help
from berxit.runtime.console import refuse_split_of_no_folder
from berxit.runtime.kinds import KINDS, Kind
from berxit.runtime.metrics import METRICS
from berxit.runtime.policies import CRITERIA

PATH = click.Path(path_type=Path)
LABEL_COLUMNS = "; ".join(
    [
        Kind.label_column,
        *(f"{name}: {kind.label_column}" for name, kind in KINDS.items() if kind.label_column != Kind.label_column),
    ]
)
"""Default label column, with the exceptions of some kinds."""

checkpoint_argument = click.argument("checkpoint", type=PATH)
data_option = click.option(
    "--data", type=PATH, help="A file, or a folder with train/dev/test files.  [default: the task's, from the hub]"
)
checkpoint_data_option = click.option(
    "--data",
    type=PATH,
    help="A file, or a folder with train/dev/test files.  [default: the rows that training held out, else the task's"
    " data from the hub]",
)
split_option = click.option("--split", default="dev", show_default=True, help="The split, if --data is a folder.")
batch_size_option = click.option(
    "--batch-size", default=32, show_default=True, type=click.IntRange(min=1), help="Rows per batch of the pass."
)
skip_bad_rows_option = click.option(
    "--skip-bad-rows", is_flag=True, help="Skip invalid rows and report their number, instead of failing."
)


def _criterion_option(names: Iterable[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--criterion",
        metavar="NAME",
        help=f"{', '.join(names)}, or your own as FILE.py:NAME.  [default: confidence; lte for regression]",
    )


criterion_option = _criterion_option(CRITERIA)
adaptive_criterion_option = _criterion_option(name for name, each in CRITERIA.items() if each.adaptive)
force_option = click.option("--force", is_flag=True, help="Replace an existing output.")
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress bars.")


def runner_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that load a runner: ``backend``, ``option_flags`` and ``threads``."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the bundle's]"),
        click.option(
            "--backend-option",
            "option_flags",
            multiple=True,
            metavar="OPTION",
            help=f"Option of the backend, can be repeated. {options_help()}",
        ),
        click.option("--backend", help="Backend, if the target has several.  [default: the first installed]"),
    ):
        command = option(command)
    return command


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that describe a task and its data for training: ``text_columns``, ``label_column``,
    ``heads``, ``kind``, ``regression``, ``metric``, ``positive`` and ``skip_bad_rows``."""
    for option in (
        skip_bad_rows_option,
        click.option("--positive", help="custom, --metric f1: the class that F1 scores, if its name does not show it."),
        click.option("--metric", help=f"custom: {', '.join(METRICS)}, or your own as FILE.py:NAME."),
        click.option("--regression", is_flag=True, help="custom: the same as --kind regression."),
        click.option(
            "--head",
            "heads",
            multiple=True,
            metavar="NAME=COLUMN",
            help="custom: a named head and the column with its classes, can be repeated. One model for several labels.",
        ),
        click.option("--kind", metavar="NAME", help=f"custom: {', '.join(KINDS)}.  [default: classification]"),
        click.option("--label-column", help=f"custom: column with labels.  [default: {LABEL_COLUMNS}]"),
        click.option(
            "--text-column",
            "text_columns",
            multiple=True,
            help="custom: column with text; twice for pairs.  [default: text]",
        ),
    ):
        command = option(command)
    return command


def check_split(checkpoint: Path, data: Path | None) -> None:
    """Raises InputError if --split is given and has no effect, because --data is a file.

    It has an effect if the checkpoint was trained on this file: only the split dev means the rows that training held
    out.
    """
    from berxit.train.splitting import held_out_rows  # imports torch

    if data is not None and held_out_rows(checkpoint, data, "dev") is None:
        refuse_split_of_no_folder(data)


def say(line: str) -> None:
    """Prints a line on standard error."""
    click.echo(line, err=True)


def warn(messages: Iterable[str]) -> None:
    """Prints each message as a highlighted warning on standard error."""
    for message in messages:
        click.secho(f"warning: {message}", fg="yellow", bold=True, err=True)


def silence_library_logs() -> None:
    """Hides log messages and progress bars of torch, transformers and coremltools. Call it before importing torch."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module="torch|transformers|onnx")
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)
    logging.getLogger("coremltools").setLevel(logging.ERROR)
