"""Answers in time: a policy that also stops when the next layer might end too late."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.policies import Bools, Certainty, ExitPolicy, Floats, Memory

MARGIN = 1.25
"""The next layer is expected to take up to this times the slowest one so far. Layers do the same work on the same
input, so a call's own layers tell better than any stored table what the next will take, here and now."""


class Deadline:
    """``policy``, for one call, until ``milliseconds`` after ``start``. The first layer always runs and can answer.

    ``start`` and ``clock`` are in seconds. Raises InputError unless milliseconds is a number above 0.
    """

    def __init__(
        self,
        policy: ExitPolicy,
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

    def certainty(self, layer: int, logits: Floats, lte: Floats | None, memory: Memory | None) -> Certainty:
        return self.policy.certainty(layer, logits, lte, memory)

    def exits(self, layer: int, certainty: npt.NDArray) -> Bools:
        now = self._clock()
        self._slowest = max(self._slowest, now - self._last)
        self._last = now
        if now + MARGIN * self._slowest > self._end:
            return np.ones(certainty.shape, dtype=bool)
        return self.policy.exits(layer, certainty)
