"""Deadline estimator on recorded and synthetic latencies, with a simulated clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from deadline_simulation import CONDITIONS, RECORDED, read_recording, replay

from berxit.runtime.deadline import FIRST_MARGIN, MISS_PROBABILITY, RATE, StepEstimator

ROOT = Path(__file__).resolve().parents[2]
Seconds = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def recording() -> dict[str, Seconds]:
    return read_recording(RECORDED)


def steady(calls: int, layers: int = 6, seed: int = 0) -> Seconds:
    """Layer times of about 1 ms, with a standard deviation of about 10%."""
    return 1e-3 * np.random.default_rng(seed).lognormal(0.0, 0.1, size=(calls, layers))


def stall(layers_s: Seconds, calls: range, layer: int, seconds: float) -> Seconds:
    stalled = layers_s.copy()
    stalled[calls, layer - 1] += seconds
    return stalled


@pytest.mark.parametrize("layer", [1, 2, 5, 6])
@pytest.mark.parametrize("layers", [6, 12])
@pytest.mark.parametrize("factor", [3.0, 4.0, 8.0])
def test_four_stalls_change_no_exit_from_20th_call_on(layer: int, layers: int, factor: float) -> None:
    calls = steady(300, layers)
    deadline_s = factor * float(np.median(calls.sum(axis=1)))
    result = replay(stall(calls, range(4), layer, 1.6 * deadline_s), deadline_s)
    assert (result.exits[19:] == layers).all()


@pytest.mark.parametrize("condition", ["quiet", "loaded", "throttled"])
def test_four_stalls_change_no_exit_on_recorded_latencies(condition: str, recording: dict[str, Seconds]) -> None:
    calls = recording[condition]
    deadline_s = 8 * float(np.median(calls.sum(axis=1)))
    for layer in (2, 6, 12):
        result = replay(stall(calls, range(4), layer, 1.6 * deadline_s), deadline_s)
        assert (result.exits[19:] == calls.shape[1]).all()


@pytest.mark.parametrize("condition", ["quiet", "loaded", "throttled"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("promised", [MISS_PROBABILITY, 0.05])
def test_share_of_missed_deadlines_is_below_miss_probability(
    condition: str, factor: float, promised: float, recording: dict[str, Seconds]
) -> None:
    calls = recording[condition]
    many = calls[np.random.default_rng(0).integers(0, len(calls), 1000)]
    result = replay(many, factor * float(np.median(calls.sum(axis=1))), StepEstimator(promised))
    assert result.late.mean() <= promised


@pytest.mark.parametrize("condition", ["quiet", "loaded", "throttled"])
def test_deadline_causes_few_needless_exits_under_load(condition: str, recording: dict[str, Seconds]) -> None:
    calls = recording[condition]
    median = float(np.median(calls.sum(axis=1)))
    assert replay(calls, 2 * median).needless.mean() < 0.1
    assert replay(calls, 4 * median).needless.mean() == 0
    tight = replay(calls, median)
    assert tight.exits.mean() > 0.75 * tight.deepest.mean()


def test_missed_deadlines_are_bounded_for_any_latencies() -> None:
    """Half of the calls stall at a random layer, the worst case that the guarantee covers."""
    rng = np.random.default_rng(0)
    calls = steady(2000)
    calls[np.arange(2000), rng.integers(1, 6, 2000)] += 2e-3 * (rng.uniform(size=2000) < 0.5)
    estimator = StepEstimator(0.02)
    result = replay(calls, 7e-3, estimator)
    assert result.late.sum() <= 0.01 * 2000 + np.log(estimator.margin / FIRST_MARGIN) / RATE + 1


def test_estimator_adapts_to_changing_device_speed() -> None:
    slow = np.concatenate([steady(300), 3 * steady(300, seed=1), steady(600, seed=2)])
    result = replay(slow, 9e-3)
    assert (result.exits[:300] == 6).all()
    assert result.late[300:600].sum() <= 3
    assert (result.exits[310:600] < 6).all()
    assert (result.exits[620:] == 6).all()


def test_recorded_latencies_cover_every_condition(recording: dict[str, Seconds]) -> None:
    assert tuple(recording) == CONDITIONS
    assert {calls.shape for calls in recording.values()} == {(240, 12)}
    assert all((calls > 0).all() for calls in recording.values())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="records on Linux only")
def test_record_and_simulate_commands_run(bundle: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "benchmarks/deadline_simulation.py", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    output = tmp_path / "recorded.json"
    run("record", str(bundle), "--threads", "1", "--calls", "6", "--output", str(output))
    assert {calls.shape for calls in read_recording(output).values()} == {(6, 3)}
    assert json.loads(output.read_text(encoding="utf-8"))["threads"] == 1
    table = run("simulate", str(output))
    assert all(f"| {condition}" in table for condition in CONDITIONS)
