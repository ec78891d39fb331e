"""The load test of the service: its client, its measurements, and its report."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving_load
import uvicorn
from serving_load import Load, Reply, ServedBundle, Soak, at_rate_interleaved, bodies, capacity, report, soak

from berxit.runtime import BerxitError, EarlyExitRunner
from berxit.toolkit.serving import server
from berxit.toolkit.serving.service import Service, Settings, application

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["the cat sat on the mat", "a dog", "stop the music", "turn on the big red light"]


@pytest.fixture(scope="module")
def runner(bundle: Path) -> EarlyExitRunner:
    return EarlyExitRunner.load(bundle, threads=1)


@pytest.fixture(scope="module")
def service(bundle: Path) -> Iterator[ServedBundle]:
    """A service in a thread of this process."""
    app = application(Service(EarlyExitRunner.load(bundle, threads=1), Settings("tiny")))
    running = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", ws="none"))
    with server.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listening])))
        thread.start()
        yield ServedBundle(os.getpid(), listening.getsockname()[1])
        running.should_exit = True
        thread.join()


def test_capacity_counts_answered_requests(service: ServedBundle) -> None:
    assert capacity(service, TEXTS, 0.1) > 1


def test_at_rate_sends_all_requests(service: ServedBundle) -> None:
    cases = {"deadline": (service, bodies(TEXTS, deadline_ms=1e6)), "none": (service, bodies(TEXTS))}
    loads = at_rate_interleaved(cases, 50.0, 0.1, 2)
    assert [(load.service, load.errors, load.late) for load in loads] == [("deadline", 0, 0.0), ("none", 0, None)]
    for load in loads:
        assert 2 <= load.requests <= 30
        assert 0 < load.p50_ms <= load.p99_ms
        assert 1 <= load.average_exit_layer <= 3


def test_at_rate_counts_errors(service: ServedBundle) -> None:
    (load,) = at_rate_interleaved({"x": (service, [*bodies(TEXTS), b"{"])}, 50.0, 0.2, 1)
    assert load.errors == load.requests // 5


def test_soak_compares_predictions_with_the_runner(
    service: ServedBundle, runner: EarlyExitRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_load, "WARM_UP", 8)
    found = soak(service, runner, TEXTS, 20)
    assert (found.requests, found.errors, found.different) == (20, 0, 0)
    assert found.memory_mib[0] > 10
    assert found.open_files[1] > 3
    deep = EarlyExitRunner(runner.manifest, runner.tokenizer, runner.backend)
    deep.policy = runner.policy.at_depth(3)
    early = sum(runner.predict(text).exit_layer < 3 for text in TEXTS)
    assert early > 0
    assert soak(service, deep, TEXTS, 20).different == 5 * early


@pytest.mark.parametrize(("late", "verdict"), [(0.01, "met by"), (0.02, "not met by")])
def test_report_states_whether_the_deadline_is_met(late: float, verdict: str) -> None:
    loads = [Load("early exit, deadline", 10.0, 80, 9.9, 0, 0, 5.0, 9.0, 2.5, late, 3.0)]
    loads.append(
        Load("early exit, deadline", 60.0, 80, 55.0, 0, 0, 50.0, 90.0, 1.5, 0.5, 2.0)
    )  # above half of the throughput
    machine = {"bundle": "b", "precision": "int8", "threads": 1, "inputs": 4, "seconds": 8.0, "rounds": 3}
    conditions = {**machine, "before": {"load": None}, "after": {"load": 1.0}}
    soaked = Soak(100, 8, 0, 50.0, 5.0, 9.0, 0, (100.0, 100.5), (11, 11))
    text = report(conditions, {"early": 80.0, "full depth": 40.0}, 12.0, loads, soaked)
    assert "(2.00x)" in text
    assert f"Deadline 12.0 ms, full depth's p99 at 25% of its throughput: {verdict} 99%" in text


def test_load_counts_refused_requests_apart_from_errors() -> None:
    found = {"exit_layer": 2, "late": None}
    replies = [Reply(0.1, 200, (found,)), Reply(0.1, 503, ()), Reply(0.1, 503, ()), Reply(0.1, 500, ())]
    load = Load.of("early exit", 2.0, replies, 2.0, 0.01)
    assert (load.requests, load.throughput, load.refused, load.errors, load.cpu_ms) == (4, 0.5, 2, 1, 10.0)


def test_load_of_failures_only_is_an_error() -> None:
    with pytest.raises(BerxitError, match="no request of 1 succeeded"):
        Load.of("early exit", 1.0, [Reply(0.1, 503, ())], 1.0, 0.0)


@pytest.mark.slow
def test_serving_load_writes_results(bundle: Path, data_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/serving_load.py", str(bundle), "--data", str(data_folder)]
    options = ["--seconds", "0.3", "--requests", "50", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "serving.json").read_text(encoding="utf-8"))
    assert len(found["loads"]) == 15
    assert found["soak"]["errors"] == found["soak"]["different"] == 0
