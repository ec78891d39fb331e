"""Rows of text with labels, from TSV, CSV or JSONL files. Every problem is one line that names file and row."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.tokenization import Text

SUFFIXES = (".tsv", ".csv", ".jsonl")


@dataclass(frozen=True)
class Examples:
    """N texts (or pairs) with their labels, in the order of the file."""

    texts: list[Text]
    labels: npt.NDArray
    """(N,) class numbers (int64), or values (float64) for regression."""

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int | None) -> Examples:
        """The first ``count`` examples; all for None."""
        return self if count is None else Examples(self.texts[:count], self.labels[:count])


def read_examples(path: Path, text_columns: Sequence[str], label_column: str, labels: Sequence[str] | None) -> Examples:
    """Reads a file of examples. ``labels``: the class names, in order; None for regression.

    A label is a class's name or, unless names are numbers themselves, its number, as the GLUE files have it.
    Raises InputError for a missing file, column or value, a ragged row, text that is not UTF-8, or an unknown label.
    """
    numbers = None if labels is None else label_numbers(labels)
    texts: list[Text] = []
    values: list[float] = []
    for line, row in read_rows(path, (*text_columns, label_column)):
        parts = [row[column].strip() for column in text_columns]
        for column, part in zip(text_columns, parts, strict=True):
            if not part:
                raise InputError(f"{path}, line {line}: column '{column}' is empty. Fill it or delete the line")
        texts.append(parts[0] if len(parts) == 1 else (parts[0], parts[1]))
        values.append(_label(row[label_column].strip(), numbers, f"{path}, line {line}"))
    return Examples(texts, np.array(values, dtype=np.float64 if labels is None else np.int64))


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, row) for each row of a file, where ``columns`` must be. At least one row, or InputError."""
    if not path.is_file():
        raise InputError(f"no file {path}: give a {', '.join(SUFFIXES)} file with columns {', '.join(columns)}")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: cannot read '{path.suffix}' files. Give one of {', '.join(SUFFIXES)}")
    reader = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl}[path.suffix]
    rows = 0
    try:
        for line, row in reader(path):
            if missing := [column for column in columns if column not in row]:
                raise InputError(f"{path}, line {line}: no column '{missing[0]}'. There are: {', '.join(row)}")
            rows += 1
            yield line, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {_line_of_byte(path)}: not UTF-8 ({error.reason}). Save it as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error}). Save it again as CSV") from None
    if not rows:
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


def has_split(data: Path, split: str) -> bool:
    return any((data / f"{name}{suffix}").is_file() for name in (split, f"{split}_matched") for suffix in SUFFIXES)


def label_numbers(labels: Sequence[str]) -> dict[str, int]:
    """What a label in a file may be -> its class number."""
    numbers = {name: number for number, name in enumerate(labels)}
    if not any(name.lstrip("-").isdigit() for name in labels):
        numbers.update({str(number): number for number in range(len(labels))})
    return numbers


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


def _read_tsv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """GLUE's dialect: no quoting at all, so that a lone " stays a character. A byte order mark is skipped."""
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        header = stream.readline().rstrip("\r\n").split("\t")
        for line, text in enumerate(stream, start=2):
            if not text.strip():
                continue
            values = text.rstrip("\r\n").split("\t")
            if len(values) != len(header):
                raise InputError(
                    f"{path}, line {line}: {len(values)} columns where the header has {len(header)}. Mend or delete it"
                )
            yield line, dict(zip(header, values, strict=True))


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header = next(reader, [])
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(values)} columns where the header has {len(header)}."
                    " Mend or delete it"
                )
            yield reader.line_num, dict(zip(header, values, strict=True))


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {line}: not JSON ({error.msg}). Mend or delete it") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {line}: not a JSON object. Write one object per line")
            yield line, {key: _json_text(value) for key, value in row.items()}


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
