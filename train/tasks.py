"""The tasks: what their files hold and how they are scored. A new one is one entry in TASKS."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from berxit.runtime.errors import InputError
from berxit.runtime.examples import (
    CUSTOM,
    Examples,
    find_split,
    labelled_rows,
    read_examples,
)
from berxit.runtime.labels import BOOLEANS, as_number, class_name
from berxit.runtime.metrics import positive_class
from berxit.runtime.tables import listed
from berxit.train.configuration import MultiExitConfig
from berxit.train.metrics import METRICS, OF_CLASSES, OF_VALUES


@dataclass(frozen=True)
class Task:
    name: str
    text_columns: tuple[str, ...]
    """The official files' columns with the text, or with the two texts of a pair."""
    label_column: str
    labels: tuple[str, ...]
    """Class names in the order of their numbers; empty for regression. Under F1 the second is the positive class."""
    metric: str
    """A name in train.metrics.METRICS."""

    @property
    def regression(self) -> bool:
        return not self.labels

    @property
    def positive(self) -> str | None:
        """The class that F1 scores; None for another metric."""
        return positive_class(self.metric, self.labels)

    def read(self, data: Path, split: str, *, skip_bad_rows: bool = False) -> Examples:
        """A split of a folder, or a file. Raises InputError with file and line for anything that does not fit."""
        path = find_split(data, split)
        columns = self.text_columns, self.label_column
        numbers = self.name != CUSTOM
        examples = read_examples(path, *columns, self.labels or None, glue_numbers=numbers, skip_bad_rows=skip_bad_rows)
        if self.name in TASKS and np.all(examples.labels == HIDDEN):
            raise InputError(f"{path}: all labels are {HIDDEN}: they are kept secret for this split. Take --split dev")
        return examples


def write_examples(examples: Examples, task: Task, path: Path) -> None:
    """A JSONL file in the task's columns, which ``task.read`` reads back to the same examples."""
    with path.open("w", encoding="utf-8") as stream:
        for text, label in zip(examples.texts, examples.labels, strict=True):
            texts = dict(zip(task.text_columns, (text,) if isinstance(text, str) else text, strict=True))
            value = float(label) if task.regression else task.labels[label]
            stream.write(json.dumps({**texts, task.label_column: value}, ensure_ascii=False) + "\n")


HIDDEN = -1
"""What GLUE's test splits have for labels that are kept secret; no task has it for a label."""

_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_EQUIVALENT = ("not_equivalent", "equivalent")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("rte", _PAIR, "label", _ENTAILMENT, "accuracy"),
        Task("mrpc", ("#1 String", "#2 String"), "Quality", _EQUIVALENT, "f1"),
        Task("sst2", ("sentence",), "label", ("negative", "positive"), "accuracy"),
        Task("qnli", ("question", "sentence"), "label", _ENTAILMENT, "accuracy"),
        Task("qqp", ("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"), "f1"),
        Task("mnli", _PAIR, "gold_label", ("entailment", "neutral", "contradiction"), "accuracy"),
        Task("stsb", _PAIR, "score", (), "spearman"),
        Task("sick", ("sentence_A", "sentence_B"), "relatedness_score", (), "spearman"),
    )
}


def get_task(name: str) -> Task:
    if name not in TASKS:
        raise InputError(f"unknown task '{name}': choose one of {', '.join(TASKS)}, {CUSTOM}")
    return TASKS[name]


def task_of(config: MultiExitConfig) -> Task:
    """The task that a checkpoint was trained for."""
    return Task(config.task, tuple(config.text_columns), config.label_column, config.labels, config.metric)


def custom_task(
    data: Path,
    text_columns: Sequence[str],
    label_column: str,
    *,
    regression: bool = False,
    metric: str | None = None,
    positive: str | None = None,
    skip_bad_rows: bool = False,
) -> Task:
    """A task of the user's own. Class names are those that the training split has: numbers in ascending order, then
    names in alphabetical order; under F1 the positive class comes second.

    ``positive``: the class that F1 scores; None: the one that ``obvious_positive`` finds. Raises InputError for a
    metric that does not fit the labels, a column that has no classes, or a positive class that is unknown or not clear.
    """
    if not 1 <= len(text_columns) <= 2:
        raise InputError(f"{len(text_columns)} text columns: give one --text-column, or two for pairs of texts")
    metric = metric or ("spearman" if regression else "accuracy")
    if metric not in METRICS:
        raise InputError(f"unknown metric '{metric}': choose one of {', '.join(METRICS)}")
    fitting, kind = (OF_VALUES, "regression") if regression else (OF_CLASSES, "classification")
    if metric not in fitting:
        raise InputError(f"--metric {metric} does not score {kind}: choose {' or '.join(fitting)}")
    if positive is not None and metric != "f1":
        raise InputError(f"--positive {positive} goes with --metric f1, not with {metric}: add it, or omit --positive")
    if label_column in text_columns:
        raise InputError(f"column '{label_column}' is both text and label: give --text-column and --label-column")
    task = Task(CUSTOM, tuple(text_columns), label_column, (), metric)
    if regression:
        return task
    path = find_split(data, "train")
    labels = _classes(path, text_columns, label_column, [] if skip_bad_rows else None)
    if metric == "f1" and len(labels) > 2:
        raise InputError(f"--metric f1 is of two classes, and {path} has {len(labels)}: take accuracy")
    if metric == "f1":
        labels.sort(key=_positive(labels, positive, path).__eq__)
    return replace(task, labels=tuple(labels))


