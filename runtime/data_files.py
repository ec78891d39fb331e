"""Rows of TSV, CSV, JSON, JSONL and Parquet files. Each error is one line that names the file and the row.

A new format is one function and one entry in READERS.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from berxit.runtime.errors import InputError, first_line
from berxit.runtime.tables import listed

PARQUET_ROWS = 1024
"""Rows of a Parquet file that are in memory as Python values at a time."""
Record = dict[str, Any]
"""Column -> value as the file stores it: text in TSV and CSV, any JSON value in JSON, any Arrow type in Parquet."""
Row = Record | str
"""A str is the error message of a row that cannot be read."""
WORDS_OF_A_NAME = 4
"""A column's name with more words is probably a text: the file has no header."""
_NO_TEXT: dict[type, str] = {list: "a list", dict: "an object", bytes: "bytes"}
"""Type of a value that is neither a text nor a label -> its name in messages."""


def read_records(
    path: Path, columns: Sequence[str], skipped: list[str] | None = None, *, lists: Sequence[str] = ()
) -> Iterator[tuple[int, Record]]:
    """Yields (line number, record) for each row of a file that must have ``columns``. In Parquet and in a JSON
    array, row 1 is line 1.

    ``lists``: further columns that the file must have, whose values may be lists.
    A row that does not match the header raises InputError; with ``skipped``, its message is appended there instead.
    Raises InputError for a file without a valid row, and ModuleNotFoundError for Parquet without pyarrow.
    """
    if not path.is_file():
        raise InputError(f"no file {path}: give a {', '.join(SUFFIXES)} file with columns {', '.join(columns)}")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{path}: cannot read '{path.suffix}' files. Give one of {', '.join(SUFFIXES)}")
    reader = READERS[suffix]
    rows = 0
    try:
        for line, found in reader(path, (*columns, *lists)):
            row = found if isinstance(found, str) else _checked_values(found, columns)
            if isinstance(row, str):
                problem = f"{path}, line {line}: {row}"
                if skipped is None:
                    raise InputError(f"{problem}. Fix or delete it")
                skipped.append(problem)
                continue
            if missing := [column for column in (*columns, *lists) if column not in row]:
                hint = header_problem(list(row), suffix)
                problem = f"{path}, line {line}: no column '{missing[0]}'. {hint or f'Columns: {listed(row)}'}"
                if skipped is None or suffix in WITH_HEADER:  # the column is missing in every row
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
            yield line, _checked_object(row)


