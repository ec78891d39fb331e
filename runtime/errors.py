"""The errors a user can meet: one line that says what, where and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

ANOTHER_BACKEND = "Rerun with --debug to see more, export again, or use another --backend (berxit doctor lists them)"
"""What to do about a failure that only the library underneath can explain."""


class BerxitError(Exception):
    """Something failed: a file, a back end, a device. Commands exit with status 1."""

    exit_status = 1


class NoisyError(BerxitError):
    """A measurement is too noisy to decide anything by it."""


class PoolError(BerxitError):
    """Not in this process: its threads are one pool, and that cannot be undone."""


class InputError(BerxitError, ValueError):
    """The caller asked for something that cannot be: a bad value, row or file. Commands exit with status 2."""

    exit_status = 2


def first_line(error: Exception) -> str:
    """The first line of another library's message, at most 200 characters; the exception's type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def failure(what: str, error: Exception, remedy: str) -> BerxitError:
    """``error``, which a library raised, as a BerxitError of one line; a BerxitError as it is."""
    return error if isinstance(error, BerxitError) else BerxitError(f"{what}: {first_line(error)}. {remedy}")


@contextmanager
def one_line_errors(what: str, remedy: str) -> Iterator[None]:
    """Raises ``failure`` of whatever is raised inside."""
    try:
        yield
    except BerxitError:
        raise
    except Exception as error:
        raise failure(what, error, remedy) from error
