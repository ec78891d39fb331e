"""The exit loop. There is one, it fits on a screen, and it drives every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import isfinite
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from berxit.runtime.backend_options import Options, backend_label
from berxit.runtime.errors import ANOTHER_BACKEND, BerxitError, failure
from berxit.runtime.kinds import KINDS, Kind
from berxit.runtime.policies import Bools, Certainty, Floats, Ints, Memory
from berxit.runtime.tokenization import TokenBatch

CLASSIFICATION = KINDS["classification"]
State = Any
"""The state that a backend passes from layer to layer: hidden states, masks, device buffers. The loop does not read it
and uses each state once, because the next one may be stored in the same memory."""


class Backend(ABC):
    """Base class of the backends: runs the segments of one bundle. Safe to call from several threads."""

    name: str
    """As in runtime.backends.BACKENDS."""
    options: Options = MappingProxyType({})
    """The backend's options."""
    layers: int
    """Number of encoder layers of the model."""
    exits: tuple[int, ...]
    """The layers with an exit, ascending; the last layer has one."""
    threads: int = 1
    """CPU threads that a segment may use."""
    tokens_at_once: int = 16384
    """Largest part of a batch that passes through the layers at once, in tokens, padding included."""

    @property
    def label(self) -> str:
        """Name and options, for reports."""
        return backend_label(self.name, self.options)

    @abstractmethod
    def embed(self, batch: TokenBatch) -> State:
        """Runs the embeddings segment on B rows."""

    @abstractmethod
    def layer(self, layer: int, state: State) -> tuple[State, Floats, Floats | None]:
        """Runs the segment that ends with ``layer``, one of ``exits``. Returns the next state, logits (B, C), and LTE
        certainty (B,) or None."""

    @abstractmethod
    def keep(self, state: State, rows: Bools) -> State:
        """Removes the rows that exited: rows (B,) is True for a row that continues."""

    def opening_seconds(self, layer: int) -> float:
        """Expected time until the segment of ``layer`` is loaded, in seconds; 0 if it is loaded."""
        return 0.0

    def one_graph(self) -> Backend | None:
        """A backend that computes full depth as one graph (without exits), if the bundle contains one. It has one exit,
        at the last layer."""
        return None

    def close(self) -> None:  # noqa: B027 - nothing to do by default
        """Releases memory outside the process's own, such as that of a GPU. Later calls may raise BerxitError."""

    def after_fork(self) -> None:  # noqa: B027 - nothing to do by default
        """Called in a forked child process before anything else of this backend."""


class Policy(Protocol):
    """Exit decision of the loop: an ExitPolicy, or one with a deadline."""

    @property
    def temperatures(self) -> tuple[float, ...]:
        """(n,) divisors of each layer's logits."""

    def certainty(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        """Certainty of each row after ``layer``."""

    def exits(self, layer: int, certainty: npt.NDArray, logits: Floats) -> Bools:
        """(B,) True for each row that exits at ``layer``."""


class LayerResult(NamedTuple):
    """Results of one layer for the rows that reached it."""

    layer: int
    rows: Ints
    """(B,) row numbers in the input batch."""
    logits: Floats
    """Of the decisions: (B, K), or (B, D, K) if a text has several (``runtime.kinds``)."""
    certainty: npt.NDArray
    """(B,)"""
    exits: Bools
    """(B,) True for each row that exits here."""


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


def exit_loop(
    backend: Backend, batch: TokenBatch, policy: Policy, kind: Kind = CLASSIFICATION
) -> Iterator[LayerResult]:
    """Runs from exit to exit and yields the results of each. A row exits as soon as the policy is satisfied.

    ``kind``: the model's; it defines the decisions in the logits.
    """
    rows = np.arange(len(batch))
    memory: Memory | None = None
    places = batch.places
    state = run_embeddings(backend, batch)
    for layer in backend.exits:
        state, logits, lte = run_layer(backend, layer, state)
        logits = kind.decisions(logits, None if places is None else places[rows])
        certainty, memory = policy.certainty(layer, logits, lte, memory)
        exits = policy.exits(layer, certainty, logits)
        yield LayerResult(layer, rows, logits, certainty, exits)
        exited = np.count_nonzero(exits)
        if exited == len(rows):
            return
        if exited:
            remaining = ~exits
            rows = rows[remaining]
            state = keep_rows(backend, layer, state, remaining)
            memory = memory.keep(remaining) if memory is not None else None


def run_embeddings(backend: Backend, batch: TokenBatch) -> State:
    """``backend.embed``. Raises BerxitError for every error in it."""
    try:
        return backend.embed(batch)
    except Exception as error:
        raise _failure(backend, "the embeddings segment", error) from error


def run_layer(backend: Backend, layer: int, state: State) -> tuple[State, Floats, Floats | None]:
    """``backend.layer``. Raises BerxitError for every error in it, and for outputs that are no prediction."""
    try:
        state, logits, lte = backend.layer(layer, state)
    except Exception as error:
        raise _failure(backend, f"layer {layer}", error) from error
    check_outputs(backend, layer, logits, lte)
    return state, logits, lte


def keep_rows(backend: Backend, layer: int, state: State, rows: Bools) -> State:
    """``backend.keep`` after ``layer``. Raises BerxitError for every error in it."""
    try:
        return backend.keep(state, rows)
    except Exception as error:
        raise _failure(backend, f"layer {layer} (removing rows that exited)", error) from error


def check_outputs(backend: Backend, layer: int, logits: Floats, lte: Floats | None) -> None:
    """Raises BerxitError unless logits (B, C) are finite and LTE certainties (B,) are in [0, 1].

    A sum of squares is finite only if every number is finite. It takes a fifth of the time of ``np.isfinite``, which
    decides if the sum overflows.
    """
    if not isfinite(np.vdot(logits, logits)) and not np.isfinite(logits).all():
        raise _no_prediction(backend, layer, "logits are not finite", logits)
    if lte is not None:
        low, high = (lte.item(),) * 2 if len(lte) == 1 else (lte.min(), lte.max())
        if not (low >= 0 and high <= 1):  # False for NaN
            raise _no_prediction(backend, layer, "LTE certainties are not in [0, 1]", lte)


def _no_prediction(backend: Backend, layer: int, what: str, values: Floats) -> BerxitError:
    return BerxitError(
        f"backend '{backend.label}', layer {layer}: {what}: {np.ravel(values)[:4].tolist()}. Measure the bundle with"
        " berxit-bench, which compares every exit with the checkpoint; then export again or use another --backend"
    )


def _failure(backend: Backend, where: str, error: Exception) -> BerxitError:
    return failure(f"backend '{backend.label}' failed at {where}", error, ANOTHER_BACKEND)
