"""Energy per query, on a machine with a power sensor."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from berxit import devices
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Progress, show_note, silent
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tokenization import Text


@dataclass(frozen=True)
class Energy:
    """Energy of one operating point, while its queries run one after another without a pause."""

    millijoules: float
    """Per query: power multiplied by the time, idle power included. Sum over the sensors."""
    watts: float
    """Mean power."""
    queries: int
    seconds: float
    samples: int
    """Number of readings of the power sensor."""
    sensors: dict[str, float] = field(default_factory=dict)
    """Sensor -> its part of ``millijoules``. Empty in the results of an older version: the sensor of the module."""


def measure_energy(
    runner: EarlyExitRunner,
    inputs: Sequence[Text],
    policies: Mapping[str, ExitPolicy],
    *,
    seconds: float,
    progress: Progress = silent,
) -> dict[str, Energy]:
    """Energy per query under each policy. Empty if the machine has no power sensor.

    Each policy runs alone for ``seconds`` or one pass over the inputs, whichever is longer, because the sensor averages
    over many queries. A quarter of this time runs before it and is not counted.
    """
    found: dict[str, Energy] = {}
    sensors = devices.power_sensors()
    if not sensors:
        return found
    with progress(len(policies)) as bar:
        show_note(bar, "energy")
        for name, policy in policies.items():
            _run_for(runner, inputs, policy, seconds / 4)
            with devices.Sampler(sensors) as sampler:
                queries = _run_for(runner, inputs, policy, seconds)
            powers = {name: sampled for name, sampled in sampler.results().items() if sampled is not None}
            if powers:
                parts = {key: 1e3 * power.mean * sampler.seconds / queries for key, power in powers.items()}
                found[name] = Energy(
                    sum(parts.values()),
                    sum(power.mean for power in powers.values()),
                    queries,
                    sampler.seconds,
                    min(power.samples for power in powers.values()),
                    parts,
                )
            bar.update(1)
    return found


def _run_for(runner: EarlyExitRunner, inputs: Sequence[Text], policy: ExitPolicy, seconds: float) -> int:
    """Runs whole passes over the inputs until ``seconds`` have passed; returns the number of queries."""
    start, queries = time.perf_counter(), 0
    while not queries or time.perf_counter() - start < seconds:
        for text in inputs:
            runner.answer([text], policy)
        queries += len(inputs)
    return queries
