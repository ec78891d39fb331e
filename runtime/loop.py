"""The exit loop. There is one, it fits on a screen, and it drives every back end."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import ANOTHER_BACKEND, BerxitError, failure
from berxit.runtime.policies import Bools, Certainty, Floats, Ints, Memory
from berxit.runtime.tokenization import TokenBatch

State = Any
"""What a back end carries from layer to layer (hidden states, masks, device buffers); the loop never looks inside, and
uses each once: the next may lie in the same memory."""


class Backend(Protocol):
    """What the loop needs of a machine that can run segments. Safe to call from several threads.

    It may also say what a runner can use: ``tokens_at_once`` and ``opening_seconds(layer)``, as FilesBackend does.
    """

    name: str
    """As in runtime.backends.BACKENDS."""
    layers: int
    """How many layers there are."""
    exits: tuple[int, ...]
    """After which layers a row can leave; the last layer is the last of them."""
    threads: int
    """CPU threads that a segment may use."""

    def embed(self, batch: TokenBatch) -> State:
        """Runs the embeddings segment on B rows."""

    def layer(self, layer: int, state: State) -> tuple[State, Floats, Floats | None]:
        """Runs the segment that ends with ``layer``, one of ``exits``: the next state, logits (B, C), and LTE certainty
        (B,) or None."""

    def keep(self, state: State, rows: Bools) -> State:
        """Drops the rows that have left: rows (B,) is True where the row goes on."""


class Policy(Protocol):
    """What the loop needs to know when to stop: an ExitPolicy, or one under a deadline."""

    @property
    def temperatures(self) -> tuple[float, ...]:
        """(n,) what each layer's logits are divided by."""

    def certainty(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        """How sure each row is after ``layer``."""

    def exits(self, layer: int, certainty: npt.NDArray) -> Bools:
        """Which rows leave after ``layer``."""


class LayerResult(NamedTuple):
    """What one layer said of the rows that reached it."""

    layer: int
    rows: Ints
    """(B,) their places in the batch that came in."""
    logits: Floats
    """(B, C)"""
    certainty: npt.NDArray
    """(B,)"""
    exits: Bools
    """(B,) which of them leave here."""


class ExitOutput(NamedTuple):
    """Output of one exit for all rows of a batch."""

    layer: int
    logits: Floats
    """(B, C)"""
    lte: Floats | None
    """(B,), or None without LTE."""
    state: State
    """The state after the layer; valid until the next segment runs."""


def every_exit(backend: Backend, batch: TokenBatch) -> Iterator[ExitOutput]:
    """Runs all segments on B rows and yields every exit's output, the shallowest first. No row exits early."""
    state = run_embeddings(backend, batch)
    for layer in backend.exits:
        state, logits, lte = run_layer(backend, layer, state)
        yield ExitOutput(layer, logits, lte, state)


def exit_loop(backend: Backend, batch: TokenBatch, policy: Policy) -> Iterator[LayerResult]:
    """Runs from exit to exit and yields each one's results; rows leave as soon as the policy is satisfied."""
    rows = np.arange(len(batch))
    memory: Memory | None = None
    state = run_embeddings(backend, batch)
    for layer in backend.exits:
        state, logits, lte = run_layer(backend, layer, state)
        certainty, memory = policy.certainty(layer, logits, lte, memory)
        exits = policy.exits(layer, certainty)
        yield LayerResult(layer, rows, logits, certainty, exits)
        leaving = np.count_nonzero(exits)
        if leaving == len(rows):
            return
        if leaving:
            stay = ~exits
            rows = rows[stay]
            state = keep_rows(backend, layer, state, stay)
            memory = memory.keep(stay) if memory is not None else None


def run_embeddings(backend: Backend, batch: TokenBatch) -> State:
    """``backend.embed``. Raises BerxitError for whatever goes wrong in it."""
    try:
        return backend.embed(batch)
    except Exception as error:
        raise _failure(backend, "the embeddings segment", error) from error


def run_layer(backend: Backend, layer: int, state: State) -> tuple[State, Floats, Floats | None]:
    """``backend.layer``. Raises BerxitError for whatever goes wrong in it, and for outputs that are no prediction."""
    try:
        state, logits, lte = backend.layer(layer, state)
    except Exception as error:
        raise _failure(backend, f"layer {layer}", error) from error
    check_outputs(backend, layer, logits, lte)
    return state, logits, lte


def keep_rows(backend: Backend, layer: int, state: State, rows: Bools) -> State:
    """``backend.keep`` after ``layer``. Raises BerxitError for whatever goes wrong in it."""
    try:
        return backend.keep(state, rows)
    except Exception as error:
        raise _failure(backend, f"layer {layer} (removing rows that exited)", error) from error


def check_outputs(backend: Backend, layer: int, logits: Floats, lte: Floats | None) -> None:
    """Raises BerxitError unless logits (B, C) are finite and LTE certainties (B,) are in [0, 1].

    A sum of squares is finite only if every number is, and takes a fifth of the time of numpy's test, which decides
    where the sum overflows.
    """
    if not isfinite(np.vdot(logits, logits)) and not np.isfinite(logits).all():
        raise _no_prediction(backend, layer, "logits are not finite", logits)
    if lte is not None:
        low, high = (lte.item(),) * 2 if len(lte) == 1 else (lte.min(), lte.max())
        if not (low >= 0 and high <= 1):  # not for NaN
            raise _no_prediction(backend, layer, "LTE certainties are not in [0, 1]", lte)


def _no_prediction(backend: Backend, layer: int, what: str, values: Floats) -> BerxitError:
    return BerxitError(
        f"backend '{backend.name}', layer {layer}: {what}: {np.ravel(values)[:4].tolist()}. Measure the bundle with"
        " berxit-bench, which compares every exit with the checkpoint; then export again or use another --backend"
    )


def _failure(backend: Backend, where: str, error: Exception) -> BerxitError:
    return failure(f"backend '{backend.name}' failed at {where}", error, ANOTHER_BACKEND)
