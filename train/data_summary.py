"""Summary of the data before training: rows, classes, repeated texts, truncated texts, and probable mistakes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from berxit.runtime.examples import Examples
from berxit.runtime.kinds import KINDS
from berxit.runtime.labels import as_number
from berxit.runtime.spans import BEGIN
from berxit.runtime.tables import listed, markdown_table, plural
from berxit.runtime.tokenization import Text, TextTokenizer
from berxit.train.tasks import Task

CLASSES = 20
"""Largest number of classes that the table lists; with more, the most frequent and the rarest."""
TEXTS = 2000
"""Largest number of texts of a split that are tokenized for the summary, at even distances."""
MANY_VALUES = 5
"""Numeric labels with more different values may be values of a regression."""
FEW_VALUES = 2
"""Regression labels with no more different values may be classes."""
RARE = 5
"""Training rows below which a class is rare."""
IMBALANCED = 5.0
"""The largest class has at least so many times the rows of the smallest: accuracy then hides the smallest."""
TRUNCATED = 0.05
"""Share of truncated texts that causes a warning."""
QUOTED = 0.2
"""Share of TSV texts in quotation marks that causes a warning."""


@dataclass(frozen=True)
class SplitSummary:
    """One split."""

    name: str
    rows: int
    classes: dict[str, int]
    """Class or label name, or regression value -> number of rows."""
    values: tuple[float, float, float] | None
    """Regression: the smallest, mean and largest label."""
    repeated: int
    """Rows whose text an earlier row of the split has."""
    contradictory: int
    """Number of different texts that occur with different labels."""
    in_train: int
    """Rows whose text is also in the training split; 0 for the training split itself."""
    median_tokens: int
    truncated: float
    """Share of the texts, of at most TEXTS of them, that are truncated."""

    def share_of(self, name: str) -> str:
        """Rows of a class, and their share."""
        rows = self.classes.get(name, 0)
        return f"{rows} ({rows / self.rows:.0%})"


@dataclass(frozen=True)
class DataSummary:
    """The splits of a training run. ``str`` is the text for the user."""

    task: Task
    max_length: int
    splits: tuple[SplitSummary, ...]
    quoted: float
    """Share of the training texts that start and end with a quotation mark."""
    suffix: str
    """Suffix of the training file."""

    def __str__(self) -> str:
        return "\n".join([f"data, task {self.task.name}:", self.table(), *map("warning: {}".format, self.warnings())])

    def table(self) -> str:
        """One row per quantity, one column per split."""
        rows = [["rows", *(each.rows for each in self.splits)]]
        if self.task.regression:
            for place, name in enumerate(("smallest label", "mean label", "largest label")):
                rows.append([name, *(f"{each.values[place]:.4g}" if each.values else "-" for each in self.splits)])
        else:
            rows += self._classes()
        rows.append(["repeated texts", *(each.repeated for each in self.splits)])
        rows.append(["also in train", *(each.in_train if i else "-" for i, each in enumerate(self.splits))])
        rows.append(["tokens, median", *(each.median_tokens for each in self.splits)])
        rows.append([f"truncated at {self.max_length} tokens", *(f"{each.truncated:.1%}" for each in self.splits)])
        return markdown_table(["", *(each.name for each in self.splits)], rows)

    def _classes(self) -> list[list[object]]:
        counts = self.splits[0].classes
        names = _names(self.task)
        if len(names) > CLASSES:
            ordered = sorted(names, key=lambda name: -counts.get(name, 0))
            names = [*ordered[: CLASSES // 2], *ordered[-CLASSES // 2 :]]
        rows: list[list[object]] = [
            [
                f"{_ITEM[self.task.kind]} {name}",
                *(each.share_of(name) for each in self.splits),
            ]
            for name in names
        ]
        if len(_names(self.task)) > CLASSES:
            more = [f"{len(_names(self.task)) - CLASSES} more classes", *([""] * len(self.splits))]
            rows.insert(CLASSES // 2, list(more))
        return rows

    def warnings(self) -> Iterator[str]:
        """Probable mistakes, each with the next step."""
        train, others = self.splits[0], self.splits[1:]
        yield from _label_warnings(self.task, train)
        for each in others:
            if each.in_train:
                yield (
                    f"{plural(each.in_train, 'row')} of {each.name} ({each.in_train / each.rows:.1%}) have a text that"
                    " train contains, too, so scores on them are too high: delete these rows"
                )
        for each in self.splits:
            if each.contradictory:
                yield (
                    f"{plural(each.contradictory, 'text')} of {each.name} occur with different labels: check these rows"
                )
        if (worst := max(self.splits, key=lambda each: each.truncated)).truncated > TRUNCATED:
            yield (
                f"{worst.truncated:.0%} of the texts of {worst.name} are truncated at {self.max_length} tokens: a"
                " larger --max-length keeps more of them, and is slower"
            )
        if self.suffix == ".tsv" and self.quoted > QUOTED:
            yield (f"{self.quoted:.0%} of the texts are in quotation marks, which TSV keeps: save the file as CSV")


_ITEM = {"classification": "class", "multilabel": "label", "tokens": "spans of", "heads": "label"}
"""Kind of task -> what a row of the table counts."""


_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")
"""Separators whose choice is a matter of spelling. A sign, as in the classes -1 and 1 or A- and A, is not."""


def _names(task: Task) -> list[str]:
    """The names that the table counts: classes, labels, or labels of spans."""
    if task.kind == "tokens":
        return [tag.removeprefix(BEGIN) for tag in task.labels if tag.startswith(BEGIN)]
    return list(task.labels)


def _label_warnings(task: Task, train: SplitSummary) -> Iterator[str]:
    counts, names_of_task = train.classes, _names(task)
    if task.regression:
        if len(counts) and len(counts) <= FEW_VALUES:
            yield f"the labels have {plural(len(counts), 'value')} only: for classes, omit --regression"
        return
    numbers = [value for name in names_of_task if (value := as_number(name)) is not None]
    if len(numbers) == len(names_of_task) and len(numbers) > MANY_VALUES:
        yield f"the labels are {len(numbers)} different numbers: if their order matters, add --regression"
    columns = {column.lower() for column in (*task.label_columns, *task.text_columns)}
    if header := [name for name in names_of_task if name.lower() in columns and counts.get(name, 0) < RARE]:
        yield f"class '{header[0]}' has the name of a column: a second header line may be among the rows"
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in names_of_task:
        spellings[_BETWEEN_WORDS.sub(" ", name.lower())].append(name)
    for same in (names for names in spellings.values() if len(names) > 1):
        yield f"classes {listed(same)} differ only in their spelling: use one of them"
    if missing := [name for name in names_of_task if not counts.get(name)]:
        yield f"no training row has {'class' if len(missing) == 1 else 'the classes'} {listed(missing)}"
    elif rare := [name for name in names_of_task if counts[name] < RARE]:
        yield f"fewer than {RARE} training rows: {listed(f'{name} ({counts[name]})' for name in rare)}"
    largest, smallest = max(counts.values(), default=0), min(counts.values(), default=0)
    if task.metric == "accuracy" and smallest and largest >= IMBALANCED * smallest:
        yield (
            f"the largest class has {largest / smallest:.0f} times the rows of the smallest, and accuracy hides the"
            " small one: consider --class-weights balanced and --metric macro-f1"
        )


def summarize(
    task: Task, splits: Mapping[str, Examples], tokenizer: TextTokenizer, suffix: str, max_length: int
) -> DataSummary:
    """The summary of the splits, the training split first. ``suffix``: that of the training file."""
    train = set(next(iter(splits.values())).texts)
    return DataSummary(
        task,
        max_length,
        tuple(
            _split(task, name, examples, train if place else set(), tokenizer)
            for place, (name, examples) in enumerate(splits.items())
        ),
        _quoted(next(iter(splits.values()))),
        suffix,
    )


def _split(task: Task, name: str, examples: Examples, train: set[Text], tokenizer: TextTokenizer) -> SplitSummary:
    labels = examples.labels
    of_text: dict[Text, set[float]] = defaultdict(set)
    for text, label in zip(examples.texts, labels.tolist(), strict=True):
        of_text[text].add(label)
    batch = tokenizer(examples.texts[:: -(-len(examples) // TEXTS)])
    kind = KINDS[task.kind]
    if task.kind == "tokens":
        counts = dict(Counter(span.label for spans in examples.spans for span in spans))
    elif task.regression:
        counts = dict(Counter(f"{value:g}" for value in labels.tolist()))
    else:
        counts = {each.name: each.rows for each in kind.counts(labels, labels, task.labels)}
    return SplitSummary(
        name=name,
        rows=len(examples),
        classes=counts,
        values=(float(labels.min()), float(labels.mean()), float(labels.max())) if task.regression else None,
        repeated=len(examples) - len(of_text),
        contradictory=sum(len(found) > 1 for found in of_text.values()),
        in_train=sum(text in train for text in examples.texts),
        median_tokens=int(np.median(batch.lengths)),
        truncated=float(np.mean(batch.truncated)),
    )


def _quoted(examples: Examples) -> float:
    parts = [text if isinstance(text, str) else text[0] for text in examples.texts]
    return sum(len(part) > 1 and part[0] == part[-1] == '"' for part in parts) / len(parts)
