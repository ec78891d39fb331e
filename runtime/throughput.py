"""Throughput of batches: inputs per second."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Progress, show_note, silent
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tokenization import Text

BATCH_SIZES = (8, 32)
BATCHES = 3
"""Smallest number of measured batches per size and operating point."""


@dataclass(frozen=True)
class Throughput:
    """Throughput of one operating point at one batch size, one batch after another."""

    point: str
    """Name of the operating point."""
    batch_size: int
    inputs_per_second: float
    batches: int


def measure_throughput(
    runner: EarlyExitRunner,
    inputs: Sequence[Text],
    policies: Mapping[str, ExitPolicy],
    *,
    seconds: float,
    progress: Progress = silent,
    seed: int = 0,
) -> tuple[Throughput, ...]:
    """Throughput of every policy at every batch size, on batches of ``inputs`` in random order.

    Each batch runs under every policy, in a shuffled order, so that a slow phase of the machine affects all of them.
    It takes about ``seconds``, at least BATCHES batches each. The first batch of a size is not counted.
    """
    order = random.Random(seed)
    found = []
    with progress(len(BATCH_SIZES)) as bar:
        show_note(bar, "throughput")
        for size in BATCH_SIZES:
            taken = dict.fromkeys(policies, 0.0)
            batches = -1  # the first one is the warm-up
            end = time.perf_counter() + seconds / len(BATCH_SIZES)
            while batches < BATCHES or time.perf_counter() < end:
                batch = order.choices(inputs, k=size)
                for name in order.sample(list(policies), len(policies)):
                    start = time.perf_counter()
                    runner.answer(batch, policies[name])
                    taken[name] += time.perf_counter() - start if batches >= 0 else 0.0
                batches += 1
            found += [Throughput(name, size, size * batches / taken[name], batches) for name in policies]
            bar.update(1)
    return tuple(found)
