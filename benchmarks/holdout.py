"""Holds out rows of a training split, so that thresholds are chosen and judged on rows that training has not seen.

    python benchmarks/holdout.py MRPC --rows 800 --output MRPC-held-out [--train-rows 12000]

OUTPUT gets ``train.tsv`` (the other rows), ``held-out.tsv`` and the official ``dev.tsv``. The draw is seeded.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from berxit.runtime.console import debug_option, run
from berxit.runtime.errors import InputError
from berxit.runtime.storage import write_text


def hold_out(data: Path, output: Path, rows: int, train_rows: int | None, seed: int) -> tuple[int, int]:
    """Writes the three files of ``output``.

    Returns:
        The number of rows in ``train.tsv`` and in ``held-out.tsv``.

    Raises:
        InputError: ``train.tsv`` has too few rows.
    """
    header, *lines = (data / "train.tsv").read_text(encoding="utf-8-sig").splitlines()
    if rows >= len(lines):
        raise InputError(f"{data}/train.tsv has {len(lines)} rows, so {rows} cannot be held out. Use a smaller --rows")
    order = np.random.default_rng(seed).permutation(len(lines))
    held_out, train = order[:rows], order[rows:][:train_rows]
    output.mkdir(parents=True)
    for name, chosen in (("held-out.tsv", held_out), ("train.tsv", train)):
        write_text(output / name, "\n".join([header, *(lines[i] for i in chosen)]) + "\n")
    write_text(output / "dev.tsv", (data / "dev.tsv").read_text(encoding="utf-8-sig"))
    return len(train), len(held_out)


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rows", type=click.IntRange(1), required=True, help="Number of rows to hold out.")
@click.option("--train-rows", type=click.IntRange(1), help="Use only this many of the other rows for training.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A folder that does not exist yet.")
@debug_option
def main(data: Path, rows: int, train_rows: int | None, seed: int, output: Path) -> None:
    train, held_out = hold_out(data, output, rows, train_rows, seed)
    click.echo(f"{output}: {train} rows for training, {held_out} held out")


if __name__ == "__main__":
    run(main)
