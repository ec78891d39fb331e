"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import click

PATH = click.Path(path_type=Path)

checkpoint_argument = click.argument("checkpoint", type=PATH)
data_option = click.option("--data", type=PATH, required=True, help="A file, or a folder with train/dev/test files.")
split_option = click.option("--split", default="dev", show_default=True, help="The split, where --data is a folder.")
batch_size_option = click.option(
    "--batch-size", default=32, show_default=True, type=click.IntRange(min=1), help="Rows of a pass."
)
force_option = click.option("--force", is_flag=True, help="Replace an output that is there.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress bars.")


def hush_libraries() -> None:
    """The libraries' own notes and bars stay off the screen; ours say what matters. Call before importing torch."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module="torch|transformers|onnx")
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """``16,32,64`` as numbers, smallest first."""
    try:
        return tuple(sorted({int(part) for part in value.split(",")})) if value else ()
    except ValueError:
        raise click.BadParameter(
            f"'{value}' is not a list of whole numbers like 16,32,64", context, parameter
        ) from None
