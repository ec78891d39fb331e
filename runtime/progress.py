"""Progress callback protocol. Library code reports its steps through it and prints nothing; a command shows a bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Bar(Protocol):
    """Receiver of the steps of one piece of work."""

    def update(self, n_steps: int, note: str | None = None, /) -> Any:
        """Reports ``n_steps`` more steps, and a short note about them, such as the loss."""


Progress = Callable[[int], AbstractContextManager[Bar]]
"""Number of steps -> a context manager whose bar receives the finished steps. click.progressbar is one."""


class _NoBar:
    def update(self, n_steps: int, note: str | None = None, /) -> None: ...


def silent(length: int) -> AbstractContextManager[Bar]:
    """Shows nothing."""
    return nullcontext(_NoBar())
