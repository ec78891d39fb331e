"""Deadlines: an exit policy that also exits when the next exit may be reached too late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError
from berxit.runtime.policies import Bools, Certainty, ExitPolicy, Floats, Memory

MISS_PROBABILITY = 0.01
"""Default maximum share of calls that miss their deadline although their first exit was in time."""
FIRST_MARGIN = 2.0
"""Initial margin of an estimator."""
LARGEST_MARGIN = 16.0
"""Upper limit of the margin. A slower step is a stall; a margin that covers stalls would rule out every deeper exit."""
RATE = 0.25
"""A missed deadline raises the margin by a factor of at most e^RATE, 28%."""
RESERVE_S = 1e-4
"""Seconds reserved for the work after the last layer: the prediction from its logits."""


class StepEstimator:
    """Estimates the time of the next segment, so that the share of missed deadlines stays below ``miss_probability``.

    The estimate is the time of the slowest layer so far in the same call, times the number of layers of the next
    segment, times a margin. The layers of the same call reflect the length of the input and the current speed of the
    device. The margin covers all other variation. It is controlled by the missed deadlines (adaptive conformal
    inference, Gibbs and Candes, 2021): a call that misses its deadline raises log(margin) by RATE x (1 - p), any other
    call lowers it by RATE x p. p is half of ``miss_probability``, so that the guarantee also holds over a few hundred
    calls.

    - For any distribution of latencies, at most p x N + log(margin / FIRST_MARGIN) / RATE of N calls miss their
      deadline, as long as the margin stays below LARGEST_MARGIN.
    - A stall counts as one missed deadline, however long it lasts.
    - The margin adapts to the device; the estimator stores no history.

    All calls of a runner share one estimator. It can be used from several threads.

    Raises InputError unless 0 < miss_probability < 1.
    """

    def __init__(self, miss_probability: float = MISS_PROBABILITY) -> None:
        if not 0 < miss_probability < 1:
            raise InputError(f"miss_probability is {miss_probability}: it must be above 0 and below 1")
        self.miss_probability = miss_probability
        self._log_margin = math.log(FIRST_MARGIN)

    @property
    def margin(self) -> float:
        """Estimated time per layer, divided by that of the slowest layer so far in the call; 1 to LARGEST_MARGIN."""
        return math.exp(self._log_margin)

    def observe(self, missed: bool) -> None:
        """Updates the margin after a call. If two threads update it at once, one update may be lost."""
        changed = self._log_margin + RATE * (missed - self.miss_probability / 2)
        self._log_margin = min(max(changed, 0.0), math.log(LARGEST_MARGIN))


def end_of(milliseconds: float, start: float) -> float:
    """End, in seconds, of a call that started at ``start`` seconds and has ``milliseconds``.

    Raises InputError unless ``milliseconds`` is above 0.
    """
    if not milliseconds > 0:
        raise InputError(f"deadline_ms is {milliseconds}: it must be above 0")
    return start + milliseconds / 1e3


class Deadline:
    """Exit policy with a deadline: ``policy``, but a row exits if its next exit is expected after its ``end``. The
    first exit is always computed.

    ``exits``: layers with an exit. ``end``: one for all rows, or (B,) one for each; infinite without a deadline.
    ``estimator``: shared by all calls of a runner. ``opening``: returns the seconds for opening the file of a layer
    that is not loaded yet; 0 by default. ``end`` and ``clock`` are in seconds.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        exits: Sequence[int],
        end: float | npt.NDArray[np.float64],
        estimator: StepEstimator,
        opening: Callable[[int], float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.policy = policy
        self.temperatures = policy.temperatures
        self._ends = np.atleast_1d(end)
        """(B,) of the remaining rows, or (1,) for all of them."""
        self._missed: bool | None = None
        """True after a row missed its deadline although a larger margin would have prevented that."""
        self._estimator = estimator
        self._margin = estimator.margin
        self._opening = opening or (lambda layer: 0.0)
        self._clock = clock
        self._gaps = dict(zip(exits, np.diff([0, *exits]).tolist(), strict=True))
        """Exit layer -> number of layers since the previous exit. The time of a segment is proportional to it."""
        self._following = dict(pairwise(exits))
        self._first = exits[0]
        self._slowest = 0.0
        self._waits = self._opening(exits[0]) > 0
        self._last = clock()

    def certainty(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        return self.policy.certainty(layer, logits, lte, memory)

    def exits(self, layer: int, certainty: npt.NDArray, logits: Floats | None = None) -> Bools:
        now = self._clock()
        self._record((now - self._last) / self._gaps[layer])
        self._last = now
        exiting = self.policy.exits(layer, certainty, logits)
        following = None if exiting.all() else self._following.get(layer)
        # If the first exit or the opening of a file was late, no margin could have prevented the miss.
        preventable = layer != self._first and not self._waits
        if following is None:
            exiting = np.ones_like(exiting)
        else:
            opening = self._opening(following)
            expected = now + opening + self._margin * self._slowest * self._gaps[following]
            exiting = exiting | (expected > self._ends)
            self._waits = opening > 0
        self._exit(exiting, now, preventable)
        return exiting

    def _exit(self, exiting: Bools, now: float, preventable: bool) -> None:
        """Records that ``exiting`` (B,) rows exit at time ``now``. After the last row, updates the estimator, once."""
        ends = np.broadcast_to(self._ends, exiting.shape)
        if exiting.any():
            missed = bool((ends[exiting] < now).any())
            if not missed or preventable:
                self._missed = bool(self._missed) or missed
        self._ends = ends[~exiting]
        if not len(self._ends) and self._missed is not None:
            self._estimator.observe(self._missed)

    def _record(self, seconds: float) -> None:
        """Records the time per layer of the last segment; the first segment includes the embeddings.

        The time of a segment that waited for its file does not predict other segments. It is used only if there is no
        other time yet.
        """
        if not (self._slowest and self._waits):
            self._slowest = max(self._slowest, seconds)
