"""Predictions in time: a policy that also stops where the next exit might come too late."""

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
"""Default share of calls that may end after their deadline although their first exit was in time."""
FIRST_MARGIN = 2.0
"""Margin of an estimator that has observed no call."""
LARGEST_MARGIN = 16.0
"""A step that takes longer is a stall; no margin protects against it without giving up every deeper exit."""
RATE = 0.25
"""A missed deadline raises the margin by a factor of at most e^RATE, 28%."""
RESERVE_S = 1e-4
"""Seconds reserved for what follows the last layer: the prediction from its logits."""


class StepEstimator:
    """Estimates the time of the next step, so that at most a share of ``miss_probability`` of all calls misses its
    deadline.

    The estimate is the slowest layer so far in the same call, times the layers of the next segment, times a margin. A
    call's own layers reflect the length of its input and the present speed of the device. The margin covers what they
    cannot show, and is controlled by the deadlines that were missed (adaptive conformal inference, Gibbs and Candes,
    2021): a call that misses its deadline raises log(margin) by RATE x (1 - p), any other call lowers it by RATE x p.
    p is half of ``miss_probability``, so that the share stays below the promise over some hundred calls, too.

    - Whatever the distribution of latencies, of N calls at most p x N + log(margin / FIRST_MARGIN) / RATE miss their
      deadline, as long as the margin stays below LARGEST_MARGIN.
    - A stall counts as one missed deadline, however long it lasted.
    - There is no history to forget: the margin follows the device.

    One estimator serves all calls of a runner. Several threads may share it.

    Raises InputError unless 0 < miss_probability < 1.
    """

    def __init__(self, miss_probability: float = MISS_PROBABILITY) -> None:
        if not 0 < miss_probability < 1:
            raise InputError(f"miss_probability is {miss_probability}: it must be above 0 and below 1")
        self.miss_probability = miss_probability
        self._log_margin = math.log(FIRST_MARGIN)

    @property
    def margin(self) -> float:
        """Estimated time of a layer divided by the slowest layer before it in the call; from 1 to LARGEST_MARGIN."""
        return math.exp(self._log_margin)

    def observe(self, missed: bool) -> None:
        """Updates the margin after a call. Of two simultaneous updates one may be lost."""
        changed = self._log_margin + RATE * (missed - self.miss_probability / 2)
        self._log_margin = min(max(changed, 0.0), math.log(LARGEST_MARGIN))


def end_of(milliseconds: float, start: float) -> float:
    """When a call that started at ``start``, in seconds, must be done. Raises InputError unless that is later."""
    if not milliseconds > 0:
        raise InputError(f"deadline_ms is {milliseconds}: it must be above 0")
    return start + milliseconds / 1e3


class Deadline:
    """``policy`` until ``end``: it also stops where the next exit is expected after that. The first exit is reached in
    any case.

    ``exits``: the layers that have one. ``estimator``: the runner's. ``opening``: the seconds that an input
    would wait for a layer's file; by default none. ``end`` and ``clock`` are in seconds.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        exits: Sequence[int],
        end: float,
        estimator: StepEstimator,
        opening: Callable[[int], float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.policy = policy
        self.temperatures = policy.temperatures
        self._end = end
        self._estimator = estimator
        self._margin = estimator.margin
        self._opening = opening or (lambda layer: 0.0)
        self._clock = clock
        self._gaps = dict(zip(exits, np.diff([0, *exits]).tolist(), strict=True))
        """Exit layer -> layers since the exit before: a segment of several takes as many times one."""
        self._following = dict(pairwise(exits))
        self._first = exits[0]
        self._slowest = 0.0
        self._waits = self._opening(exits[0]) > 0
        self._last = clock()

    def certainty(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        return self.policy.certainty(layer, logits, lte, memory)

    def exits(self, layer: int, certainty: npt.NDArray) -> Bools:
        now = self._clock()
        self._see((now - self._last) / self._gaps[layer])
        self._last = now
        exiting = self.policy.exits(layer, certainty)
        following = None if exiting.all() else self._following.get(layer)
        if following is not None:
            opening = self._opening(following)
            if now + opening + self._margin * self._slowest * self._gaps[following] <= self._end:
                self._waits = opening > 0
                return exiting
        missed = now > self._end
        if not missed or (layer != self._first and not self._waits):  # otherwise no margin could have prevented it
            self._estimator.observe(missed)
        return np.ones_like(exiting)

    def _see(self, seconds: float) -> None:
        """Records the time per layer of the last segment; the embeddings count to the first. The time of a segment that
        waited for its file predicts no other, and is used only where there is none."""
        if not (self._slowest and self._waits):
            self._slowest = max(self._slowest, seconds)
