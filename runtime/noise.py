"""Noise of a latency measurement: its statistics, their limits, and the check before a decision depends on it.

A busy or throttled machine does not slow every query by the same factor, so its latencies look plausible. Repeating the
same work detects it: the latencies spread and drift. A machine that is always busy slows every query alike; the CPU
time of other processes detects that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from berxit import devices

TAIL = 1.5
DRIFT = 1.25
OTHERS = 0.3
"""Limits of Noise.tail, of Noise.drift, and of the CPUs that other processes use although the measurement needs them.

``python benchmarks/noise.py``: 16 benches of a 3-layer model on two cores at a load average of 5 to 15 had a tail of
1.84 to 143, a drift of 1.08 to 1.84, and 1.6 to 1.95 CPUs used by other processes. The drift can be small on a machine
that is always busy, so all limits are needed. On a quiet machine, p90 / p50 is 1.4 to 1.6 over inputs of different
lengths (results/latency.md), and lower over repeats of the same input.
"""
R_SQUARED = 0.98
"""Minimum R^2 of a bench's line. Quiet benches reach 0.9966 to 0.9990 (results/), the 16 busy ones 0.02 to 0.98."""
REPEATS = 20
"""Minimum number of repeats of the same work."""
BLOCKS = 5
"""Number of consecutive parts of a measurement whose medians are compared."""


@dataclass(frozen=True)
class Noise:
    """Noise of one measurement, estimated from repeats of the same work."""

    repeats: int
    tail: float
    """90th percentile divided by the median, over latencies of the same work."""
    drift: float
    """Largest median divided by the smallest, over five consecutive parts of the measurement."""
    others: float | None
    """Average number of CPUs that other processes used; None if the system does not report it."""
    cpus: int
    """Number of CPUs of the machine."""
    threads: int
    """Number of threads of the measured work."""

    @classmethod
    def of(cls, works: Sequence[npt.ArrayLike], meter: CpuMeter, threads: int) -> Noise:
        """Noise of the latencies in ``works``: one array per repeated work, in chronological order."""
        relative = [times / np.median(times) for times in map(np.asarray, works)]
        p50, p90 = np.percentile(np.concatenate(relative), [50, 90])
        parts = zip(*(np.array_split(times, BLOCKS) for times in relative), strict=True)
        medians = [float(np.median(np.concatenate(part))) for part in parts if sum(map(len, part))]
        others = meter.others()
        repeats = sum(map(len, relative))
        return cls(repeats, float(p90 / p50), max(medians) / min(medians), others, devices.all_cpus(), threads)

    def __str__(self) -> str:
        others = "" if self.others is None else f", other processes used {self.others:.1f} of {self.cpus} CPUs"
        return f"p90 / p50 of the same work {self.tail:.2f}, drift {self.drift:.2f}{others}"

    def problems(self) -> list[str]:
        """Reasons against basing a decision on the measurement; empty if it is quiet."""
        found = []
        if self.repeats < REPEATS:
            found.append(f"only {self.repeats} repeats of the same work were measured, at least {REPEATS} are needed")
        if self.tail > TAIL:
            found.append(
                f"the 90th percentile of the same work is {self.tail:.2f} times its median, at most {TAIL} is allowed"
            )
        if self.drift > DRIFT:
            found.append(f"the median drifted by a factor of {self.drift:.2f}, at most {DRIFT} is allowed")
        taken = 0.0 if self.others is None else self.others - max(0, self.cpus - self.threads)
        if taken > OTHERS:
            found.append(
                f"other processes used {self.others:.1f} of {self.cpus} CPUs while {self.threads} threads were measured"
            )
        return found


class CpuMeter:
    """Meter of the CPU time that other processes use; starts when it is created."""

    def __init__(self) -> None:
        self._start, self._before = time.perf_counter(), devices.cpu_seconds_of_others()

    def others(self) -> float | None:
        """Average number of CPUs that other processes used since the start.

        None if the system does not report it, or within the first half second, because the system counts in hundredths
        of a second.
        """
        seconds, now = time.perf_counter() - self._start, devices.cpu_seconds_of_others()
        if self._before is None or now is None or seconds < 0.5:
            return None
        return max(0.0, (now - self._before) / seconds)


QUIET = "Rerun when no other process is busy, or add --accept-noise"


def noisy(what: str, problems: Sequence[str]) -> str:
    """Start of an error message about a noisy measurement."""
    return f"{what}: noisy measurement: {'; '.join(problems)}"


class Fit(Protocol):
    """A fitted line, such as ``measurement.Line``."""

    @property
    def r_squared(self) -> float:
        """Coefficient of determination."""


def bench_problems(noise: Noise | None, line: Fit | None) -> list[str]:
    """Reasons against basing a decision on a bench; empty if it is quiet."""
    found = ["the noise was not measured (by an older version)"] if noise is None else noise.problems()
    if line is not None and line.r_squared < R_SQUARED:
        found.append(f"R^2 of the line is {line.r_squared:.4f}, at least {R_SQUARED} is expected")
    return found
