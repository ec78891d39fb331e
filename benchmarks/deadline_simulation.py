"""Simulation of the deadline estimator on recorded latencies: share of missed deadlines, and exit layers.

    python benchmarks/deadline_simulation.py record BUNDLE --output benchmarks/recorded_latencies.json
    python benchmarks/deadline_simulation.py simulate [benchmarks/recorded_latencies.json]

``record`` stores the microseconds of every layer of every call under four conditions: no further load (quiet), one busy
process per core (loaded), the process stopped at random moments (stalls), and half of the cores, shared with a busy
process, for the second half of the calls (throttled). ``simulate`` replays the calls on a simulated clock under a
full-depth policy, so that only the deadline causes early exits. Its result depends only on the recording and the
estimator.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from berxit import devices
from berxit.runtime import EarlyExitRunner
from berxit.runtime.console import debug_option, run
from berxit.runtime.deadline import MISS_PROBABILITY, Deadline, StepEstimator
from berxit.runtime.golden import read_golden
from berxit.runtime.loop import exit_loop
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.tables import markdown_table

RECORDED = Path(__file__).with_name("recorded_latencies.json")
FACTORS = (0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0, 8.0)
"""Deadlines, as multiples of the median latency at full depth."""
CONDITIONS = ("quiet", "loaded", "stalls", "throttled")
BUSY = [sys.executable, "-c", "while True: pass"]


@dataclass(frozen=True)
class Replay:
    """Results of the calls of one recording with one deadline."""

    exits: npt.NDArray[np.int64]
    """(N,) exit layer of each call."""
    late: npt.NDArray[np.bool_]
    """(N,) True if the call ended after its deadline although its first exit was in time."""
    deepest: npt.NDArray[np.int64]
    """(N,) deepest exit layer in time; 1 if none is in time."""

    @property
    def needless(self) -> npt.NDArray[np.bool_]:
        """(N,) True if the deadline caused an early exit although the last layer would have been in time."""
        return (self.deepest == self.deepest.max(initial=1)) & (self.exits < self.deepest)


def replay(layers_s: npt.NDArray[np.float64], deadline_s: float, estimator: StepEstimator | None = None) -> Replay:
    """Replays calls in order with one estimator; layers_s (N, n): seconds of each layer of each call."""
    estimator = estimator or StepEstimator()
    n = layers_s.shape[1]
    never_certain = ExitPolicy.uniform("confidence", 1.0, n)
    exits = np.array([_stop(never_certain, row, deadline_s, estimator) for row in layers_s])
    ends = np.cumsum(layers_s, axis=1)
    late = (ends[np.arange(len(ends)), exits - 1] > deadline_s) & (ends[:, 0] <= deadline_s)
    return Replay(exits, late, np.maximum(1, (ends <= deadline_s).sum(axis=1)))


def _stop(policy: ExitPolicy, layers_s: npt.NDArray[np.float64], deadline_s: float, estimator: StepEstimator) -> int:
    layers = range(1, len(layers_s) + 1)
    clock = iter(np.cumsum([0.0, *layers_s]).tolist())
    deadline = Deadline(policy, layers, deadline_s, estimator, clock=clock.__next__)
    uncertain = np.zeros(1)
    return next(layer for layer in layers if deadline.exits(layer, uncertain).all())


def read_recording(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Condition -> (N, n) seconds per call and layer."""
    recorded = json.loads(path.read_text(encoding="utf-8"))["microseconds"]
    return {condition: np.array(calls) / 1e6 for condition, calls in recorded.items()}


@click.group()
def command() -> None:
    """Record latencies, and simulate deadlines on them."""


