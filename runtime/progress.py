"""Progress callback protocol. Library code reports its steps through it and prints nothing; a command shows a bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Bar(Protocol):
    """Receiver of the steps of one piece of work. It may also have ``note(text)``, which shows a text beside them,
    and ``line(text)``, which prints a line."""

    def update(self, n_steps: int, /) -> Any:
        """Reports ``n_steps`` more steps."""


Progress = Callable[[int], AbstractContextManager[Bar]]
"""Number of steps -> a context manager whose bar receives the finished steps, such as ``lambda n: tqdm(total=n)``."""


class _NoBar:
    def update(self, n_steps: int, /) -> None: ...


def silent(length: int) -> AbstractContextManager[Bar]:
    """Progress without a bar."""
    return nullcontext(_NoBar())


def show_note(bar: Bar, text: str) -> None:
    """Shows a text beside the bar, if the bar can do that."""
    if show := getattr(bar, "note", None):
        show(text)


def duration(seconds: float) -> str:
    """Time in words: 42 s, 3 min 10 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
