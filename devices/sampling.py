"""Samples of the sensors during a measurement."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from berxit.devices.sensors import SENSORS, Sensor, values_of

INTERVAL = 0.1
"""Seconds between two samples. ``python benchmarks/sampling_cost.py`` measures the time of a sample."""


@dataclass(frozen=True)
class Sampled:
    """One sensor during a measurement."""

    unit: str
    mean: float
    """Over time."""
    lowest: float
    highest: float
    samples: int
    channels: dict[str, float] = field(default_factory=dict)
    """Mean of each channel, for a sensor with named channels."""


class Sampler:
    """Samples sensors in a thread, from the start to the end of a ``with`` block.

    The first and the last sample are taken in the calling thread, so that there are at least two. ``interval``: seconds
    between two samples. ``root``: folder that contains /sys and /proc.
    """

    def __init__(
        self, sensors: Iterable[Sensor] = SENSORS, *, interval: float = INTERVAL, root: Path = Path("/")
    ) -> None:
        self._interval = interval
        self._channels = {sensor: sensor.channels(root) for sensor in sensors}
        self._times: list[float] = []
        self._samples: list[dict[Sensor, dict[str, float]]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sensor sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()

    @property
    def seconds(self) -> float:
        """Time between the first and the last sample."""
        return self._times[-1] - self._times[0]

    def results(self) -> dict[str, Sampled | None]:
        """Name of each sensor -> its samples; None for a sensor that the machine does not have."""
        return {sensor.name: self._of(sensor) for sensor in self._channels}

    def _of(self, sensor: Sensor) -> Sampled | None:
        taken = [(at, found[sensor]) for at, found in zip(self._times, self._samples, strict=True) if found[sensor]]
        if not taken:
            return None
        totals = [(at, sensor.combine(values)) for at, values in taken]
        numbers = [value for _, value in totals]
        names = [name for name in taken[0][1] if sensor.named and all(name in values for _, values in taken)]
        return Sampled(
            sensor.unit,
            _mean_over_time(totals),
            min(numbers),
            max(numbers),
            len(numbers),
            {name: _mean_over_time([(at, values[name]) for at, values in taken]) for name in names},
        )

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        found = {sensor: values_of(channels) for sensor, channels in self._channels.items()}
        self._times.append(time.perf_counter())
        self._samples.append(found)


def _mean_over_time(samples: list[tuple[float, float]]) -> float:
    """Mean of (time, value) pairs over time, by the trapezoidal rule."""
    seconds = samples[-1][0] - samples[0][0]
    if seconds <= 0:
        return fmean(value for _, value in samples)
    return sum((end - start) * (first + last) / 2 for (start, first), (end, last) in pairwise(samples)) / seconds
