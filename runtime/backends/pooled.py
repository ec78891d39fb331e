"""Memory of one call at a time, which later calls use again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import ref

Workspace = TypeVar("Workspace")
IDLE = 4
"""Workspaces that are kept for the next calls. More exist only during as many simultaneous calls."""


class Returning(ref[Any]):
    """Weak reference that its callback appends to a pool with the workspace of the object that was deleted.

    The callback is a C function. In Python code, such as ``__del__``, a Ctrl-C would be lost.
    """

    __slots__ = ("workspace",)
    workspace: Any


class PooledWorkspace(Generic[Workspace]):
    """The workspace of one call, taken from the pool ``idle`` and returned to it when this object is deleted.

    Simultaneous calls and unfinished streams have a workspace each.
    """

    def __init__(self, idle: deque[Returning], make: Callable[[], Workspace]) -> None:
        try:
            self.workspace: Workspace = idle.pop().workspace
        except IndexError:
            self.workspace = make()
        self._returning = Returning(self, idle.append)
        self._returning.workspace = self.workspace
