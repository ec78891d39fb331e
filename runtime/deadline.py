"""Answers in time: a policy that also stops when the next layer might end too late."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.policies import Bools, Certainty, ExitPolicy, Floats, Memory

MARGIN = 1.25
"""The next layer is expected to take up to this times the slowest one so far. Layers do the same work on the same
input, so a call's own layers tell better than any stored table what the next will take, here and now. A segment of
several layers takes as many times one."""


class Deadline:
    """``policy``, for one call, until ``milliseconds`` after ``start``. The first exit is reached in any case.

    ``exits``: the layers that have one. ``start`` and ``clock`` are in seconds. Raises InputError unless milliseconds
    is a number above 0.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        exits: Sequence[int],
        milliseconds: float,
        start: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not milliseconds > 0:
            raise InputError(f"deadline_ms is {milliseconds}: it must be above 0")
        self.policy = policy
        self.temperatures = policy.temperatures
        self._end = start + milliseconds / 1e3
        self._clock = clock
        self._last = clock()
        self._slowest = 0.0
        self._gaps = dict(zip(exits, np.diff([0, *exits]).tolist(), strict=True))
        """Exit layer -> layers since the exit before."""
        self._next = {layer: self._gaps[after] for layer, after in pairwise(exits)}

    def certainty(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        return self.policy.certainty(layer, logits, lte, memory)

    def exits(self, layer: int, certainty: npt.NDArray) -> Bools:
        now = self._clock()
        self._slowest = max(self._slowest, (now - self._last) / self._gaps[layer])
        self._last = now
        if now + MARGIN * self._slowest * self._next.get(layer, 0) > self._end:
            return np.ones(certainty.shape, dtype=bool)
        return self.policy.exits(layer, certainty)
