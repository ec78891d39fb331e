"""Progress of a data engine: the rows of the Parquet files that it has finished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from berxit.runtime.progress import Bar, Progress

POLL_S = 1.0
UNFINISHED = "attempt_"
"""Start of the names of the folders in which Spark's running tasks write."""


@contextmanager
def watched(folder: Path, rows: int, progress: Progress) -> Iterator[None]:
    """Reports the rows of the files that appear in ``folder``, until the block ends. ``rows``: their final number."""
    with progress(rows) as bar:
        done, counted = Event(), dict[str, int]()
        thread = Thread(target=_watch, args=(folder, counted, bar, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        _count(folder, counted, bar)


def _watch(folder: Path, counted: dict[str, int], bar: Bar, done: Event) -> None:
    while not done.wait(POLL_S):
        _count(folder, counted, bar)


def _count(folder: Path, counted: dict[str, int], bar: Bar) -> None:
    """Adds the rows of new files to ``counted`` (file name -> rows). Spark moves files, so a name counts once."""
    from pyarrow import ArrowException, parquet

    for path in list(folder.rglob("*.parquet")):
        if path.name in counted or path.parent.name.startswith(UNFINISHED):
            continue
        try:
            counted[path.name] = parquet.read_metadata(path).num_rows
        except (OSError, ArrowException):
            continue  # still being written, or just moved
        bar.update(counted[path.name])
    if not counted:
        bar.update(0)
