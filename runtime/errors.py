"""Errors shown to users. Each message is one line with the failure, the value, the place and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

ANOTHER_BACKEND = "Rerun with --debug to see more, export again, or use another --backend (berxit doctor lists them)"
"""Remedy for failures inside a backend's library."""


class BerxitError(Exception):
    """Failure of a file, a backend or a device. Commands exit with status 1.

    The message is one line, even if it quotes a name or a value of a file that contains line breaks.
    """

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class NoisyError(BerxitError):
    """Measurement that is too noisy to base a decision on."""


class DivergedError(BerxitError):
    """Training with a loss, or a trained model with outputs, that is not finite or constant."""


class PoolError(BerxitError):
    """Thread count that conflicts with the process-wide thread pool, which cannot be changed once it exists."""


class InputError(BerxitError, ValueError):
    """Invalid input of the caller: an option, an argument, a file or a row. Commands exit with status 2."""

    exit_status = 2


def one_line(text: str) -> str:
    """The text with escapes for line breaks, other control characters and lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """First line of an exception's message, at most 200 characters; the exception's type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def failure(what: str, error: BaseException, remedy: str) -> BerxitError:
    """Converts an exception of a library to a BerxitError of one line; returns a BerxitError unchanged.

    ``what`` is the start of the message, ``remedy`` its end.
    """
    return error if isinstance(error, BerxitError) else BerxitError(f"{what}: {first_line(error)}. {remedy}")


@contextmanager
def one_line_errors(what: str, remedy: str) -> Iterator[None]:
    """Context manager that converts every exception by ``failure``."""
    try:
        yield
    except BerxitError:
        raise
    except Exception as error:
        raise failure(what, error, remedy) from error
