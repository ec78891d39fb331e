"""Texts and labels from data files. Each error is one line that names the file and the row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from berxit.runtime.data_files import SUFFIXES, read_records, value_text
from berxit.runtime.errors import InputError
from berxit.runtime.heads import label_columns
from berxit.runtime.labels import checked_label, head_reader, label_reader
from berxit.runtime.spans import BEGIN, Span, read_spans, span_number
from berxit.runtime.tables import listed, plural
from berxit.runtime.tokenization import Text, checked_text

CUSTOM = "custom"
"""Task name for a user's own files, whose labels are class names and never class numbers."""


class ReadsExamples(Protocol):
    """Model metadata from a bundle or checkpoint that determines the format of its example files."""

    @property
    def task(self) -> str: ...

    @property
    def kind(self) -> str:
        """Name in runtime.kinds.KINDS."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; empty for regression."""

    @property
    def text_columns(self) -> tuple[str, ...]: ...

    @property
    def label_column(self) -> str:
        """For heads their columns, separated by "|"."""


@dataclass(frozen=True)
class Examples:
    """N labelled texts or pairs, in the order of the file."""

    texts: list[Text]
    labels: npt.NDArray
    """(N,) labels as numbers (``runtime.kinds``): int64, or float64 for regression. Zeros for unlabelled examples."""
    skipped: tuple[str, ...] = ()
    """Error messages of the skipped rows."""
    unlabelled: bool = False
    """True if the file has no labels."""
    kind: str = "classification"
    """Name in runtime.kinds.KINDS."""
    names: tuple[str, ...] = ()
    """Class, label or tag names, in the order of the logits; empty for regression and unlabelled examples."""
    spans: tuple[tuple[Span, ...], ...] = ()
    """(N,) the spans of each text; empty unless the kind is tokens."""

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int | None) -> Examples:
        """The first ``count`` examples; all for None."""
        return self if count is None else self.rows(range(min(count, len(self))))

    def rows(self, rows: Iterable[int]) -> Examples:
        """The examples of these row numbers."""
        rows = list(rows)
        spans = tuple(self.spans[row] for row in rows) if self.spans else ()
        return replace(self, texts=[self.texts[row] for row in rows], labels=self.labels[rows], spans=spans)

    def skipped_line(self, path: Path) -> str:
        """Message about the skipped rows, in one line."""
        return skipped_line(self.skipped, path)


@contextmanager
def skipping(skipped: list[str] | None) -> Iterator[None]:
    """The code inside reads one row. Its InputError is raised; with ``skipped``, the message is appended there, and the
    row ends."""
    try:
        yield
    except InputError as error:
        if skipped is None:
            raise
        skipped.append(str(error))


def skipped_line(skipped: Sequence[str], path: Path) -> str:
    """Message about the rows of ``path`` that were skipped, in one line. ``skipped``: their error messages."""
    return f"skipped {plural(len(skipped), 'bad row')} of {path}, the first: {skipped[0]}"


def read_examples(
    path: Path,
    text_columns: Sequence[str],
    label_column: str,
    labels: Sequence[str] | None,
    *,
    kind: str | None = None,
    glue_numbers: bool = False,
    skip_bad_rows: bool = False,
) -> Examples:
    """Reads a file of examples. ``labels``: the class or label names, in order; None for regression. ``kind``: a name
    in runtime.kinds.KINDS; None: classification, or regression without labels.

    A label is the name of a class, normalized by ``class_name``. With ``glue_numbers`` (the built-in tasks) it may also
    be the number of a class, as in the GLUE files. For the kind multilabel, it is a set of names (``set_names``). For
    heads, ``label_column`` names a column for each head, separated by "|".
    Raises InputError for a missing file, column or value, a row whose number of columns differs from the header, text
    that is not UTF-8, or an unknown label. ``skip_bad_rows`` skips rows with a wrong number of columns, an empty text,
    or a missing or unknown label.
    """
    kind = kind or ("regression" if labels is None else "classification")
    if kind == "tokens":
        return _read_tokens(path, text_columns, label_column, labels or (), skip_bad_rows=skip_bad_rows)
    if kind == "heads":
        return _read_heads(path, text_columns, label_column, labels or (), skip_bad_rows=skip_bad_rows)
    number_of = label_reader(kind, labels or (), label_column, glue_numbers=glue_numbers)
    texts: list[Text] = []
    values: list[float] = []
    skipped: list[str] | None = [] if skip_bad_rows else None
    for where, text, label in labelled_rows(path, text_columns, label_column, skipped, sets=kind == "multilabel"):
        with skipping(skipped):
            values.append(number_of(label, where))
            texts.append(text)
    if not texts and skipped:
        raise InputError(f"{path} has no valid row. First problem: {skipped[0]}")
    dtype = np.float64 if kind == "regression" else np.int64
    return Examples(texts, np.array(values, dtype=dtype), tuple(skipped or ()), kind=kind, names=tuple(labels or ()))


