"""Answers in time: a policy that also stops when the next layer might end too late."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError
from berxit.runtime.policies import Bools, Certainty, ExitPolicy, Floats, Memory

REMEMBERED = 400
"""Layers of which a runner remembers how they compared with those before them."""
EXCEEDED = 2
"""So many of them took longer, for the rest, than what is now expected: 0.5%."""
UNKNOWN = 1.25
"""What is expected until a runner has seen some."""
RESERVE_S = 1e-4
"""For what comes after the last layer: an answer of its logits."""


class Pace:
    """How much longer than the slowest layer before it in the same call a layer may take.

    Layers do the same work on the same input, so that a call's own layers tell best what the next will take, here and
    now, at any length; what they cannot tell is how rarely and how far one falls behind. That is learned from the calls
    under a deadline of one runner, of which the last REMEMBERED layers count. Several threads may share one.
    """

    def __init__(self) -> None:
        self._ratios = np.ones(REMEMBERED)
        self._ratios[:EXCEEDED] = UNKNOWN
        self._next = EXCEEDED

    @property
    def margin(self) -> float:
        """A layer's time / the slowest one's before it: not exceeded but by 0.5% of those remembered, 1 at least."""
        return max(1.0, float(np.partition(self._ratios, -EXCEEDED)[-EXCEEDED]))

    def remember(self, ratio: float) -> None:
        self._ratios[self._next % REMEMBERED] = ratio  # between threads one may be lost
        self._next += 1


def end_of(milliseconds: float, start: float) -> float:
    """When a call that started at ``start``, in seconds, must be done. Raises InputError unless that is later."""
    if not milliseconds > 0:
        raise InputError(f"deadline_ms is {milliseconds}: it must be above 0")
    return start + milliseconds / 1e3


class Deadline:
    """``policy`` until ``end``: it also stops where the next exit is expected after that. The first exit is reached in
    any case.

    ``exits``: the layers that have one. ``pace``: what the runner has learned. ``opening``: the seconds that an input
    would wait for a layer's file; by default none. ``end`` and ``clock`` are in seconds.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        exits: Sequence[int],
        end: float,
        pace: Pace,
        opening: Callable[[int], float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.policy = policy
        self.temperatures = policy.temperatures
        self._end = end
        self._pace = pace
        self._margin = pace.margin
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
        leave = self.policy.exits(layer, certainty)
        if leave.all() or layer not in self._following:
            return leave
        following = self._following[layer]
        opening = self._opening(following)
        if now + opening + self._margin * self._slowest * self._gaps[following] > self._end:
            if layer == self._first:  # or a slow moment is remembered for ever, where nothing goes on after it
                self._pace.remember(1.0)
            return np.ones_like(leave)
        self._waits = opening > 0
        return leave

    def _see(self, seconds: float) -> None:
        """What a layer of the last segment took; the embeddings are counted to the first. Where it waited for its file
        that tells nothing of the next, and is taken for lack of better only."""
        if self._slowest and not self._waits:
            self._pace.remember(seconds / self._slowest)
        if not (self._slowest and self._waits):
            self._slowest = max(self._slowest, seconds)
