"""The rows of a sweep, stored as files in its folder: rows to train on, rows to rank by, and the dev split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from berxit.runtime.examples import Examples
from berxit.runtime.storage import write_whole
from berxit.train.options import TrainingOptions
from berxit.train.splitting import hold_out, read_training_data
from berxit.train.tasks import Task, write_examples

RANKING = 0.2
"""Share of the training rows that rank the settings, at most MOST_RANKING_ROWS."""
MOST_RANKING_ROWS = 2000


@dataclass(frozen=True)
class SweepRows:
    """The rows of a sweep."""

    train_file: Path
    """File on which the trials train."""
    train: Examples
    ranking: Examples
    """Rows of the training split that rank the trials; no trial trains on them."""
    dev: Examples | None
    """The dev split, which chooses nothing. None if there is none."""


def sweep_rows(
    task: Task, data: Path, options: TrainingOptions, folder: Path, report: Callable[[str], None]
) -> SweepRows:
    """Reads and splits the data, and writes the rows for training to FOLDER/train.jsonl.

    Raises InputError as ``read_training_data`` and ``hold_out`` do.
    """
    rows = read_training_data(task, data, replace(options, early_stopping=None), report)
    train, ranking = hold_out(rows.train, min(RANKING, MOST_RANKING_ROWS / len(rows.train)), options.seed)
    if not (folder / "train.jsonl").is_file():
        with write_whole(folder, force=True) as scratch:
            write_examples(train, task, scratch / "train.jsonl")
    return SweepRows(folder / "train.jsonl", train, ranking, rows.dev)
