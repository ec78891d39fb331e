"""Exits where they pay: an exit costs every input that gets there, and spares layers to those that leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from berxit.runtime.errors import InputError, NoisyError
from berxit.runtime.loop import Backend, exit_loop, run_embeddings
from berxit.runtime.noise import QUIET, CpuMeter, Noise, noisy
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Progress
from berxit.runtime.tokenization import TokenBatch

SECONDS = 2.0
"""How long costs are measured, at least."""
ATTEMPTS = 3
"""Measurements on a busy machine, before ``--exits auto`` refuses to choose by them."""


@dataclass(frozen=True)
class Costs:
    """Of one input on this machine."""

    layer_ms: float
    exit_ms: float
    """Head, decision, and that a segment ends there."""
    noise: Noise | None = None
    """Of the measurement; None for costs that are given."""

    def milliseconds(self, exits: Sequence[int], histogram: Sequence[int]) -> float:
        """What an average input is expected to take, embeddings and tokenisation aside, when ``histogram`` (n,) says
        how many leave after each layer, which are among ``exits``."""
        layers = np.arange(1, len(histogram) + 1)
        passed = np.searchsorted(exits, layers, side="right")
        return float(np.asarray(histogram) @ (layers * self.layer_ms + passed * self.exit_ms) / sum(histogram))


@dataclass(frozen=True)
class Placement:
    """Which exits are worth having, and what an average input is expected to take with them."""

    exits: tuple[int, ...]
    costs: Costs
    expected_ms: float
    all_exits_ms: float
    """The same with an exit after every layer, and the threshold that goes with them."""

    def under(self, histogram: Sequence[int]) -> Placement:
        """The same exits where so many leave after each of the model's layers."""
        return replace(self, expected_ms=self.costs.milliseconds(self.exits, histogram))

    def _noise(self) -> str:
        if self.costs.noise is None:
            return ""
        problems = self.costs.noise.problems()
        return f" (warning: {noisy('accepted', problems)})" if problems else f" ({self.costs.noise})"

    def __str__(self) -> str:
        return (
            f"exits after layers {', '.join(map(str, self.exits))}: here a layer takes {self.costs.layer_ms:.3f} ms and"
            f" an exit {self.costs.exit_ms:.3f} ms; expected {self.expected_ms:.2f} ms per input instead of"
            f" {self.all_exits_ms:.2f} with all exits{self._noise()}"
        )


def checked_exits(asked: Sequence[int] | str, layers: int) -> tuple[int, ...]:
    """In order, the last layer added. Raises InputError for what is no layer."""
    if isinstance(asked, str) or not all(1 <= layer <= layers for layer in asked):
        raise InputError(f"--exits {asked}: give layers from 1 to {layers} with commas between, or auto")
    return tuple(sorted({*asked, layers}))


Histogram = Callable[[tuple[int, ...]], Sequence[int]]
"""Exits -> (n,) how many inputs leave after each layer, under the threshold that is chosen for these exits."""


def place_exits(layers: int, histogram: Histogram, costs: Costs) -> Placement:
    """The exits under which an average input takes the least time, each choice with its own threshold.

    Where the threshold stays, ``cheapest_at`` finds them; but fewer exits get another threshold, so that is only where
    the search starts, beside all exits: it adds or drops one exit at a time for as long as that pays.
    """
    known: dict[tuple[int, ...], float] = {}

    def cost(exits: tuple[int, ...]) -> float:
        if exits not in known:
            known[exits] = costs.milliseconds(exits, histogram(exits))
        return known[exits]

    def neighbours(exits: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [tuple(sorted({*exits} ^ {layer, layers} | {layers})) for layer in range(1, layers)]

    every = tuple(range(1, layers + 1))
    best = min((every, cheapest_at(histogram(every), costs)), key=cost)
    while (nearby := min(neighbours(best), key=cost, default=best)) != best and cost(nearby) < cost(best):
        best = nearby
    return Placement(best, costs, cost(best), cost(every))


def cheapest_at(histogram: Sequence[int], costs: Costs) -> tuple[int, ...]:
    """The exits under which an average input takes the least time at one and the same threshold.

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
    return tuple(exits)


def measure_costs(every: Backend, last: Backend, inputs: Sequence[TokenBatch], progress: Progress) -> Costs:
    """Times a bundle with all n exits and one with the last alone, in turns, input by input.

    Both run n layers; one also has n - 1 exits more. The embeddings are timed on their own and taken off.
    """
    n = every.layers
    policy = ExitPolicy.full_depth(n).at_depth(n)

    def seconds(backend: Backend | None, batch: TokenBatch) -> float:
        start = time.perf_counter()
        if backend is None:
            run_embeddings(last, batch)
        else:
            for _ in exit_loop(backend, batch, policy):
                pass
        return time.perf_counter() - start

    rounds: list[list[float]] = []
    meter = CpuMeter()
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
    repeats = [times[place :: len(inputs), way] for place in range(len(inputs)) for way in range(2)]
    noise = Noise.of([work for work in repeats if len(work)], meter, every.threads)
    return Costs(max(1e-6, float(np.median(one_exit - embeddings) - exit_ms) / n), exit_ms, noise)


def quiet_costs(
    every: Backend, last: Backend, inputs: Sequence[TokenBatch], progress: Progress, *, accept_noise: bool
) -> Costs:
    """``measure_costs``, up to ATTEMPTS times until the machine is quiet.

    Raises NoisyError where it never is, unless ``accept_noise``.
    """
    for _ in range(ATTEMPTS):
        costs = measure_costs(every, last, inputs, progress)
        problems = costs.noise.problems() if costs.noise else []
        if accept_noise or not problems:
            return costs
    raise NoisyError(f"{noisy('--exits auto', problems)}, {ATTEMPTS} times. {QUIET}, or name the exits, as --exits 2,4")