def _read_tokens(
    path: Path, text_columns: Sequence[str], label_column: str, tags: Sequence[str], *, skip_bad_rows: bool
) -> Examples:
    skipped: list[str] | None = [] if skip_bad_rows else None
    rows = []
    for where, text, spans in span_rows(path, text_columns, label_column, skipped):
        with skipping(skipped):
            check_span_labels(spans, tags, where)
            rows.append((text, spans))
    if not rows:
        raise InputError(f"{path} has no valid row. First problem: {skipped[0] if skipped else 'no rows'}")
    texts, spans_of_texts = zip(*rows, strict=True)
    numbers = np.array([span_number(spans, spans) for spans in spans_of_texts], dtype=np.int64)
    return Examples(list(texts), numbers, tuple(skipped or ()), kind="tokens", names=tuple(tags), spans=spans_of_texts)


def _read_heads(
    path: Path, text_columns: Sequence[str], label_column: str, labels: Sequence[str], *, skip_bad_rows: bool
) -> Examples:
    number_of, columns = head_reader(labels, label_column), label_columns(label_column)
    skipped: list[str] | None = [] if skip_bad_rows else None
    rows = []
    for line, row in read_rows(path, (*text_columns, *columns), skipped):
        where = f"{path}, line {line}"
        with skipping(skipped):
            rows.append((text_of(row, text_columns, where), number_of(row, where)))
    if not rows:
        raise InputError(f"{path} has no valid row. First problem: {skipped[0] if skipped else 'no rows'}")
    texts, numbers = zip(*rows, strict=True)
    array = np.array(numbers, dtype=np.int64)
    return Examples(list(texts), array, tuple(skipped or ()), kind="heads", names=tuple(labels))


def check_span_labels(spans: Sequence[Span], tags: Sequence[str], where: str) -> None:
    """Raises InputError for a span whose label has no tag."""
    if unknown := [span.label for span in spans if BEGIN + span.label not in tags]:
        names = [tag.removeprefix(BEGIN) for tag in tags if tag.startswith(BEGIN)]
        raise InputError(f"{where}: unknown label '{unknown[0]}'. Known labels: {listed(names)}")


def span_rows(
    path: Path, text_columns: Sequence[str], label_column: str, skipped: list[str] | None = None
) -> Iterator[tuple[str, str, tuple[Span, ...]]]:
    """Yields ("FILE, line N", text, spans) for each row of a file with labelled spans.

    An invalid row raises InputError; with ``skipped``, its message is appended there instead.
    """
    if len(text_columns) != 1:
        raise InputError(f"{path}: spans are those of one text, and {len(text_columns)} text columns are given")
    for line, row in read_rows(path, text_columns, skipped, lists=(label_column,)):
        where, raw = f"{path}, line {line}", row[text_columns[0]]
        with skipping(skipped):
            text = text_of(row, text_columns, where)
            yield where, str(text), read_spans(row[label_column], raw, label_column, where)


