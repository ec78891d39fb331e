from __future__ import annotations

import logging
from pathlib import Path

import pytest

from berxit.devices import resident_mib
from berxit.runtime import cold_start
from berxit.runtime.bench_telemetry import start_line
from berxit.runtime.cold_start import measure_cold_start


def test_cold_start_measures_new_processes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "STARTS", 1)
    found = measure_cold_start(bundle, {"threads": 1, "lazy": False}, ["the cat sat", "a dog"], lazy=True)
    assert found is not None
    assert (found.starts, found.lazy) == (1, True)
    assert 0.05 < found.import_s < 60
    assert 0 < found.load_s < 60
    assert 0 < found.first_ms < 10_000
    assert list(found.memory_by_layer) == [1, 2, 3]
    memory = [found.memory_before_mib, *found.memory_by_layer.values()]
    if resident_mib() is None:
        assert set(memory) == {None}
    else:
        known = [mib for mib in memory if mib is not None]
        assert len(known) == 4
        assert known == sorted(known)
        assert 10 < known[0] < known[1]  # the bundle needs memory
    assert "1 start)" in start_line(found, 0.1)


def test_cold_start_that_fails_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING):
        assert measure_cold_start(tmp_path, {}, ["the cat"], lazy=False) is None
    assert "load time and memory were not measured: a new process failed" in caplog.text
    assert "is not a bundle, or is incomplete" in caplog.text
