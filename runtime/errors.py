"""The errors a user can meet: one line that says what, where and how to mend it."""

from __future__ import annotations


class BerxitError(Exception):
    """Something failed: a file, a back end, a device. Commands exit with status 1."""

    exit_status = 1


class PoolError(BerxitError):
    """Not in this process: its threads are one pool, and that cannot be undone."""


class InputError(BerxitError, ValueError):
    """The caller asked for something that cannot be: a bad value, row or file. Commands exit with status 2."""

    exit_status = 2


def first_line(error: Exception) -> str:
    """The first line of another library's message, at most 200 characters; the exception's type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
