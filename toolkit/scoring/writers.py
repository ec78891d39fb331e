"""Writers of rows as CSV, JSONL or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from berxit.runtime.data_files import Record, value_text
from berxit.runtime.errors import InputError
from berxit.runtime.storage import check_place

Write = Callable[[Sequence[Record]], None]
"""Appends rows."""


@contextmanager
def _csv(path: Path, columns: Sequence[str], _source: Path, _added: Mapping[str, type]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as stream:
        plain = csv.writer(stream, lineterminator="\n")
        # csv quotes a line break only if it is in the line terminator, so a carriage return would end the row.
        quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)

        def write(rows: Sequence[Sequence[str]]) -> None:
            for row in rows:
                (quoted if any("\r" in value for value in row) else plain).writerow(row)

        write([columns])
        yield lambda rows: write([[value_text(row.get(c)) for c in columns] for row in rows])


@contextmanager
def _jsonl(path: Path, _columns: Sequence[str], _source: Path, _added: Mapping[str, type]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as stream:
        yield lambda rows: stream.writelines(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)


@contextmanager
def _parquet(path: Path, columns: Sequence[str], source: Path, added: Mapping[str, type]) -> Iterator[Write]:
    """Columns of a Parquet file keep their types; those of another file are text."""
    import pyarrow
    from pyarrow import parquet

    kinds = {str: pyarrow.string(), int: pyarrow.int32(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    typed = source.suffix.lower() == ".parquet"
    known = parquet.read_schema(source) if typed else pyarrow.schema([])
    schema = pyarrow.schema(
        [
            known.field(name) if name in known.names else pyarrow.field(name, kinds[added.get(name, str)])
            for name in columns
        ]
    )

    def write(rows: Sequence[Record]) -> None:
        if not typed:
            rows = [
                {name: row.get(name) if name in added else value_text(row.get(name)) for name in columns}
                for row in rows
            ]
        writer.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema))

    with parquet.ParquetWriter(path, schema) as writer:
        yield write


WRITERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def check_output(output: Path, *, force: bool) -> None:
    """Raises InputError for a suffix without a writer, a folder, or an existing file without ``force``, and
    ModuleNotFoundError for Parquet without pyarrow."""
    if output.suffix.lower() not in WRITERS:
        raise InputError(f"--output {output}: cannot write '{output.suffix}' files. Use one of {', '.join(WRITERS)}")
    check_place(output)
    if output.is_dir():
        raise InputError(f"--output {output} is a folder: name a file in it")
    if output.exists() and not force:
        raise InputError(f"{output} exists: choose another --output, or replace it with --force")
    if output.suffix.lower() == ".parquet":
        import pyarrow  # noqa: F401


@contextmanager
def open_writer(path: Path, columns: Sequence[str], source: Path, added: Mapping[str, type]) -> Iterator[Write]:
    """Context manager of a new file in the format of its suffix.

    ``columns``: all columns, in order. ``source``: the file that the rows are from. ``added``: name -> type of the
    columns that the source does not have.
    """
    opened: Any = WRITERS[path.suffix.lower()]
    with opened(path, columns, source, added) as write:
        yield write