def read_texts(path: Path, text_columns: Sequence[str], *, skip_bad_rows: bool = False) -> Examples:
    """Reads a file without labels. Raises InputError and skips rows as ``read_examples`` does."""
    texts: list[Text] = []
    skipped: list[str] | None = [] if skip_bad_rows else None
    for line, row in read_rows(path, text_columns, skipped):
        with skipping(skipped):
            texts.append(text_of(row, text_columns, f"{path}, line {line}"))
    if not texts and skipped:
        raise InputError(f"{path} has no valid row. First problem: {skipped[0]}")
    return Examples(texts, np.zeros(len(texts), dtype=np.int64), tuple(skipped or ()), unlabelled=True)


def has_column(path: Path, column: str) -> bool:
    """True if the first row of a file has this column. Raises InputError for a file without a valid row."""
    return column in next(read_rows(path, ()))[1]


def read_examples_for(model: ReadsExamples, path: Path) -> Examples:
    """Reads a file of examples with the columns and labels of ``model``. Raises the errors of ``read_examples``."""
    return read_examples(
        path,
        model.text_columns,
        model.label_column,
        model.labels,
        kind=model.kind,
        glue_numbers=model.task != CUSTOM,
    )


def labelled_rows(
    path: Path,
    text_columns: Sequence[str],
    label_column: str,
    skipped: list[str] | None = None,
    *,
    sets: bool = False,
) -> Iterator[tuple[str, Text, str]]:
    """Yields ("FILE, line N", text, text of the label) for each row. ``sets``: labels may be lists, and empty.

    A row without a text or label raises InputError; with ``skipped``, its message is appended there instead.
    """
    columns, lists = (text_columns, (label_column,)) if sets else ((*text_columns, label_column), ())
    for line, row in read_rows(path, columns, skipped, lists=lists):
        where = f"{path}, line {line}"
        with skipping(skipped):
            text, label = text_of(row, text_columns, where), row[label_column]
            yield where, text, label if sets else checked_label(label, label_column, where)


def read_rows(
    path: Path, columns: Sequence[str], skipped: list[str] | None = None, *, lists: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """``read_records`` with every value as text."""
    for line, record in read_records(path, columns, skipped, lists=lists):
        yield line, {column: value_text(value) for column, value in record.items()}


def find_split(data: Path, split: str) -> Path:
    """File of a split: ``data`` itself if it is a file, otherwise DATA/SPLIT with one of SUFFIXES.

    For MNLI, which has two dev splits, "dev" is dev_matched. Raises InputError if there is no such file.
    """
    if data.is_file():
        return data
    if not data.exists():
        raise InputError(f"no data at {data}: give a folder with {split}.tsv, or a file")
    if (found := _split_file(data, split)) is not None:
        return found
    raise InputError(f"{data} has no {split} split: add {split}.tsv ({', '.join(SUFFIXES)}), or name a file")


def split_files(data: Path, split: str) -> list[Path]:
    """All files of a split: the one of ``find_split``; for "dev" of MNLI, dev_matched and dev_mismatched."""
    first = find_split(data, split)
    if data.is_dir() and first.stem == f"{split}_matched" and has_split(data, f"{split}_mismatched"):
        return [first, find_split(data, f"{split}_mismatched")]
    return [first]


def has_split(data: Path, split: str) -> bool:
    return _split_file(data, split) is not None


def _split_file(folder: Path, split: str) -> Path | None:
    """First existing file of SPLIT and SPLIT_matched with one of SUFFIXES, whose case is ignored."""
    files = {(path.stem, path.suffix.lower()): path for path in sorted(folder.glob(f"{split}*")) if path.is_file()}
    names = [(name, suffix) for name in (split, f"{split}_matched") for suffix in SUFFIXES]
    return next((files[name] for name in names if name in files), None)


def text_of(row: dict[str, str], columns: Sequence[str], where: str) -> Text:
    """The text, or the pair of texts, in ``columns``. Raises InputError, which starts with ``where``, if one is
    empty."""
    for column in columns:
        if not row[column].strip():
            raise InputError(f"{where}: column '{column}' is empty. Fill it in or delete the line")
    return checked_text(tuple(row[column] for column in columns) if len(columns) > 1 else row[columns[0]], where)
