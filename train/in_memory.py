"""Data in memory (data frames, datasets.Dataset, lists of dictionaries), stored once as JSONL files.

Everything else in the project reads files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from berxit.runtime.cache import cache_folder
from berxit.runtime.errors import InputError
from berxit.runtime.storage import write_whole


class DataFrame(Protocol):
    """A pandas DataFrame, or another with these two attributes."""

    @property
    def columns(self) -> Any: ...

    def to_dict(self, *args: Any, **kwargs: Any) -> Any: ...


Table = DataFrame | Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
"""A data frame; a datasets.Dataset or list of dictionaries; or a dictionary of equally long columns."""
Data = Path | str | Table | Mapping[str, Table]
"""A file or folder; a table; or a dictionary (or DatasetDict) of split name -> table."""

SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "test": "test"}
"""Split name -> name of the file."""


def data_files(data: Data, split: str) -> Path:
    """The file or folder ``data``; or the file to which a table is written, named after ``split``.

    Tables are stored in the cache folder under the sha256 of their content, so the same table is stored once. Integer
    labels of a datasets.Dataset become their class names. Raises InputError for anything that is not a table, an empty
    table, and columns of different lengths.
    """
    if isinstance(data, Path | str):
        return Path(data)
    by_split = isinstance(data, Mapping) and bool(data) and all(name in SPLITS for name in data)
    tables: Mapping[str, Any] = data if by_split and isinstance(data, Mapping) else {split: data}
    lines = {SPLITS.get(name, name): _lines(table, name) for name, table in tables.items()}
    digest = hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "tables" / digest[:16]
    if not folder.is_dir():
        # Another process may write the same content at the same time; either result is correct.
        with write_whole(folder, force=True) as scratch:
            for name, rows in lines.items():
                (scratch / f"{name}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return folder if by_split else folder / f"{next(iter(lines))}.jsonl"


def _lines(table: Any, split: str) -> list[str]:
    lines = [json.dumps({key: _plain(value) for key, value in row.items()}) for row in _rows(table, split)]
    if not lines:
        raise InputError(f"the {split} table is empty: give at least one row")
    return lines


def _rows(table: Any, split: str) -> Iterator[Mapping[str, Any]]:
    """The rows of any kind of table as dictionaries."""
    if hasattr(table, "to_dict") and hasattr(table, "columns"):  # a data frame
        yield from table.to_dict("records")
    elif hasattr(table, "features") and hasattr(table, "column_names"):  # a datasets.Dataset
        names = {name: kind.int2str for name, kind in table.features.items() if hasattr(kind, "int2str")}
        for row in table:
            yield {name: names[name](value) if name in names else value for name, value in row.items()}
    elif isinstance(table, Mapping):
        yield from _from_columns(table, split)
    elif isinstance(table, Iterable) and not isinstance(table, str | bytes):
        for number, row in enumerate(table):
            if not isinstance(row, Mapping):
                raise InputError(
                    f"row {number} of the {split} table is {type(row).__name__}: give dictionaries of column -> value"
                )
            yield row
    else:
        raise InputError(
            f"the {split} data is {type(table).__name__}: give a path, a datasets.Dataset, a data frame, a list of"
            " dictionaries, or a dictionary of columns"
        )


def _from_columns(columns: Mapping[str, Sequence[Any]], split: str) -> Iterator[Mapping[str, Any]]:
    values = {name: list(column) for name, column in columns.items()}
    lengths = {name: len(column) for name, column in values.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the columns of the {split} table have different lengths: {lengths}")
    for row in zip(*values.values(), strict=True):
        yield dict(zip(values, row, strict=True))


def _plain(value: Any) -> Any:
    """A value that JSON can store: numpy scalars become Python numbers."""
    return value.item() if hasattr(value, "item") else value
