"""Latency measurement and its statistics.

The measured interval runs from the text to the prediction. It includes tokenization, segments, exit decisions and
scores. Queries run one at a time. All operating points run on each input in a shuffled order, so that a slow phase of
the machine affects all of them equally. Warm-up queries run first and are not counted.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from berxit.runtime.noise import CpuMeter, Noise
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, exit_layers
from berxit.runtime.prediction import Prediction
from berxit.runtime.progress import Bar, Progress, show_note, silent
from berxit.runtime.queries import Queries
from berxit.runtime.recalibration import every_output
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tokenization import Text

PROBE = 20
"""Number of inputs that run before the measurement, to estimate its duration."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds per query."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, milliseconds: npt.NDArray) -> Latency:
        p50, p90, p99 = np.percentile(milliseconds, [50, 90, 99])
        return cls(float(milliseconds.mean()), float(p50), float(p90), float(p99))


@dataclass(frozen=True)
class Measured:
    """Measurements of one operating point over all queries."""

    latency: Latency
    average_exit_layer: float
    histogram: tuple[int, ...]
    """(n,) number of queries that exit at each layer."""
    queries: int
    score: float | None
    """Metric of the task; None without labels."""


@dataclass(frozen=True)
class Minimum:
    """Minimum size of an operating point's measurement."""

    queries: int
    seconds: float
    """Sum of the latencies."""

    def rounds(self, answers: Sequence[Prediction], inputs: int) -> int:
        """Expected number of further rounds over ``inputs`` inputs; 0 if these queries are enough."""
        spent = sum(each.latency_ms for each in answers) / 1e3
        missing = max(self.queries - len(answers), math.ceil((self.seconds - spent) * len(answers) / spent))
        return max(0, -(-missing // inputs))


@dataclass(frozen=True)
class Line:
    """Least-squares line of the mean latency over the average exit layer."""

    intercept_ms: float
    """Latency before the first layer: tokenization and embeddings."""
    ms_per_layer: float
    r_squared: float

    @classmethod
    def through(cls, points: Sequence[Measured]) -> Line | None:
        """Line through ``points``; None if they have fewer than two distinct average exit layers."""
        layers = np.array([point.average_exit_layer for point in points])
        if np.ptp(layers) < 1e-6:
            return None
        means = np.array([point.latency.mean for point in points])
        slope, intercept = np.polyfit(layers, means, 1)
        spread = float(((means - means.mean()) ** 2).sum())
        residual = float(((means - intercept - slope * layers) ** 2).sum())
        return cls(float(intercept), float(slope), 1 - residual / spread if spread else 1.0)


@dataclass(frozen=True)
class Measurement:
    """Measurements of all operating points, by name."""

    points: dict[str, Measured]
    common: dict[str, Measured]
    """Over the rounds that all operating points ran, without scores."""
    queries: dict[str, Queries]
    noise: Noise


def stored_pass(runner: EarlyExitRunner, inputs: Sequence[Text]) -> tuple[npt.NDArray, npt.NDArray | None]:
    """Outputs of all E exits for each input, as ``every_output`` returns them."""
    return every_output(runner.backend, runner.tokenizer, inputs, runner.manifest.model.task_kind)


def spread_thresholds(
    policy: ExitPolicy, exits: Sequence[int], logits: npt.NDArray, lte: npt.NDArray | None, count: int
) -> list[float]:
    """Up to ``count`` thresholds with evenly spaced average exit layers, in ascending order of the average exit layer.

    logits (N, E, K) or (N, E, D, K), lte (N, E) or None: a stored pass over the E ``exits``.
    """
    if len(exits) == 1:
        return []
    policy = policy.at_exits(exits)
    if CRITERIA[policy.criterion].counts:
        return [float(k) for k in range(1, policy.layers)]
    certainty = certainties(policy, logits, lte)
    values = np.unique(certainty[:, :-1].astype(np.float64))
    middles = [(low + high) / 2 for low, high in pairwise(values)]
    if not middles:
        return []  # all certainties are equal, so that no threshold separates them
    candidates = np.array(middles)[np.linspace(0, len(middles) - 1, min(len(middles), 400)).astype(int)]
    if not CRITERIA[policy.criterion].higher_is_more_certain:
        candidates = candidates[::-1]
    layers = np.array(exits)
    averages = np.array([layers[exit_layers(policy.with_threshold(t), certainty) - 1].mean() for t in candidates])
    wanted = np.linspace(exits[0], exits[-1], count + 2)[1:-1]
    return [float(candidates[i]) for i in sorted({int(np.abs(averages - want).argmin()) for want in wanted})]


def measure(
    runner: EarlyExitRunner,
    inputs: Sequence[Text],
    policies: Mapping[str, ExitPolicy],
    *,
    rounds: int,
    warmup: int,
    minima: Mapping[str, Minimum] = MappingProxyType({}),
    others: Mapping[str, EarlyExitRunner] = MappingProxyType({}),
    score: Callable[[Sequence[Prediction]], float] | None = None,
    progress: Progress = silent,
    seed: int = 0,
) -> Measurement:
    """Measures every policy on every input, ``rounds`` times, one query at a time.

    ``minima``: name of a policy -> its minimum. After the rounds of all policies, further rounds of these policies run
    until all of them reach it, so that their queries alternate to the end.
    ``others``: name of a policy -> the runner that it runs on, instead of ``runner``.
    After each input, the first input is repeated at full depth; the spread of these latencies is the noise.
    ``score``: computes the metric of the task from the predictions of the first round, in the order of ``inputs``.
    ``progress``: of the rounds of all policies, then of the further rounds; its steps are queries.
    """
    order = random.Random(seed)
    full_depth = runner.policy.at_depth(runner.backend.layers)
    for i in range(warmup):
        for each in (runner, *others.values()):
            each.answer([inputs[i % len(inputs)]], full_depth)
    repeated: list[float] = []
    meter = CpuMeter()
    found: dict[str, list[Prediction]] = {name: [] for name in policies}

    def run_round(names: Sequence[str], bar: Bar) -> None:
        for text in inputs:
            for name in order.sample(names, len(names)):
                found[name].append(others.get(name, runner).answer([text], policies[name])[0])
            repeated.append(runner.answer([inputs[0]], full_depth)[0].latency_ms)
            bar.update(len(names))

    with progress(rounds * len(inputs) * len(policies)) as bar:
        for _ in range(rounds):
            run_round(list(policies), bar)
    if further := max((minimum.rounds(found[name], len(inputs)) for name, minimum in minima.items()), default=0):
        with progress(further * len(inputs) * len(minima)) as bar:
            show_note(bar, f"further rounds of {', '.join(minima)}")
            while any(minimum.rounds(found[name], len(inputs)) for name, minimum in minima.items()):
                run_round(list(minima), bar)
    noise = Noise.of([repeated], meter, runner.backend.threads)
    layers = runner.backend.layers
    return Measurement(
        {name: _summary(answers, len(inputs), layers, score) for name, answers in found.items()},
        {name: _summary(answers[: rounds * len(inputs)], len(inputs), layers, None) for name, answers in found.items()},
        {name: Queries.of(answers, len(inputs)) for name, answers in found.items()},
        noise,
    )


def rounds_for(runner: EarlyExitRunner, inputs: Sequence[Text], policies: int, *, queries: int, seconds: float) -> int:
    """Number of rounds in which each policy runs at least ``queries`` queries, and all take about ``seconds``."""
    probe = inputs[: min(len(inputs), PROBE)]
    start = time.perf_counter()
    for text in probe:
        runner.answer([text], runner.policy.at_depth(runner.backend.layers))
    round_seconds = (time.perf_counter() - start) / len(probe) * len(inputs) * policies / 2
    return max(1, -(-queries // len(inputs)), round(seconds / round_seconds))


def _summary(
    answers: list[Prediction], inputs: int, layers: int, score: Callable[[Sequence[Prediction]], float] | None
) -> Measured:
    exits = np.array([answer.exit_layer for answer in answers])
    return Measured(
        Latency.of(np.array([answer.latency_ms for answer in answers])),
        float(exits.mean()),
        tuple(int(count) for count in np.bincount(exits - 1, minlength=layers)),
        len(answers),
        None if score is None else score(answers[:inputs]),
    )