MOST_CLASSES = 500
MANY_CLASSES = 20
"""Beyond so many, classes must have more rows each than a column of values or of free text has."""
ROWS_PER_NUMBER = 5
ROWS_PER_NAME = 2


def _classes(path: Path, text_columns: Sequence[str], label_column: str, skipped: list[str] | None) -> list[str]:
    """The class names of a training file. Raises InputError where its label column is not one of classes."""
    rows = 0
    first: dict[str, str] = {}
    """Class name -> the first line that has it."""
    for where, _, label in labelled_rows(path, text_columns, label_column, skipped):
        rows += 1
        first.setdefault(class_name(label), where)
    numbers = {name: value for name in first if (value := as_number(name)) is not None}
    labels = sorted(numbers, key=lambda name: numbers[name]) + sorted(first.keys() - numbers)
    column = f"{path}: column '{label_column}'"
    if not labels:
        raise InputError(f"{path} has no good row, the first is bad: {skipped[0] if skipped else 'none'}")
    if len(labels) < 2:
        raise InputError(f"{column} has one value only, '{labels[0]}': nothing to classify")
    if (boolean := first.keys() & set(BOOLEANS)) and (digit := first.keys() & {"0", "1"}):
        places = " and ".join(f"'{name}' ({first[name]})" for name in (min(boolean), min(digit)))
        raise InputError(f"{column} has {places}: write both classes in one way")
    fractions = any(value != value.to_integral_value() for value in numbers.values())
    if len(numbers) > MANY_CLASSES and (fractions or len(numbers) * ROWS_PER_NUMBER > rows):
        found = listed(name for name in labels if name in numbers)
        raise InputError(f"{column} has {len(numbers)} different numbers in {rows} rows: {found}. Add --regression")
    if len(labels) > MOST_CLASSES or (len(labels) > MANY_CLASSES and len(labels) * ROWS_PER_NAME > rows):
        raise InputError(
            f"{column} has {len(labels)} different values in {rows} rows: {listed(labels)}."
            " Name the column of the classes: --label-column"
        )
    return labels


NEGATIVE_POSITIVE = frozenset(
    {("no", "yes"), ("n", "y"), ("false", "true"), ("f", "t"), ("negative", "positive"), ("neg", "pos"), ("off", "on")}
)
"""Pairs of class names, in lower case, of which the second is the positive class."""


def obvious_positive(labels: Sequence[str]) -> str | None:
    """The positive one of two class names, where they leave no doubt: 0 and 1, -1 and 1, a pair in NEGATIVE_POSITIVE,
    or not_X and X (also no X, non-X, nonX). None for other names.
    """
    for negative, positive in (labels, labels[::-1]):
        low, high = (re.sub(r"[\s_-]+", " ", name.strip().lower()) for name in (negative, positive))
        negations = {f"not {high}", f"non {high}", f"no {high}", f"non{high}"}
        if (low, high) in NEGATIVE_POSITIVE or low in negations or _values(negative, positive) in ((0, 1), (-1, 1)):
            return positive
    return None


def _values(*names: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, names))
    except ValueError:
        return ()


def _positive(labels: Sequence[str], given: str | None, path: Path) -> str:
    named = f"'{labels[0]}' and '{labels[1]}'"
    if given is not None:
        if class_name(given) not in labels:
            raise InputError(f"--positive {given} is not a class of {path}: choose {named.replace(' and ', ' or ')}")
        return class_name(given)
    found = obvious_positive(labels)
    if found is None:
        raise InputError(
            f"--metric f1 scores one class, and of {named} in {path} the positive one is not clear: add --positive"
            f" '{labels[0]}' or --positive '{labels[1]}'"
        )
    return found
