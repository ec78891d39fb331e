"""How long work tells how far it is: it asks for a bar of the length it needs, as click.progressbar gives one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Bar(Protocol):
    def update(self, n_steps: int, /) -> Any:
        """So many more are done."""


Progress = Callable[[int], AbstractContextManager[Bar]]
"""Number of steps to come -> a context whose bar hears of those done."""


class _NoBar:
    def update(self, n_steps: int, /) -> None: ...


def silent(length: int) -> AbstractContextManager[Bar]:
    """Shows nothing."""
    return nullcontext(_NoBar())