def _read_json(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Reads an array of objects. A file that starts with an object is read as JSONL, because some programs write JSONL
    with this suffix."""
    with path.open(encoding="utf-8-sig") as stream:
        while (first := stream.read(1)).isspace():
            pass
        if first == "{":
            yield from _read_jsonl(path, columns)
            return
        stream.seek(0)
        try:
            rows = json.load(stream, object_pairs_hook=_unique) if first else []
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            message = getattr(error, "msg", error)
            raise InputError(f"{path}{where}: not JSON ({message}). Save it again as JSON or JSONL") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: not an array of objects. Save it as JSONL, with one object per line")
    for line, row in enumerate(rows, start=1):
        yield line, _checked_object(row)


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
                    yield line, _checked_record(row)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({first_line(error)}). Write it again") from None


def _read_conll(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Reads words with IOB2 tags: one word per line, its tag in the last column, a blank line after each text. The
    columns of the rows are ``text``, the words separated by blanks, and ``spans``."""
    with path.open(encoding="utf-8-sig") as stream:
        first, words = 1, []
        for line, content in enumerate([*stream, "\n"], start=1):
            cells = content.split()
            if cells and cells[0] != "-DOCSTART-":
                words.append((line, cells))
            elif words:
                yield first, _conll_row(words)
                words = []
            if not words:
                first = line + 1


def _conll_row(words: list[tuple[int, list[str]]]) -> Row:
    spans: list[list[Any]] = []
    start, before = 0, ""
    for line, (word, *_, tag) in ((line, cells if len(cells) > 1 else [*cells, ""]) for line, cells in words):
        kind, _, label = tag.partition("-")
        if (kind, label) != ("O", "") and not (kind in ("B", "I") and label):
            return f"line {line} has the tag '{tag}', which is not O, B-LABEL or I-LABEL"
        end = start + len(word)
        if kind == "I" and label == before:
            spans[-1][1] = end
        elif label:
            spans.append([start, end, label])
        start, before = end + 1, label
    return {"text": " ".join(cells[0] for _, cells in words), "spans": spans}


def header_problem(names: Sequence[str], suffix: str) -> str:
    """Reason why a header is probably not the file's header, and the next step; empty if it looks like one."""
    only = names[0] if len(names) == 1 else ""
    own = {".tsv": "a tab", ".csv": "a comma"}.get(suffix)
    for separator, name, fitting in (("\t", "a tab", ".tsv"), (";", "a semicolon", ".csv"), (",", "a comma", ".csv")):
        if own and name != own and separator in only:
            fix = f"rename the file to {fitting}" if name in ("a tab", "a comma") else f"save the file with {own}"
            return f"Its columns are separated by {name}, and {suffix} needs {own}: {fix}"
    if suffix in WITH_HEADER and any(_is_data(name) for name in names):
        return (
            f"Its first line looks like data ({listed(_shortened(name) for name in names)}): add a line with the names"
        )
    return ""


def _is_data(name: str) -> bool:
    return len(name.split()) > WORDS_OF_A_NAME or name.strip().lstrip("+-").replace(".", "", 1).isdigit()


def _shortened(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:37]}..."


def _header(names: list[str], columns: Sequence[str], path: Path) -> list[str]:
    names = [name.strip("\ufeff \t\r") for name in names]
    if twice := [column for column in columns if names.count(column) > 1]:
        raise InputError(f"{path}: the header has column '{twice[0]}' twice. Rename or delete one of them")
    return names


def _row(header: list[str], values: list[str]) -> Row:
    if len(values) != len(header):
        return f"{len(values)} columns, but the header has {len(header)}"
    return dict(zip(header, values, strict=True))


def _checked_record(row: object) -> Row:
    return row if isinstance(row, dict) else "not a JSON object"


def _checked_object(row: object) -> Row:
    """A row of JSON. Its escapes can contain half of a character, which no file in UTF-8 can store."""
    for column, value in row.items() if isinstance(row, dict) else ():
        try:
            column.encode()
            (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
        except UnicodeEncodeError:
            return f"column {column!a} contains a lone surrogate, half of a character"
    return _checked_record(row)


def _checked_values(row: Record, columns: Sequence[str]) -> Row:
    for column in columns:
        if kind := _NO_TEXT.get(type(row.get(column))):
            return f"column '{column}' is {kind}, not one value"
    return row


def repeated_column(path: Path) -> str | None:
    """Name of a column that the header of a file has twice; None if there is none, or the format has no header.

    The records of such a file contain only the last of these columns.
    """
    names: list[str] = []
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from pyarrow import parquet

        names = parquet.read_schema(path).names
    elif suffix in WITH_HEADER:
        with path.open(encoding="utf-8-sig", newline="\n" if suffix == ".tsv" else "") as stream:
            names = stream.readline().rstrip("\r\n").split("\t") if suffix == ".tsv" else next(csv.reader(stream), [])
    names = _header(names, (), path)
    return next((name for name in names if names.count(name) > 1), None)


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


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[tuple[int, Row]]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".conll": _read_conll,
    ".iob2": _read_conll,
}
"""Suffix in lower case -> reader of the format. The case of a file's suffix is ignored."""
SUFFIXES = tuple(READERS)
WITH_HEADER = (".tsv", ".csv", ".parquet")
"""Formats in which all rows have the same columns."""
