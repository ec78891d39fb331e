"""Texts and labels from TSV, CSV, JSONL or Parquet files. Each error is one line that names the file and the row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError, first_line
from berxit.runtime.labels import checked_label, class_number, label_numbers, regression_value
from berxit.runtime.tables import listed, plural
from berxit.runtime.tokenization import Text, checked_text

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
"""Accepted suffixes in lower case; the case of a file's suffix is ignored."""
PARQUET_ROWS = 1024
"""Rows of a Parquet file that are in memory as Python values at a time."""
CUSTOM = "custom"
"""Task name for a user's own files, whose labels are class names and never class numbers."""
Record = dict[str, Any]
"""Column -> value as the file stores it: text in TSV and CSV, any JSON value in JSONL, any Arrow type in Parquet."""
Row = Record | str
"""A str is the error message of a row that cannot be read."""
_NO_TEXT: dict[type, str] = {list: "a list", dict: "an object", bytes: "bytes"}
"""Type of a value that is neither a text nor a label -> its name in messages."""


class ReadsExamples(Protocol):
    """Model metadata from a bundle or checkpoint that determines the format of its example files."""

    @property
    def task(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; empty for regression."""

    @property
    def text_columns(self) -> tuple[str, ...]: ...

    @property
    def label_column(self) -> str: ...


@dataclass(frozen=True)
class Examples:
    """N labelled texts or pairs, in the order of the file."""

    texts: list[Text]
    labels: npt.NDArray
    """(N,) class numbers (int64), or values (float64) for regression. Zeros for unlabelled examples."""
    skipped: tuple[str, ...] = ()
    """Error messages of the skipped rows."""
    unlabelled: bool = False
    """True if the file has no labels."""

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int | None) -> Examples:
        """The first ``count`` examples; all for None."""
        return self if count is None else replace(self, texts=self.texts[:count], labels=self.labels[:count])

    def skipped_line(self, path: Path) -> str:
        """Message about the skipped rows, in one line."""
        return skipped_line(self.skipped, path)


def skipped_line(skipped: Sequence[str], path: Path) -> str:
    """Message about the rows of ``path`` that were skipped, in one line. ``skipped``: their error messages."""
    return f"skipped {plural(len(skipped), 'bad row')} of {path}, the first: {skipped[0]}"


def read_examples(
    path: Path,
    text_columns: Sequence[str],
    label_column: str,
    labels: Sequence[str] | None,
    *,
    glue_numbers: bool = False,
    skip_bad_rows: bool = False,
) -> Examples:
    """Reads a file of examples. ``labels``: the class names, in order; None for regression.

    A label is the name of a class, normalized by ``class_name``. With ``glue_numbers`` (the built-in tasks) it may also
    be the number of a class, as in the GLUE files.
    Raises InputError for a missing file, column or value, a row whose number of columns differs from the header, text
    that is not UTF-8, or an unknown label. ``skip_bad_rows`` skips rows with a wrong number of columns, an empty text,
    or a missing or unknown label.
    """
    numbers = None if labels is None else label_numbers(labels, glue_numbers)
    texts: list[Text] = []
    values: list[float] = []
    skipped: list[str] | None = [] if skip_bad_rows else None
    for where, text, label in labelled_rows(path, text_columns, label_column, skipped):
        try:
            if numbers is None:
                value = regression_value(label, where)
            else:
                value = class_number(label, numbers, labels or (), where)
        except InputError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        texts.append(text)
        values.append(value)
    if not texts and skipped:
        raise InputError(f"{path} has no valid row. First problem: {skipped[0]}")
    dtype = np.float64 if labels is None else np.int64
    return Examples(texts, np.array(values, dtype=dtype), tuple(skipped or ()))


def read_texts(path: Path, text_columns: Sequence[str], *, skip_bad_rows: bool = False) -> Examples:
    """Reads a file without labels. Raises InputError and skips rows as ``read_examples`` does."""
    texts: list[Text] = []
    skipped: list[str] | None = [] if skip_bad_rows else None
    for line, row in read_rows(path, text_columns, skipped):
        try:
            texts.append(text_of(row, text_columns, f"{path}, line {line}"))
        except InputError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
    if not texts and skipped:
        raise InputError(f"{path} has no valid row. First problem: {skipped[0]}")
    return Examples(texts, np.zeros(len(texts), dtype=np.int64), tuple(skipped or ()), unlabelled=True)


def has_column(path: Path, column: str) -> bool:
    """True if the first row of a file has this column. Raises InputError for a file without a valid row."""
    return column in next(read_rows(path, ()))[1]


def read_examples_for(model: ReadsExamples, path: Path) -> Examples:
    """Reads a file of examples with the columns and labels of ``model``. Raises the errors of ``read_examples``."""
    return read_examples(
        path, model.text_columns, model.label_column, model.labels or None, glue_numbers=model.task != CUSTOM
    )


def labelled_rows(
    path: Path, text_columns: Sequence[str], label_column: str, skipped: list[str] | None = None
) -> Iterator[tuple[str, Text, str]]:
    """Yields ("FILE, line N", text, label) for each row.

    A row without a text or label raises InputError; with ``skipped``, its message is appended there instead.
    """
    for line, row in read_rows(path, (*text_columns, label_column), skipped):
        where = f"{path}, line {line}"
        try:
            found = where, text_of(row, text_columns, where), checked_label(row[label_column], label_column, where)
        except InputError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        yield found


def read_rows(
    path: Path, columns: Sequence[str], skipped: list[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """``read_records`` with every value as text."""
    for line, record in read_records(path, columns, skipped):
        yield line, {column: value_text(value) for column, value in record.items()}


def read_records(path: Path, columns: Sequence[str], skipped: list[str] | None = None) -> Iterator[tuple[int, Record]]:
    """Yields (line number, record) for each row of a file that must have ``columns``. In Parquet, row 1 is line 1.

    A row that does not match the header raises InputError; with ``skipped``, its message is appended there instead.
    Raises InputError for a file without a valid row, and ModuleNotFoundError for Parquet without pyarrow.
    """
    if not path.is_file():
        raise InputError(f"no file {path}: give a {', '.join(SUFFIXES)} file with columns {', '.join(columns)}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: cannot read '{path.suffix}' files. Give one of {', '.join(SUFFIXES)}")
    reader = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[suffix]
    rows = 0
    try:
        for line, row in reader(path, columns):
            if isinstance(row, str):
                problem = f"{path}, line {line}: {row}"
                if skipped is None:
                    raise InputError(f"{problem}. Fix or delete it")
                skipped.append(problem)
                continue
            if missing := [column for column in columns if column not in row]:
                problem = f"{path}, line {line}: no column '{missing[0]}'. Columns: {listed(row)}"
                if skipped is None or suffix != ".jsonl":  # in the other formats, the column is missing in every row
                    raise InputError(problem)
                skipped.append(problem)
                continue
            rows += 1
            yield line, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {_line_of_byte(path)}: not UTF-8 ({error.reason}). Save it as UTF-8") from None
    if not rows:
        if skipped:
            raise InputError(f"{path} has no valid row. First problem: {skipped[0]}")
        raise InputError(f"{path} has no rows: add at least one row below the header")


def find_split(data: Path, split: str) -> Path:
    """File of a split: ``data`` itself if it is a file, otherwise DATA/SPLIT.tsv, .csv, .jsonl or .parquet.

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


def _read_tsv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Reads TSV in GLUE's dialect: no quoting, so that " is an ordinary character. Ignores a byte order mark."""
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        header = _header(stream.readline().rstrip("\r\n").split("\t"), columns, path)
        for line, text in enumerate(stream, start=2):
            if not text.strip():
                continue
            values = text.rstrip("\r\n").split("\t")
            yield line, _row(header, values)


def _read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    # The default limit is 131,072 characters, which a document may exceed. No cell is longer than its file.
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size))
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            header = _header(next(reader, []), columns, path)
            for values in reader:
                if not values:
                    continue
                yield reader.line_num, _row(header, values)
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: not CSV ({error}). Save it again as CSV") from None


