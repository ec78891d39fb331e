"""Options of an export, as the user gives them, and the callbacks that receive its messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from berxit.runtime.progress import Progress, silent


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export. None, or an empty tuple, selects the target's default."""

    precision: str | None = None
    lengths: tuple[int, ...] = ()
    """Input lengths in tokens that the segments accept; an input is padded to the next length."""
    max_batch: int | None = None
    """Largest number of rows per call of a segment."""
    target_version: str | None = None
    """The oldest software that must read the segments: jetpack6.1, ios18, ..."""
    layout: str | None = None
    """Memory layout of the hidden states, if the target has several."""
    exits: tuple[int, ...] | str = ()
    """Layers that get an exit, in addition to the last; "auto": chosen by measurement. Empty: all layers."""
    threads: int | None = None
    """Default number of CPU threads of the bundle; the caller can override it."""
    target_options: tuple[str, ...] = ()
    """Variants of the segments, by name: those of the target's ``variants``."""


def _ignore(line: str) -> None:
    """Ignores a line."""


@dataclass(frozen=True)
class Messages:
    """Callbacks of an export: progress bars, lines of its report, warnings."""

    progress: Progress = silent
    report: Callable[[str], None] = _ignore
    warn: Callable[[str], None] = _ignore
