"""The tasks: columns of their files, classes and metric. A new task is one entry in TASKS."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from berxit.runtime.errors import InputError
from berxit.runtime.examples import (
    CUSTOM,
    Examples,
    find_split,
    labelled_rows,
    read_examples,
    read_texts,
    span_rows,
)
from berxit.runtime.heads import ASSIGNED, SEPARATOR, label_of, labels_in, parse_heads
from berxit.runtime.kinds import KINDS, MOST_LABELS
from berxit.runtime.labels import BOOLEANS, as_number, class_name, set_names
from berxit.runtime.metrics import METRICS, metric_from, metric_names, positive_class
from berxit.runtime.spans import tags_of
from berxit.runtime.tables import listed
from berxit.train.configuration import MultiExitConfig


@dataclass(frozen=True)
class Task:
    name: str
    text_columns: tuple[str, ...]
    """Columns of the official files with the text, or with the two texts of a pair."""
    label_column: str
    """For heads their columns, separated by "|"."""
    labels: tuple[str, ...]
    """Class or label names in the order of their numbers; for heads HEAD=CLASS; empty for regression. For F1, the
    second one is the positive class."""
    metric: str
    """A name in runtime.metrics.METRICS."""
    kind: str = "classification"
    """A name in runtime.kinds.KINDS."""

    @property
    def regression(self) -> bool:
        return self.kind == "regression"

    @property
    def is_new_kind(self) -> bool:
        """True for a kind that records of older versions do not have; the other two follow from the labels."""
        return self.kind not in ("classification", "regression")

    @property
    def positive(self) -> str | None:
        """The positive class of F1; None for another metric."""
        return positive_class(self.metric, self.labels)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The column of the labels; for heads one each."""
        return KINDS[self.kind].label_columns(self.label_column)

    def read_texts(self, data: Path, split: str, *, skip_bad_rows: bool = False) -> Examples:
        """The texts of a split, or of a file, without labels. Raises InputError as ``read`` does."""
        return read_texts(find_split(data, split), self.text_columns, skip_bad_rows=skip_bad_rows)

    def read(self, data: Path, split: str, *, skip_bad_rows: bool = False) -> Examples:
        """The examples of a split of a folder, or of a file. Raises InputError with file and line for a bad row."""
        path = find_split(data, split)
        columns = self.text_columns, self.label_column
        numbers = self.name != CUSTOM
        examples = read_examples(
            path, *columns, self.labels, kind=self.kind, glue_numbers=numbers, skip_bad_rows=skip_bad_rows
        )
        if self.name in TASKS and np.all(examples.labels == HIDDEN):
            raise InputError(f"{path}: all labels are {HIDDEN}, the labels of this split are secret: use --split dev")
        return examples


def write_examples(examples: Examples, task: Task, path: Path) -> None:
    """Writes a JSONL file in the task's columns, from which ``task.read`` reads the same examples."""
    with path.open("w", encoding="utf-8") as stream:
        all_spans = examples.spans or [()] * len(examples)
        for text, label, spans in zip(examples.texts, examples.labels, all_spans, strict=True):
            texts = dict(zip(task.text_columns, (text,) if isinstance(text, str) else text, strict=True))
            values: dict[str, Any] = {task.label_column: KINDS[task.kind].text(label, task.labels)}
            if task.kind == "tokens":
                values = {task.label_column: [span[:3] for span in spans]}
            elif task.kind == "heads":
                classes = [name.partition(ASSIGNED)[2] for name in labels_in(label, task.labels)]
                values = dict(zip(task.label_columns, classes, strict=True))
            stream.write(json.dumps({**texts, **values}, ensure_ascii=False) + "\n")


HIDDEN = -1
"""Label of every row in GLUE's test splits, whose labels are not public. No task has it as a label."""

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
        Task("stsb", _PAIR, "score", (), "spearman", "regression"),
        Task("sick", ("sentence_A", "sentence_B"), "relatedness_score", (), "spearman", "regression"),
    )
}


