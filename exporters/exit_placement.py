"""Exits where they pay: an exit costs every input that gets there, and spares layers to those that leave."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.errors import InputError
from runtime.loop import Backend, exit_loop
from runtime.policies import ExitPolicy
from runtime.progress import Progress
from runtime.tokenization import TokenBatch

SECONDS = 2.0
"""How long costs are measured, at least."""


@dataclass(frozen=True)
class Costs:
    """Of one input on this machine."""

    layer_ms: float
    exit_ms: float
    """Head, decision, and that a segment ends there."""


@dataclass(frozen=True)
class Placement:
    """Which exits are worth having."""

    exits: tuple[int, ...]
    costs: Costs
    milliseconds: float
    """What an average input is expected to take with them, embeddings and tokenisation aside."""
    all_milliseconds: float
    """The same with an exit after every layer."""

    def __str__(self) -> str:
        return (
            f"exits after layers {', '.join(map(str, self.exits))}: here a layer takes {self.costs.layer_ms:.3f} ms and"
            f" an exit {self.costs.exit_ms:.3f} ms; expected {self.milliseconds:.2f} ms per input instead of"
            f" {self.all_milliseconds:.2f} with all exits"
        )


def checked_exits(asked: Sequence[int] | str, layers: int) -> tuple[int, ...]:
    """In order, the last layer added. Raises InputError for what is no layer."""
    if isinstance(asked, str) or not all(1 <= layer <= layers for layer in asked):
        raise InputError(f"--exits {asked}: give layers from 1 to {layers} with commas between, or auto")
    return tuple(sorted({*asked, layers}))


def place_exits(histogram: Sequence[int], costs: Costs) -> Placement:
    """The exits under which an average input takes the least time.

    ``histogram``: how many inputs leave after each of the n layers while all have an exit. An input whose exit is gone
    leaves at the next one. By dynamic programming over the last exit so far: a segment from layer a to layer b costs
    (b - a) layers and one exit to all inputs that got past a.
    """
    n = len(histogram)
    past = 1 - np.cumsum([0, *histogram]) / sum(histogram)
    best, before = [0.0], [0]
    for b in range(1, n + 1):
        found = [best[a] + past[a] * ((b - a) * costs.layer_ms + costs.exit_ms) for a in range(b)]
        before.append(int(np.argmin(found)))
        best.append(float(min(found)))
    exits = [n]
    while before[exits[0]]:
        exits.insert(0, before[exits[0]])
    with_all = float(past[:n].sum() * (costs.layer_ms + costs.exit_ms))
    return Placement(tuple(exits), costs, best[n], with_all)


def measure_costs(every: Backend, last: Backend, inputs: Sequence[TokenBatch], progress: Progress) -> Costs:
    """Times a bundle with all n exits and one with the last alone, in turns, input by input.

    Both run n layers; one also has n - 1 exits more. The embeddings are timed on their own and taken off.
    """
    n = every.layers
    policy = ExitPolicy.full_depth(n).at_depth(n)

    def seconds(backend: Backend | None, batch: TokenBatch) -> float:
        start = time.perf_counter()
        if backend is None:
            last.embed(batch)
        else:
            for _ in exit_loop(backend, batch, policy):
                pass
        return time.perf_counter() - start

    rounds: list[list[float]] = []
    with progress(100) as bar:
        shown, start = 0, time.perf_counter()
        while len(rounds) < 3 * len(inputs) or time.perf_counter() - start < SECONDS:
            batch = inputs[len(rounds) % len(inputs)]
            rounds.append([seconds(backend, batch) for backend in (every, last, None)])
            now = min(100, int(100 * (time.perf_counter() - start) / SECONDS))
            bar.update(now - shown)
            shown = now
    times = 1e3 * np.array(rounds[len(inputs) :])  # the first visit to an input warms up
    all_exits, one_exit, embeddings = times.T
    exit_ms = max(0.0, float(np.median(all_exits - one_exit)) / max(1, n - 1))
    return Costs(max(1e-6, float(np.median(one_exit - embeddings) - exit_ms) / n), exit_ms)