@command.command()
@click.argument("recording", type=click.Path(path_type=Path, exists=True), default=RECORDED)
@click.option("--miss-probability", default=MISS_PROBABILITY, show_default=True, type=float)
@debug_option
def simulate(recording: Path, miss_probability: float) -> None:
    """Replay RECORDING with deadlines of 0.3 to 8 times the median latency at full depth."""
    rows = []
    for condition, layers_s in read_recording(recording).items():
        median = float(np.median(layers_s.sum(axis=1)))
        for factor in FACTORS:
            result = replay(layers_s, factor * median, StepEstimator(miss_probability))
            rows.append(
                [
                    condition,
                    f"{factor:g}",
                    f"{1e3 * factor * median:.1f}",
                    f"{result.late.mean():.2%}",
                    f"{result.exits.mean():.2f}",
                    f"{result.deepest.mean():.2f}",
                    f"{result.needless.mean():.2%}",
                ]
            )
    columns = [
        "condition",
        "medians",
        "deadline ms",
        "missed",
        "average exit layer",
        "deepest in time",
        "needless exits",
    ]
    click.echo(markdown_table(columns, rows))


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", help="Backend that runs the segments.  [default: the first installed]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--calls", default=240, show_default=True, type=click.IntRange(min=1), help="Calls per condition.")
@click.option("--output", default=RECORDED, type=click.Path(path_type=Path), help="JSON file to write.")
@debug_option
def record(bundle: Path, backend: str | None, threads: int | None, calls: int, output: Path) -> None:
    """Record the time of every layer on BUNDLE's golden inputs."""
    runner = EarlyExitRunner.load(bundle, backend=backend, threads=threads)
    model = runner.manifest.model
    inputs = [[text] for text in read_golden(bundle, runner.manifest).inputs]
    batches = [runner.tokenizer(text) for text in inputs]
    policy = runner.policy.at_depth(runner.backend.layers)

    def call(place: int) -> list[int]:
        times = [time.perf_counter()]
        for _ in exit_loop(runner.backend, batches[place % len(batches)], policy):
            times.append(time.perf_counter())
        return [round(1e6 * seconds) for seconds in np.diff(times)]

    for place in range(len(batches)):
        call(place)
    found: dict[str, list[list[int]]] = {}
    load: dict[str, float] = {}
    for condition in CONDITIONS:
        load[condition] = os.getloadavg()[0]
        with _under(condition):
            found[condition] = [call(place) for place in range(calls // 2)]
            with _fewer_cores() if condition == "throttled" else _under("quiet"):
                found[condition] += [call(place) for place in range(calls // 2, calls)]
        click.echo(f"{condition}: median {np.median(np.sum(found[condition], axis=1)) / 1e3:.1f} ms at full depth")
    conditions = {
        "backend": runner.backend.name,
        "threads": runner.backend.threads,
        "model": f"{model.family}, {model.layers} layers, d={model.hidden_size}",
        "machine": str(devices.this_machine()),
        "load_average_before": load,
        "microseconds": found,
    }
    lines = json.dumps(conditions).replace("]], ", "]],\n").replace("], [", "],\n[")
    output.write_text(lines + "\n", encoding="utf-8")
    click.echo(f"written: {output}")


@contextmanager
def _under(condition: str) -> Iterator[None]:
    """Context manager that creates the conditions of a recording: busy processes or stalls of this process."""
    commands: Sequence[list[str]] = ()
    if condition == "loaded":
        commands = [BUSY] * (os.cpu_count() or 1)
    elif condition == "stalls":
        commands = [[sys.executable, __file__, "stall", str(os.getpid())]]
    helpers = [subprocess.Popen(each) for each in commands]
    try:
        time.sleep(0.5 if helpers else 0)
        yield
    finally:
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            helper.wait()
        if condition == "stalls":
            os.kill(os.getpid(), signal.SIGCONT)


@contextmanager
def _fewer_cores() -> Iterator[None]:
    """Context manager that restricts all threads of this process to half of its cores, shared with a busy process."""
    cores = sorted(os.sched_getaffinity(0))
    threads = [int(thread.name) for thread in Path("/proc/self/task").iterdir()]
    half = cores[: max(1, len(cores) // 2)]
    for thread in threads:
        os.sched_setaffinity(thread, half)
    busy = subprocess.Popen(BUSY)
    try:
        yield
    finally:
        busy.terminate()
        busy.wait()
        for thread in threads:
            os.sched_setaffinity(thread, cores)


@command.command(hidden=True)
@click.argument("process", type=int)
def stall(process: int) -> None:
    """Suspend PROCESS for 20 to 200 ms about once per second."""
    order = random.Random(0)
    while True:
        time.sleep(order.expovariate(1.0))
        os.kill(process, signal.SIGSTOP)
        try:
            time.sleep(order.uniform(0.02, 0.2))
        finally:
            os.kill(process, signal.SIGCONT)


if __name__ == "__main__":
    run(command)
