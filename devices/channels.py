"""Channels of sensors: functions that read one number from a file of the kernel, or a rate from a counter."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

Read = Callable[[], "float | None"]
"""Reads one channel of a sensor; None if it has no value now."""

SHORTEST_S = 0.02
"""Shortest time over which a rate is computed. The kernel updates energy counters about once per millisecond."""


def file_channels(root: Path, folder: str, pattern: str, scale: float) -> dict[str, Read]:
    """One channel per file that matches: the number in it, multiplied by ``scale``."""
    return {str(file.relative_to(root)): number_in(file, scale) for file in sorted((root / folder).glob(pattern))}


def number_in(file: Path, scale: float = 1.0) -> Read:
    """Reads the number in a file of the kernel. Python's file objects take several times as long."""
    path = str(file)

    def read() -> float | None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            return int(os.read(descriptor, 64)) * scale
        except (OSError, ValueError):  # The sensor is off, or the file contains no number.
            return None
        finally:
            os.close(descriptor)

    return read


def text_of(path: str | Path) -> str | None:
    """Text of a file without surrounding blanks; None if it cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def rate_of(counter: Read, wraps_after: float | None = None) -> Read:
    """Increase of a counter per second since the last call. The first call, and a call too soon after the last one, has
    no value. ``wraps_after``: largest value of the counter, after which it starts at 0 again."""
    before = time.perf_counter(), counter()

    def read() -> float | None:
        nonlocal before
        at, count = time.perf_counter(), counter()
        (last_at, last), seconds = before, at - before[0]
        if count is not None and last is not None and seconds < SHORTEST_S:
            return None
        before = at, count
        if count is None or last is None:
            return None
        if count < last:
            if wraps_after is None:
                return None
            count += wraps_after
        return (count - last) / (at - last_at)

    return read


def increase_of(counter: Read) -> Read:
    """1 if a counter of events increased since the last call, else 0."""
    last = counter()

    def read() -> float | None:
        nonlocal last
        before, last = last, counter()
        return None if before is None or last is None else float(last > before)

    return read
