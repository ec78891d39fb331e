"""Samples of sensors during a measurement."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boards import board

from berxit.devices import POWER, SENSORS, Sampler, Sensor, sampling


def sensor(read: Callable[[], float | None], *, named: bool = False) -> Sensor:
    return Sensor("test", "test", "W", lambda root: {"rail": read}, lambda values: sum(values.values()), named)


def test_sampler_takes_samples_in_the_background_until_the_end() -> None:
    calls: list[str] = []
    enough = threading.Event()

    def read() -> float:
        calls.append(threading.current_thread().name)
        if calls.count("sensor sampler") == 3:
            enough.set()
        return 1.0

    with Sampler([sensor(read)], interval=0.001) as sampler:
        assert enough.wait(10)
    taken = len(calls)
    assert calls[0] == calls[-1] == threading.current_thread().name
    assert sampler.results()["test"].samples == taken >= 5
    time.sleep(0.01)
    assert len(calls) == taken
    assert "sensor sampler" not in {thread.name for thread in threading.enumerate()}


def test_sampler_has_two_samples_of_a_short_block() -> None:
    values = iter([2.0, 4.0])
    with Sampler([sensor(lambda: next(values))], interval=60) as sampler:
        pass
    found = sampler.results()["test"]
    assert (found.mean, found.lowest, found.highest, found.samples) == (3.0, 2.0, 4.0, 2)
    assert sampler.seconds > 0


def test_sampled_mean_weights_samples_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([0.0, 1.0, 4.0])
    values = iter([2.0, 2.0, 8.0])
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(times))
    sampler = Sampler([sensor(lambda: next(values), named=True)], interval=60)
    for _ in range(3):
        sampler._sample()
    found = sampler.results()["test"]
    assert found.mean == pytest.approx((1 * 2 + 3 * 5) / 4)
    assert found.channels == {"rail": found.mean}


def test_sampler_reports_missing_sensor_as_none() -> None:
    absent = Sensor("absent", "absent", "W", lambda root: {}, lambda values: sum(values.values()))
    failing = sensor(lambda: None)
    with Sampler([absent, failing]) as sampler:
        pass
    assert sampler.results() == {"absent": None, "test": None}


def test_sampler_ignores_samples_without_a_value() -> None:
    values = iter([None, 5.0])
    with Sampler([sensor(lambda: next(values))], interval=60) as sampler:
        pass
    assert sampler.results()["test"].mean == 5.0
    assert sampler.results()["test"].samples == 1


def test_sampler_stops_its_thread_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), Sampler([sensor(lambda: 1.0)]):
        raise ZeroDivisionError
    assert "sensor sampler" not in {thread.name for thread in threading.enumerate()}


def test_sampler_of_board_has_rails_of_the_power(tmp_path: Path) -> None:
    recorded = board("orin-nano")
    with Sampler(root=recorded.tree(tmp_path)) as sampler:
        pass
    found = sampler.results()
    assert set(found) == {each.name for each in SENSORS}
    without = {"gpu_temperature_c", "throttled", "cpu_power_w", "chip_power_w", "gpu_power_w"}
    assert {name for name, sampled in found.items() if sampled is None} == without
    assert set(found[POWER.name].channels) == set(recorded.rails)
    assert found["gpu_mhz"].channels == {}