@dataclass(frozen=True)
class TaskOptions:
    """Description of a custom task, as given by the user. A built-in task accepts none of these options."""

    text_columns: Sequence[str] = ()
    """Empty: ``text``."""
    label_column: str | None = None
    """None: ``label``, or ``spans`` for tokens."""
    kind: str | None = None
    """A name in runtime.kinds.KINDS; None: classification."""
    metric: str | None = None
    positive: str | None = None
    heads: Sequence[str] = ()
    """Named heads as NAME=COLUMN; the kind is then heads."""

    def check(self, name: str) -> None:
        """Raises InputError for an unknown task or kind, and for options of a built-in task or that exclude each other.
        Reads no data."""
        if self.kind is not None and self.kind not in KINDS:
            raise InputError(f"unknown --kind '{self.kind}': choose one of {', '.join(KINDS)}")
        if name == CUSTOM:
            self._check_heads()
            return
        get_task(name)
        if self.arguments():
            raise InputError(
                "--text-column, --label-column, --head, --kind, --regression, --metric and --positive go with --task"
                f" custom, not {name}"
            )

    def _check_heads(self) -> None:
        if self.heads and self.kind not in (None, "heads"):
            raise InputError(f"--head names the heads of a heads model, and --kind {self.kind} is given: omit one")
        if self.heads and self.label_column:
            raise InputError(f"--head names the label columns: omit --label-column {self.label_column}")
        if self.kind == "heads" and not self.heads:
            raise InputError("--kind heads needs a column for each head: add --head NAME=COLUMN, once per head")
        if self.heads:
            parse_heads(self.heads)

    def task(self, name: str, data: Path, *, skip_bad_rows: bool = False) -> Task:
        """The task. The classes of a custom task are those of its training split. Raises as ``check`` and
        ``custom_task`` do."""
        self.check(name)
        if name != CUSTOM:
            return get_task(name)
        kind = "heads" if self.heads else self.kind or "classification"
        heads, columns = parse_heads(self.heads) if self.heads else ((), ())
        return custom_task(
            data,
            self.text_columns or ("text",),
            SEPARATOR.join(columns) or self.label_column or KINDS[kind].label_column,
            kind=kind,
            metric=self.metric,
            positive=self.positive,
            heads=heads,
            skip_bad_rows=skip_bad_rows,
        )

    def arguments(self) -> list[str]:
        """The options as command-line arguments."""
        found = [argument for column in self.text_columns for argument in ("--text-column", column)]
        found += ["--label-column", self.label_column] if self.label_column else []
        found += [argument for head in self.heads for argument in ("--head", head)]
        found += ["--kind", self.kind] if self.kind else []
        found += ["--metric", self.metric] if self.metric else []
        return found + (["--positive", self.positive] if self.positive else [])


def kind_of(kind: str | None, regression: bool) -> str | None:
    """The value of --kind, for which --regression is an alias. Raises InputError if both are given and differ."""
    if regression and kind not in (None, "regression"):
        raise InputError(f"--regression is --kind regression, and --kind {kind} is given: omit one of them")
    return "regression" if regression else kind


def get_task(name: str) -> Task:
    if name not in TASKS:
        raise InputError(f"unknown task '{name}': choose one of {', '.join(TASKS)}, {CUSTOM}")
    return TASKS[name]


def task_of(config: MultiExitConfig) -> Task:
    """The task that a checkpoint was trained for."""
    return Task(config.task, tuple(config.text_columns), config.label_column, config.labels, config.metric, config.kind)


def custom_task(
    data: Path,
    text_columns: Sequence[str],
    label_column: str,
    *,
    kind: str = "classification",
    metric: str | None = None,
    positive: str | None = None,
    heads: Sequence[str] = (),
    skip_bad_rows: bool = False,
) -> Task:
    """A task for the user's own data. Its classes or labels are those of the training split: numbers in ascending
    order, then names in alphabetical order. For F1, the positive class is moved to second place.

    ``positive``: the positive class of F1; None: ``obvious_positive`` chooses it. ``heads``: names of the heads, in the
    order of the columns in ``label_column``. Raises InputError for a metric that
    does not fit the labels, a label column without classes, or a positive class that is unknown or ambiguous.
    """
    if not 1 <= len(text_columns) <= 2:
        raise InputError(f"{len(text_columns)} text columns: give one --text-column, or two for pairs of texts")
    metric = metric_from(metric or KINDS[kind].default_metric, kind)
    fitting = metric_names(kind)
    if metric not in fitting:
        raise InputError(f"--metric {metric} is not a metric of {kind}: choose {' or '.join(fitting)}")
    if positive is not None and not METRICS[metric].needs_positive:
        raise InputError(f"--positive {positive} has no effect on {metric}: add --metric f1, or omit --positive")
    task = Task(CUSTOM, tuple(text_columns), label_column, (), metric, kind)
    if both := [column for column in task.label_columns if column in text_columns]:
        change = "--head NAME=COLUMN" if kind == "heads" else "--label-column"
        raise InputError(f"column '{both[0]}' is both text and label: set --text-column and {change}")
    if kind == "regression":
        return task
    path = find_split(data, "train")
    skipped: list[str] | None = [] if skip_bad_rows else None
    if kind == "tokens":
        return replace(task, labels=_tags(path, text_columns, label_column, skipped))
    if kind == "heads":
        of_heads = [_classes(path, text_columns, column, skipped) for column in task.label_columns]
        labels = [label_of(head, name) for head, names in zip(heads, of_heads, strict=True) for name in names]
        return replace(task, labels=tuple(labels))
    if kind == "multilabel":
        return replace(task, labels=tuple(_labels_of_sets(path, text_columns, label_column, skipped)))
    labels = _classes(path, text_columns, label_column, skipped)
    if METRICS[metric].needs_positive and len(labels) > 2:
        raise InputError(f"--metric {metric} needs two classes, and {path} has {len(labels)}: use --metric accuracy")
    if METRICS[metric].needs_positive:
        labels.sort(key=_positive(labels, positive, path).__eq__)
    return replace(task, labels=tuple(labels))


