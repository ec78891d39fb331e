"""Checks of a runner's arguments. Each raises an InputError that names the argument."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Set
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any

from berxit.runtime.errors import InputError

MOST_THREADS = 256
"""Upper limit of ``threads``, because backends create every thread that is requested. A small model cannot use more."""


def as_texts(texts: Iterable[Any]) -> list[Any]:
    """Converts a batch to a list. Accepts a list, tuple, generator, array of str, or a column of a data frame.

    An element that is a list or array of two texts becomes a tuple (a pair). The tokenizer checks the elements.
    Raises InputError for a single text, an unordered collection or an object that is not iterable.
    """
    if isinstance(texts, str | bytes):
        raise InputError("a batch is a list of texts, not one text: use predict for one")
    if isinstance(texts, Mapping | Set) or hasattr(texts, "columns"):
        raise InputError(
            f"a batch is a list of texts, not a {type(texts).__name__}: give one column, or list(zip(first, second))"
            " for pairs"
        )
    try:
        rows = iter(texts)
    except TypeError:
        raise InputError(f"a batch is a list of texts, not a {type(texts).__name__}") from None
    return [row if isinstance(row, str | tuple) else _as_pair(row) for row in rows]


def _as_pair(row: Any) -> Any:
    if isinstance(row, list) or getattr(row, "ndim", 0) == 1:
        return tuple(row)
    return row


def as_number(name: str, value: Any) -> float:
    """``value`` as a float. Raises InputError unless it is a real number; bool and str are rejected."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} is {value!r} ({type(value).__name__}): give a number")
    return float(value)


def as_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """``value``. Raises InputError unless it is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}: give {' or '.join(map(repr, choices))}")
    return str(value)


def refuse_alone(options: Mapping[str, object], needed: str) -> None:
    """Raises InputError for an option that is given without ``needed``, without which it has no effect.

    ``options``: flag -> its value, which is falsy if the option is not given.
    """
    if given := [flag for flag, value in options.items() if value]:
        raise InputError(f"{given[0]} goes with {needed}: add it, or omit {given[0]}")


def as_threads(value: Any) -> int:
    """``value`` as an int. Raises InputError unless it is an integer from 1 to MOST_THREADS."""
    try:
        threads = index(value) if not isinstance(value, bool) else None
    except TypeError:
        threads = None
    if threads is None:
        raise InputError(f"threads is {value!r} ({type(value).__name__}): give an int of at least 1")
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads is {threads}: it must be at least 1 and at most {MOST_THREADS}")
    return threads


def load_arguments(bundle: Any, device: Any, backend: Any, threads: Any, **flags: Any) -> dict[str, Any]:
    """Checked arguments of ``EarlyExitRunner.load``, by name.

    The path becomes absolute, so that it stays valid when the process changes its working directory; links are not
    resolved. Raises InputError for a wrong type. Flags must be True or False, because a string such as "no" is truthy.
    """
    if not isinstance(bundle, str | os.PathLike):
        raise InputError(f"bundle is {bundle!r} ({type(bundle).__name__}): give the path of a folder")
    for name, value in {"device": device, "backend": backend or ""}.items():
        if not isinstance(value, str):
            raise InputError(f"{name} is {value!r} ({type(value).__name__}): give a str")
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise InputError(f"{name} is {flag!r} ({type(flag).__name__}): give True or False")
    threads = None if threads is None else as_threads(threads)
    return {"bundle": Path(bundle).absolute(), "device": device, "backend": backend, "threads": threads, **flags}
