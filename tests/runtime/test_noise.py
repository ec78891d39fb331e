from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest

from berxit import devices
from berxit.runtime.measurement import Latency, Line, Measured
from berxit.runtime.noise import DRIFT, OTHERS, R_SQUARED, TAIL, CpuMeter, Noise, bench_problems

QUIET = Noise(repeats=200, tail=1.1, drift=1.05, others=0.1, cpus=2, threads=2)


def at_depth(layers: float, milliseconds: float) -> Measured:
    return Measured(Latency(*(milliseconds,) * 4), layers, (), 1, None)


def noise_of(*works: object) -> Noise:
    return Noise.of(works, CpuMeter(), 1)  # type: ignore[arg-type]


def test_noise_of_constant_latencies_is_minimal() -> None:
    noise = noise_of([5.0] * 20, [9.0] * 20)  # the difference between two kinds of work is not noise
    assert (noise.repeats, noise.tail, noise.drift) == (40, 1, 1)


def test_noise_tail_is_p90_over_median() -> None:
    noise = noise_of([1.0] * 40 + [4.0] * 5 + [1.0] * 40 + [4.0] * 5)
    assert noise.tail == pytest.approx(4, rel=0.3)


def test_noise_drift_is_separate_from_tail() -> None:
    throttled = noise_of(np.linspace(1, 2, 100))
    assert throttled.drift > 1.5
    spread = noise_of([1.0, 2.0] * 50)
    assert spread.drift == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"tail": TAIL + 0.1}, "the 90th percentile of the same work is 1.60 times its median"),
        ({"drift": DRIFT + 0.1}, "the median drifted by a factor of 1.35"),
        ({"others": OTHERS + 0.1}, "other processes used 0.4 of 2 CPUs while 2 threads were measured"),
        ({"others": 1.2, "threads": 1}, None),  # the second CPU was idle
        ({"others": 1.4, "threads": 1}, "other processes used 1.4 of 2 CPUs while 1 threads were measured"),
        ({"others": None}, None),
        ({"repeats": 3}, "only 3 repeats"),
    ],
)
def test_noise_problems_names_exceeded_limits(change: dict[str, float], problem: str | None) -> None:
    found = replace(QUIET, **change).problems()  # type: ignore[arg-type]
    assert (problem is None) == (not found)
    assert problem is None or problem in found[0]


def test_bench_problems_covers_line_and_missing_noise() -> None:
    assert bench_problems(QUIET, Line(1, 1, R_SQUARED)) == bench_problems(QUIET, None) == []
    assert "R^2 of the line is 0.9500" in bench_problems(QUIET, Line(1, 1, 0.95))[0]
    assert "not measured" in bench_problems(None, None)[0]


def test_line_needs_two_distinct_depths() -> None:
    assert Line.through([at_depth(6, 2.0)]) is None
    assert Line.through([at_depth(6, 2.0), at_depth(6, 2.2), at_depth(6.0, 1.9)]) is None
    line = Line.through([at_depth(1, 2.0), at_depth(2, 3.0)])
    assert line is not None
    assert (line.intercept_ms, line.ms_per_layer) == (pytest.approx(1), pytest.approx(1))


def compute() -> None:
    while True:
        sum(range(1000))


@pytest.mark.skipif(devices.cpu_seconds_of_others() is None, reason="this system does not tell what others use")
def test_cpu_meter_counts_other_processes_only() -> None:
    meter = CpuMeter()
    assert meter.others() is None  # within the first half second
    other = multiprocessing.get_context("spawn").Process(target=compute, daemon=True)
    other.start()
    try:
        meter = CpuMeter()
        for _ in range(40):
            sum(range(1_000_000))
        used = meter.others()
        while used is None:
            used = meter.others()
    finally:
        other.terminate()
    assert 0.1 < used <= devices.all_cpus() + 0.2
