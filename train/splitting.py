"""The rows of a training run: training rows, dev split, and rows that are held out from the training rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from berxit.runtime.bundle import sha256
from berxit.runtime.chance import equal_values
from berxit.runtime.errors import InputError
from berxit.runtime.examples import Examples, find_split, has_split
from berxit.runtime.spans import count_spans
from berxit.runtime.tokenization import Text
from berxit.train.checkpoint import DEV_FILE, read_record, spread_samples
from berxit.train.options import TrainingOptions
from berxit.train.tasks import Task

AUTOMATIC_DEV = 0.1
"""Share of the training rows that become the dev split of data without one."""
LEAST_ROWS = 20
"""Data with fewer rows is not split unless ``dev_fraction`` is given."""
STOPPING = 0.1
"""Share of the training rows that early stopping holds out, for at most MOST_STOPPING_ROWS rows."""
MOST_STOPPING_ROWS = 2000
VALUE_STRATA = 10
"""Regression: every tenth of the values is one stratum."""


@dataclass(frozen=True)
class TrainingData:
    """The rows of one training run."""

    file: Path
    """The file of the training split."""
    train: Examples
    dev: Examples | None
    """The dev split: a file, or held-out rows. None if there is none."""
    dev_file: Path | None
    """The file of the dev split; None if its rows were held out from ``file``, or if there is none."""
    stopping: Examples | None = None
    """Rows whose score ends the training early; they are in neither ``train`` nor ``dev``."""

    @property
    def splits(self) -> dict[str, Examples]:
        """Name -> rows, the training split first."""
        return {"train": self.train} if self.dev is None else {"train": self.train, "dev": self.dev}

    @property
    def held_out(self) -> Examples | None:
        """The dev split, if its rows were held out from the training file."""
        return self.dev if self.dev_file is None else None

    @property
    def samples(self) -> list[Text]:
        """Sample texts for the checkpoint, from the dev split if there is one, because it is not trained on."""
        return spread_samples((self.dev or self.train).texts)


def read_training_data(
    task: Task, data: Path, options: TrainingOptions, report: Callable[[str], None] = lambda line: None
) -> TrainingData:
    """Reads and splits all data before training, so that a bad row costs no training.

    Without a dev split, ``dev_fraction`` of the rows become one; None holds out AUTOMATIC_DEV, 0 nothing. Raises
    InputError for a ``dev_fraction`` of data that has a dev split, if no row remains to train on, or for a regression
    whose labels are equal.
    """
    file, dev, dev_file, fraction = find_split(data, "train"), None, None, options.dev_fraction
    if has_dev(data):
        dev_file = find_split(data, "dev")
        if fraction:
            raise InputError(f"{dev_file} is the dev split: omit --dev-fraction, or delete the file")
    train = _read(task, data, "train", options, report)
    if dev_file is not None:
        dev = _read(task, data, "dev", options, report)
    elif fraction or (fraction is None and len(train) >= LEAST_ROWS):
        train, dev = hold_out(train, fraction or AUTOMATIC_DEV, options.seed)
    elif fraction is None:
        report(f"{file} has {len(train)} rows, too few for a dev split, on which exits are calibrated")
    train = train.head(options.limit_train)
    if task.regression and (problem := equal_values(train.labels)):
        raise InputError(f"{file}: nothing to learn: {problem}. Give data with different labels, or rescale them")
    stopping = None
    if options.early_stopping:
        train, stopping = hold_out(train, min(STOPPING, MOST_STOPPING_ROWS / len(train)), options.seed)
    return TrainingData(file, train, dev, dev_file, stopping)


def _read(task: Task, data: Path, split: str, options: TrainingOptions, report: Callable[[str], None]) -> Examples:
    examples = task.read(data, split, skip_bad_rows=options.skip_bad_rows)
    if examples.skipped:
        report(examples.skipped_line(find_split(data, split)))
    return examples


def has_dev(data: Path) -> bool:
    """True if the data is a folder with a dev split; a single file is the training split."""
    return data.is_dir() and has_split(data, "dev")


def held_out_rows(checkpoint: Path, data: Path | None, split: str) -> Path | None:
    """The checkpoint's file of held-out rows, if ``data`` is the data that it was trained on, or None. Otherwise
    None."""
    held_out = checkpoint / DEV_FILE
    if split != "dev" or not held_out.is_file():
        return None
    if data is None:
        return held_out
    if not data.exists() or has_dev(data) or (data.is_dir() and not has_split(data, "train")):
        return None
    return held_out if sha256(find_split(data, "train")) == read_record(checkpoint).get("train_sha256") else None


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """The examples without a random ``fraction`` of them, and that fraction, both in the order of the file.

    Every class has about this share of its rows in both parts, and at least one text in the first. For regression, this
    applies to every tenth of the values. Equal texts are in the same part, so the held-out score does not benefit from
    texts that were trained on. Raises InputError if a part would be empty.
    """
    count = round(fraction * len(examples))
    if 0 < count < len(examples):
        held = _held_rows(examples, fraction, seed)
        if held.any():
            return _rows(examples, np.flatnonzero(~held)), _rows(examples, np.flatnonzero(held))
    raise InputError(
        f"{fraction:g} of {len(examples)} rows is {count}: at least one row must be held out, and one must remain. Use"
        " more rows, or another --dev-fraction"
    )


def _held_rows(examples: Examples, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """(N,) True for a held-out row: systematic sampling over the groups of equal texts, ordered by stratum."""
    groups: dict[Text, list[int]] = defaultdict(list)
    for row, text in enumerate(examples.texts):
        groups[text].append(row)
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    of_row = _strata(examples)
    rows = list(groups.values())
    for place in np.random.default_rng(seed).permutation(len(rows)):
        strata[of_row[rows[place][0]]].append(rows[place])
    held = np.zeros(len(examples), dtype=bool)
    seen = taken = 0
    for stratum in sorted(strata):  # type: ignore[type-var]
        remaining = len(strata[stratum])
        for group in strata[stratum]:
            seen += len(group)
            if taken < int(seen * fraction + 0.5) and remaining > 1:
                held[group] = True
                taken += len(group)
                remaining -= 1
    return held


def _strata(examples: Examples) -> list[int]:
    """(N,) the stratum of each row: its class or set of labels, the tenth of the values that contains it, or the number
    of its spans."""
    labels = examples.labels
    if examples.kind == "tokens":
        return count_spans(labels).tolist()
    if labels.dtype.kind != "f":
        return labels.tolist()
    ranks = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
    return (ranks * VALUE_STRATA // len(labels)).tolist()


def _rows(examples: Examples, rows: npt.NDArray[np.int64]) -> Examples:
    return examples.rows(rows.tolist())
