"""Protocol of progress bars: the caller passes a factory of bars, such as one that wraps click.progressbar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Bar(Protocol):
    def update(self, n_steps: int, /) -> Any:
        """Advances the bar by ``n_steps``."""


Progress = Callable[[int], AbstractContextManager[Bar]]
"""Factory of progress bars: number of steps -> context manager that returns a bar."""


class _NoBar:
    def update(self, n_steps: int, /) -> None: ...


def silent(length: int) -> AbstractContextManager[Bar]:
    """Progress without a bar."""
    return nullcontext(_NoBar())
