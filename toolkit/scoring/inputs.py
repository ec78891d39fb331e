"""A file of texts, with or without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from berxit.runtime.bundle import ModelInfo
from berxit.runtime.data_files import SUFFIXES, Record, read_records, value_text
from berxit.runtime.errors import InputError
from berxit.runtime.examples import CUSTOM, check_span_labels, skipping, text_of
from berxit.runtime.labels import checked_label, head_reader, label_reader
from berxit.runtime.spans import Span, read_spans, span_number
from berxit.runtime.tables import listed, plural
from berxit.runtime.tokenization import Text

NO_LABEL = -1
"""Class number of a row without a label. For regression it is NaN."""


@dataclass(frozen=True)
class InputRow:
    """A row with a valid text."""

    line: int
    record: Record
    text: Text
    text_columns: tuple[str, ...]


@dataclass(frozen=True)
class InputFile:
    """A file of N texts, of which every row was checked."""

    path: Path
    text_columns: tuple[str, ...]
    columns: tuple[str, ...]
    """All columns; in JSONL those of any row."""
    rows: int
    labels: npt.NDArray | None
    """(N,) labels as numbers (``runtime.kinds``), with NO_LABEL or NaN for a row without one. None if the file has no
    label column."""
    label_column: str
    skipped: tuple[str, ...]
    """Error messages of the skipped rows."""

    def read(self) -> Iterator[InputRow]:
        """The rows with a valid text, in the order of the file."""
        return _rows(self.path, self.text_columns, [] if self.skipped else None)


def read_input(
    path: Path,
    model: ModelInfo,
    *,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    use_labels: bool = True,
    skip_bad_rows: bool = False,
) -> InputFile:
    """Checks every row of a file. Columns that are not given are the model's. Labels are read if the file has them.

    Raises InputError for a missing file or column, a row that cannot be read or has no text (unless ``skip_bad_rows``),
    and a label that is not of the model.
    """
    texts = input_columns(model, text_columns)
    column = label_column or model.label_column
    label_columns = model.task_kind.label_columns(column)
    number_of = _number_reader(model, column)
    no_label = np.nan if model.regression else NO_LABEL
    skipped: list[str] | None = [] if skip_bad_rows else None
    columns: dict[str, None] = {}
    labels: list[float] = []
    for row in _rows(path, texts, skipped):
        columns.update(dict.fromkeys(row.record))
        has = use_labels and all(each in row.record for each in label_columns)
        labels.append(_label(label_columns, number_of, model, row, path) if has else no_label)
    if missing := [each for each in label_columns if label_column and each not in columns]:
        raise InputError(f"{path} has no column '{missing[0]}'. Columns: {listed(columns)}")
    values = np.array(labels, dtype=np.float64 if model.regression else np.int64)
    labelled = has_label(values).any()
    known = values if labelled else None
    return InputFile(path, texts, tuple(columns), len(labels), known, column, tuple(skipped or ()))


def input_columns(model: ModelInfo, given: Sequence[str]) -> tuple[str, ...]:
    """The columns with the texts: those given, by default the model's. Raises InputError for a wrong number of them."""
    if given and len(given) != len(model.text_columns):
        raise InputError(
            f"--text-column names {listed(given)}, and this model takes"
            f" {plural(len(model.text_columns), 'column')}: {listed(model.text_columns)} in its training data"
        )
    return tuple(given) or model.text_columns


def has_label(labels: npt.NDArray) -> npt.NDArray[np.bool_]:
    """(N,) True for each row with a label."""
    found: npt.NDArray[np.bool_] = ~np.isnan(labels) if labels.dtype.kind == "f" else labels != NO_LABEL
    return found


def is_file(text: str) -> bool:
    """True if a command's argument is a file of texts, not a text: an existing file, or a name with the suffix of a
    data file."""
    path = Path(text)
    try:
        return path.suffix.lower() in SUFFIXES or path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def _rows(path: Path, text_columns: Sequence[str], skipped: list[str] | None) -> Iterator[InputRow]:
    found = 0
    for line, record in read_records(path, text_columns, skipped):
        texts = {column: value_text(record[column]) for column in text_columns}
        with skipping(skipped):
            text = text_of(texts, text_columns, f"{path}, line {line}")
            found += 1
            yield InputRow(line, record, text, tuple(text_columns))
    if not found and skipped:
        raise InputError(f"{path} has no valid row. First problem: {skipped[0]}")


def row_spans(row: InputRow, column: str, model: ModelInfo, where: str) -> tuple[Span, ...]:
    """The spans in a row of data for a tokens model; none if the column is missing. Raises InputError for a label that
    is not of the model."""
    raw = value_text(row.record[row.text_columns[0]])
    try:
        spans = read_spans(value_text(row.record.get(column)), raw, column, where)
        check_span_labels(spans, model.labels, where)
    except InputError as error:
        raise InputError(f"{error}. To ignore the labels, add --no-labels") from None
    return spans


def _number_reader(model: ModelInfo, column: str) -> Callable[[Mapping[str, str], str], float]:
    """A function (label column -> text, place for messages) -> number of the label."""
    if model.kind == "heads":
        return head_reader(model.labels, column)
    number_of = label_reader(model.kind, model.labels, column, glue_numbers=model.task != CUSTOM)
    return lambda texts, where: number_of(texts[column], where)


def _label(
    columns: Sequence[str],
    number_of: Callable[[Mapping[str, str], str], float],
    model: ModelInfo,
    row: InputRow,
    path: Path,
) -> float:
    """The label as a number; NO_LABEL or NaN if it is missing. Raises InputError for one that is not of the model."""
    where = f"{path}, line {row.line}"
    if model.task_kind.words:
        spans = row_spans(row, columns[0], model, where)
        return span_number(spans, spans)
    texts = {column: value_text(row.record[column]) for column in columns}
    if model.kind != "multilabel":  # an empty text is the empty set of labels
        try:
            for column, text in texts.items():
                checked_label(text, column, where)
        except InputError:
            return np.nan if model.regression else NO_LABEL
    try:
        return number_of(texts, where)
    except InputError as error:
        raise InputError(f"{error}. To ignore the labels, add --no-labels") from None