def _read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text, object_pairs_hook=_unique)
            except (ValueError, RecursionError) as error:
                yield line, f"not JSON ({getattr(error, 'msg', error)})"
                continue
            yield line, _checked_record(row, columns)


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    import pyarrow
    from pyarrow import parquet

    line = 0
    try:
        with parquet.ParquetFile(path) as file:
            _header(file.schema_arrow.names, columns, path)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    line += 1
                    yield line, _checked_record(row, columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({first_line(error)}). Write it again") from None


def _header(names: list[str], columns: Sequence[str], path: Path) -> list[str]:
    names = [name.strip("\ufeff \t\r") for name in names]
    if twice := [column for column in columns if names.count(column) > 1]:
        raise InputError(f"{path}: the header has column '{twice[0]}' twice. Rename or delete one of them")
    return names


def _row(header: list[str], values: list[str]) -> Row:
    if len(values) != len(header):
        return f"{len(values)} columns, but the header has {len(header)}"
    return dict(zip(header, values, strict=True))


def _checked_record(row: object, columns: Sequence[str]) -> Row:
    if not isinstance(row, dict):
        return "not a JSON object; write one per line"
    for column in columns:
        if kind := _NO_TEXT.get(type(row.get(column))):
            return f"column '{column}' is {kind}, not one value"
    return row


def value_text(value: object) -> str:
    """Text of a value: empty for a missing one, JSON for numbers, booleans, lists and objects."""
    if value is None:
        return ""
    return json.dumps(value, default=str) if isinstance(value, bool | int | float | list | dict) else str(value)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(row := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{next(name for name in names if names.count(name) > 1)}' twice")
    return row


def _line_of_byte(path: Path) -> int:
    """Number of the first line of a file that is not UTF-8."""
    for line, text in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            return line
    return 0
