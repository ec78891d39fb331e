"""Rows of text with labels, from TSV, CSV or JSONL files. Every problem is one line that names file and row."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError
from berxit.runtime.tables import plural
from berxit.runtime.tokenization import Text

SUFFIXES = (".tsv", ".csv", ".jsonl")

Row = dict[str, str] | str
"""Column -> text; or, of a row that cannot be read, what is wrong with it."""


@dataclass(frozen=True)
class Examples:
    """N texts (or pairs) with their labels, in the order of the file."""

    texts: list[Text]
    labels: npt.NDArray
    """(N,) class numbers (int64), or values (float64) for regression."""
    skipped: tuple[str, ...] = ()
    """What was wrong with each row of the file that was left out."""

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int | None) -> Examples:
        """The first ``count`` examples; all for None."""
        return self if count is None else replace(self, texts=self.texts[:count], labels=self.labels[:count])

    def skipped_line(self, path: Path) -> str:
        """One line for the user about the rows that were left out."""
        return f"left out {plural(len(self.skipped), 'bad row')} of {path}, the first: {self.skipped[0]}"


def read_examples(
    path: Path,
    text_columns: Sequence[str],
    label_column: str,
    labels: Sequence[str] | None,
    *,
    skip_bad_rows: bool = False,
) -> Examples:
    """Reads a file of examples. ``labels``: the class names, in order; None for regression.

    A label is a class's name or, unless names are numbers themselves, its number, as the GLUE files have it.
    Raises InputError for a missing file, column or value, a ragged row, text that is not UTF-8, or an unknown label.
    ``skip_bad_rows`` leaves out ragged rows, and those with an empty text or an unknown label, instead.
    """
    numbers = None if labels is None else label_numbers(labels)
    texts: list[Text] = []
    values: list[float] = []
    skipped: list[str] | None = [] if skip_bad_rows else None
    for line, row in read_rows(path, (*text_columns, label_column), skipped):
        try:
            text = _text(row, text_columns, f"{path}, line {line}")
            value = _label(row[label_column].strip(), numbers, f"{path}, line {line}")
        except InputError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        texts.append(text)
        values.append(value)
    if not texts and skipped:
        raise InputError(f"{path} has no good row, the first is bad: {skipped[0]}")
    dtype = np.float64 if labels is None else np.int64
    return Examples(texts, np.array(values, dtype=dtype), tuple(skipped or ()))


def read_rows(
    path: Path, columns: Sequence[str], skipped: list[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, row) for each row of a file, where ``columns`` must be. At least one row, or InputError.

    With ``skipped`` a row that does not fit its header is noted there and left out, else it is an InputError, too.
    """
    if not path.is_file():
        raise InputError(f"no file {path}: give a {', '.join(SUFFIXES)} file with columns {', '.join(columns)}")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: cannot read '{path.suffix}' files. Give one of {', '.join(SUFFIXES)}")
    reader = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl}[path.suffix]
    rows = 0
    try:
        for line, row in reader(path):
            if isinstance(row, str):
                problem = f"{path}, line {line}: {row}"
                if skipped is None:
                    raise InputError(f"{problem}. Mend or delete it")
                skipped.append(problem)
                continue
            if missing := [column for column in columns if column not in row]:
                problem = f"{path}, line {line}: no column '{missing[0]}'. There are: {', '.join(row)}"
                if skipped is None or path.suffix != ".jsonl":  # elsewhere the header says so, for all rows
                    raise InputError(problem)
                skipped.append(problem)
                continue
            rows += 1
            yield line, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {_line_of_byte(path)}: not UTF-8 ({error.reason}). Save it as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error}). Save it again as CSV") from None
    if not rows:
        if skipped:
            raise InputError(f"{path} has no good row, the first is bad: {skipped[0]}")
        raise InputError(f"{path} has no rows: give at least one below the header")


def find_split(data: Path, split: str) -> Path:
    """The file of a split: ``data`` itself if it is a file, else DATA/SPLIT.tsv, .csv or .jsonl.

    MNLI has two dev splits: "dev" is dev_matched there, as GLUE reports it first.
    """
    if data.is_file():
        return data
    if not data.exists():
        raise InputError(f"no data at {data}: give a folder with {split}.tsv, or a file")
    for name in (split, f"{split}_matched"):
        for suffix in SUFFIXES:
            if (data / f"{name}{suffix}").is_file():
                return data / f"{name}{suffix}"
    raise InputError(f"{data} has no {split} split: put {split}.tsv ({', '.join(SUFFIXES)}) there, or name a file")


def split_files(data: Path, split: str) -> list[Path]:
    """All files of a split: one, as ``find_split`` finds it, or MNLI's two, matched and mismatched, for "dev"."""
    first = find_split(data, split)
    if data.is_dir() and first.stem == f"{split}_matched" and has_split(data, f"{split}_mismatched"):
        return [first, find_split(data, f"{split}_mismatched")]
    return [first]


def has_split(data: Path, split: str) -> bool:
    return any((data / f"{name}{suffix}").is_file() for name in (split, f"{split}_matched") for suffix in SUFFIXES)


def label_numbers(labels: Sequence[str]) -> dict[str, int]:
    """What a label in a file may be -> its class number."""
    numbers = {name: number for number, name in enumerate(labels)}
    if not any(name.lstrip("-").isdigit() for name in labels):
        numbers.update({str(number): number for number in range(len(labels))})
    return numbers


def _text(row: dict[str, str], columns: Sequence[str], where: str) -> Text:
    parts = [row[column].strip() for column in columns]
    for column, part in zip(columns, parts, strict=True):
        if not part:
            raise InputError(f"{where}: column '{column}' is empty. Fill it or delete the line")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def _label(text: str, numbers: dict[str, int] | None, where: str) -> float:
    if numbers is not None:
        if text not in numbers:
            raise InputError(f"{where}: unknown label '{text}'. Known: {', '.join(numbers)}")
        return numbers[text]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"{where}: label '{text}' is not a number, and the task is regression. Mend or delete the line"
        )
    return value


def _read_tsv(path: Path) -> Iterator[tuple[int, Row]]:
    """GLUE's dialect: no quoting at all, so that a lone " stays a character. A byte order mark is skipped."""
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        header = stream.readline().rstrip("\r\n").split("\t")
        for line, text in enumerate(stream, start=2):
            if not text.strip():
                continue
            values = text.rstrip("\r\n").split("\t")
            yield line, _row(header, values)


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header = next(reader, [])
        for values in reader:
            if not values:
                continue
            yield reader.line_num, _row(header, values)


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                yield line, f"not JSON ({error.msg})"
                continue
            if isinstance(row, dict):
                yield line, {key: _json_text(value) for key, value in row.items()}
            else:
                yield line, "not a JSON object; write one per line"


def _row(header: list[str], values: list[str]) -> Row:
    if len(values) != len(header):
        return f"{len(values)} columns where the header has {len(header)}"
    return dict(zip(header, values, strict=True))


def _json_text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _line_of_byte(path: Path) -> int:
    """The first line of a file that is not UTF-8."""
    for line, text in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            return line
    return 0
