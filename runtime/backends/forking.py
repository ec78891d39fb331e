"""Opened backends in a forked child process.

A child has its parent's memory, but of its threads only the one that forked. A session whose thread pool is gone hangs
or runs on one core, a lock that another thread held is never released, and the destructors of ONNX Runtime and
OpenVINO wait for threads that do not exist (microsoft/onnxruntime#31961; merely importing ONNX Runtime 1.32 is enough).
So a child never uses or destroys what its parent opened: a backend that can do so opens its files again at the first
call, any other raises an error, and the child ends without running native exit handlers from before the fork.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from berxit.runtime.errors import BerxitError

if TYPE_CHECKING:
    from berxit.runtime.loop import Backend

generation = 0
"""Number of forks between the process that imported this module and this one. Files that were opened under another
number are not usable."""
opening = threading.RLock()
"""Locked while a file is opened, so that no child is forked meanwhile."""
REMEDY = "start it with spawn or forkserver, or load no bundle before the fork; backend onnxruntime can be forked"

METHODS = ("embed", "layer", "keep", "opening_seconds")
"""Methods of a backend that may be called in a child."""

_watched: WeakKeyDictionary[Backend, Callable[[], Backend] | None] = WeakKeyDictionary()
"""Opened backend -> function that opens it again."""
_child_ends_early = False
"""True if a child of this process skips the native exit handlers that it inherits."""


def watch(backend: Backend, reopen: Callable[[], Backend] | None) -> None:
    """Prepares ``backend`` for a fork. In the child it becomes what ``reopen`` returns, at its first call; with None
    its calls raise BerxitError. Its ``after_fork`` is called in the child first."""
    global _child_ends_early  # noqa: PLW0603 - a fact about the process
    _child_ends_early = True
    _watched[backend] = reopen


def _in_child() -> None:
    global generation  # noqa: PLW0603 - a fact about the process
    opening.release()
    generation += 1
    for backend, reopen in list(_watched.items()):
        backend.after_fork()
        _never_destroy(dict(vars(backend)))
        first_call = partial(_refuse, backend) if reopen is None else partial(_reopen, backend, reopen)
        for method in METHODS:
            setattr(backend, method, partial(first_call, method))
    if _child_ends_early:
        _skip_native_exit_handlers()


def _refuse(backend: Backend, method: str, *_: Any) -> Any:
    raise BerxitError(
        f"backend '{backend.label}' was opened before this process was forked and cannot run here: {REMEDY}"
    )


def _reopen(backend: Backend, reopen: Callable[[], Backend], method: str, *arguments: Any) -> Any:
    with opening:
        if method in vars(backend):  # No other thread was faster.
            fresh = vars(reopen())
            for name in METHODS:
                vars(backend).pop(name, None)
            vars(backend).update(fresh)
    return getattr(backend, method)(*arguments)


def _never_destroy(thing: object) -> None:
    """Keeps ``thing`` alive for the rest of the process, the interpreter's own end included."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _skip_native_exit_handlers() -> None:
    """Ends the process, when its time comes, with the status that it then has, after Python's own clean-up and with
    C's open files written: registered last, these two run first. Only glibc has ``on_exit``; elsewhere nothing
    changes."""
    with suppress(OSError, TypeError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
        libc.__cxa_atexit(ctypes.cast(libc.fflush, ctypes.c_void_p), None, None)


if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(before=opening.acquire, after_in_parent=opening.release, after_in_child=_in_child)
