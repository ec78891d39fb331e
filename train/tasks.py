"""The tasks: what their files hold and how they are scored. A new one is one entry in TASKS."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from berxit.runtime.errors import InputError
from berxit.runtime.examples import Examples, find_split, read_examples, read_rows
from berxit.runtime.metrics import positive_class
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
        examples = read_examples(path, *columns, self.labels or None, skip_bad_rows=skip_bad_rows)
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
        raise InputError(f"unknown task '{name}': choose one of {', '.join(TASKS)}, custom")
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
    """A task of the user's own. Class names are the labels that the training split has, in alphabetical order; under
    F1 the positive class comes second.

    ``positive``: the class that F1 scores; None: the one that ``obvious_positive`` finds. Raises InputError for a
    metric that does not fit the labels, or a positive class that is unknown or not clear.
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
    task = Task("custom", tuple(text_columns), label_column, (), metric)
    if regression:
        return task
    path = find_split(data, "train")
    rows = read_rows(path, (*text_columns, label_column), [] if skip_bad_rows else None)
    labels = sorted({row[label_column].strip() for _, row in rows})
    if len(labels) < 2:
        raise InputError(f"{path}: column '{label_column}' has one value only, '{labels[0]}': nothing to classify")
    if len(labels) > 500:
        raise InputError(f"{path}: column '{label_column}' has {len(labels)} values: for numbers add --regression")
    if metric == "f1" and len(labels) > 2:
        raise InputError(f"--metric f1 is of two classes, and {path} has {len(labels)}: take accuracy")
    if metric == "f1":
        labels.sort(key=_positive(labels, positive, path).__eq__)
    return replace(task, labels=tuple(labels))


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
        if given not in labels:
            raise InputError(f"--positive {given} is not a class of {path}: choose {named.replace(' and ', ' or ')}")
        return given
    found = obvious_positive(labels)
    if found is None:
        raise InputError(
            f"--metric f1 scores one class, and of {named} in {path} the positive one is not clear: add --positive"
            f" '{labels[0]}' or --positive '{labels[1]}'"
        )
    return found
