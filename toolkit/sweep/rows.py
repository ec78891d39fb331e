"""The rows of a sweep, stored as files in its folder: rows to train on, rows to rank by, and the dev split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from pathlib import Path

from berxit.runtime.chance import check_labels
from berxit.runtime.errors import InputError
from berxit.runtime.examples import Examples
from berxit.runtime.policies import criterion_named
from berxit.runtime.storage import write_whole
from berxit.runtime.tables import plural
from berxit.train.families import LEAST_ROWS
from berxit.train.options import TrainingOptions
from berxit.train.splitting import TrainingData, hold_out, read_training_data
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
    """The dev split, which chooses nothing. None if there is none, or if it cannot be scored."""


def sweep_rows(
    task: Task,
    data: Path,
    options: TrainingOptions,
    folder: Path,
    criterion: str | None,
    report: Callable[[str], None],
) -> SweepRows:
    """Reads and splits the data, and writes the rows for training to FOLDER/train.jsonl.

    ``criterion``: of the trade-off curves; None for the task's default. Raises InputError as ``read_training_data`` and
    ``hold_out`` do, and for rows on which trials cannot be ranked.
    """
    rows = read_training_data(task, data, replace(options, early_stopping=None), report)
    train, ranking = hold_out(rows.train, min(RANKING, MOST_RANKING_ROWS / len(rows.train)), options.seed)
    least = LEAST_ROWS if criterion and criterion_named(criterion).fitted else 0
    if len(ranking) < least:
        advice = _more_rows(rows, Fraction(least, len(ranking)), options)
        raise InputError(
            f"--criterion {criterion} needs at least {least} rows that rank the trials, and there are {len(ranking)} of"
            f" the {len(rows.train)} training rows: {advice}, or choose another --criterion"
        )
    check_labels(task.metric, ranking.labels, f"the {plural(len(ranking), 'training row')} that rank the trials")
    dev = rows.dev
    if dev is not None and (problem := _undefined(task.metric, dev, least)):
        report(f"the dev split scores no trial: {problem}")
        dev = None
    if not (folder / "train.jsonl").is_file():
        with write_whole(folder, force=True) as scratch:
            write_examples(train, task, scratch / "train.jsonl")
    return SweepRows(folder / "train.jsonl", train, ranking, dev)


def _more_rows(rows: TrainingData, factor: Fraction, options: TrainingOptions) -> str:
    """Advice for ``factor`` times as many training rows."""
    count = ceil(factor * len(rows.train))
    if options.limit_train is not None:
        return f"set --limit-train to at least {count}, with data of so many rows"
    held_out = rows.held_out
    if held_out is None:
        return f"give at least {count} training rows"
    return f"give at least {ceil(factor * (len(rows.train) + len(held_out)))} rows, of which a tenth is the dev split"


def _undefined(metric: str, dev: Examples, least: int) -> str:
    """Reason why trials have no score on the dev split; empty if they have one."""
    if len(dev) < least:
        return f"it has {plural(len(dev), 'row')}, and the criterion needs at least {least}"
    try:
        check_labels(metric, dev.labels, "dev")
    except InputError as error:
        return str(error).removeprefix("dev: ")
    return ""