MOST_CLASSES = 500
MANY_CLASSES = 20
"""A column with more different labels than this is accepted only if it has enough rows per label. Columns of values or
free text do not."""
ROWS_PER_NUMBER = 5
ROWS_PER_NAME = 2


def _classes(path: Path, text_columns: Sequence[str], label_column: str, skipped: list[str] | None) -> list[str]:
    """The class names of a training file. Raises InputError if its label column does not contain classes."""
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
        raise InputError(f"{path} has no valid row; the first problem is: {skipped[0] if skipped else 'no rows'}")
    if len(labels) < 2:
        raise InputError(f"{column} has one value only, '{labels[0]}': classification needs at least two")
    if (boolean := first.keys() & set(BOOLEANS)) and (digit := first.keys() & {"0", "1"}):
        places = " and ".join(f"'{name}' ({first[name]})" for name in (min(boolean), min(digit)))
        raise InputError(f"{column} mixes {places}: write both classes as words, or both as digits")
    fractions = any(value != value.to_integral_value() for value in numbers.values())
    if len(numbers) > MANY_CLASSES and (fractions or len(numbers) * ROWS_PER_NUMBER > rows):
        found = listed(name for name in labels if name in numbers)
        raise InputError(f"{column} has {len(numbers)} different numbers in {rows} rows: {found}. Add --regression")
    if len(labels) > MOST_CLASSES or (len(labels) > MANY_CLASSES and len(labels) * ROWS_PER_NAME > rows):
        raise InputError(
            f"{column} has {len(labels)} different values in {rows} rows: {listed(labels)}."
            " Set --label-column to the column with the classes"
        )
    return labels


def _tags(path: Path, text_columns: Sequence[str], label_column: str, skipped: list[str] | None) -> tuple[str, ...]:
    """The tags of the span labels in a training file, in alphabetical order. Raises InputError for no spans."""
    labels = {span.label for _, _, spans in span_rows(path, text_columns, label_column, skipped) for span in spans}
    if not labels:
        raise InputError(f"{path}: column '{label_column}' has no spans: add rows with [start, end, label]")
    return tags_of(sorted(labels))


def _labels_of_sets(path: Path, text_columns: Sequence[str], label_column: str, skipped: list[str] | None) -> list[str]:
    """The label names in the sets of a training file, in alphabetical order. Raises InputError for none or too many."""
    found: set[str] = set()
    for where, _, text in labelled_rows(path, text_columns, label_column, skipped, sets=True):
        try:
            found.update(set_names(text, label_column, where))
        except InputError:
            if skipped is None:
                raise
    if not 1 <= len(found) <= MOST_LABELS:
        raise InputError(
            f"{path}: column '{label_column}' has {len(found)} different labels: multilabel needs 1 to {MOST_LABELS}."
            " Separate the labels of a text by '|', or give a JSON list"
        )
    return sorted(found)


NEGATIVE_POSITIVE = frozenset(
    {("no", "yes"), ("n", "y"), ("false", "true"), ("f", "t"), ("negative", "positive"), ("neg", "pos"), ("off", "on")}
)
"""Pairs of class names in lower case; the second is the positive class."""


def obvious_positive(labels: Sequence[str]) -> str | None:
    """The positive one of two class names if it is unambiguous: 0 and 1, -1 and 1, a pair in NEGATIVE_POSITIVE, or
    not_X and X (also no X, non-X, nonX). None for other names.
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
        name = class_name(given)
        if name not in labels:
            raise InputError(f"--positive {given} is not a class of {path}: choose {named.replace(' and ', ' or ')}")
        return name
    found = obvious_positive(labels)
    if found is None:
        raise InputError(
            f"--metric f1 needs a positive class, and {path} has {named}: add --positive '{labels[0]}' or --positive"
            f" '{labels[1]}'"
        )
    return found
