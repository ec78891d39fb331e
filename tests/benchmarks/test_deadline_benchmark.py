"""Deadline benchmark: results, early exits by deadline only, and the requirements of the import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deadline import FACTORS, Import, call

from berxit.runtime import EarlyExitRunner

ROOT = Path(__file__).resolve().parents[2]


def test_deadline_benchmark_writes_results(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/deadline.py", str(bundle), "--threads", "1", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--calls", "5", "--imports", "1", "--output", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "deadline.json").read_text(encoding="utf-8"))
    first, *deadlines = found["deadlines"]
    assert first["average_exit_layer"] == 1
    assert first["holds"] is None
    assert [each["deadline_ms"] / found["first_exit_p99_ms"] for each in deadlines] == pytest.approx(FACTORS)
    assert all(1 <= each["average_exit_layer"] <= 3 and 0 <= each["met"] <= 1 for each in deadlines)
    assert all(each["holds"] == (each["met"] >= 0.99) for each in deadlines)
    assert found["import"]["heavy"] == []
    assert found["import"]["median"] > 0
    assert "| 4 x p99" in (tmp_path / "deadline.md").read_text(encoding="utf-8")


def test_call_exits_early_only_because_of_deadline(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    assert call(runner, "the cat sat", None)[1] == 1
    assert call(runner, "the cat sat", 1e6)[1] == 3
    assert call(runner, "the cat sat", 1e-3)[1] == 1


def test_import_requirement_covers_time_and_packages() -> None:
    assert Import((0.1, 0.2, 0.9), ()).holds
    assert not Import((0.1, 0.3, 0.9), ()).holds
    assert not Import((0.1, 0.1, 0.1), ("torch",)).holds
