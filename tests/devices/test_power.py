"""Energy counters (RAPL), NVML, powermetrics and throttling, on recorded trees and stand-ins."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from berxit import devices
from berxit.devices import Sampler, channels, nvml, powermetrics
from berxit.devices.power import rapl_zones
from berxit.devices.throttling import throttling_channels

XEON = {
    "intel-rapl:0/name": "package-0",
    "intel-rapl:0/energy_uj": "262100000000",
    "intel-rapl:0/max_energy_range_uj": "262143328850",
    "intel-rapl:0:0/name": "core",
    "intel-rapl:0:0/energy_uj": "5",
    "intel-rapl:0:1/name": "dram",
    "intel-rapl:0:1/energy_uj": "1000000",
    "intel-rapl:0:1/max_energy_range_uj": "65712999613",
    "intel-rapl:1/name": "psys",
    "intel-rapl:1/energy_uj": "7",
    "intel-rapl-mmio:0/name": "package-0",
    "intel-rapl-mmio:0/energy_uj": "9",
}
"""Names of the zones as the kernel's documentation of powercap lists them; psys as on laptops."""


def tree(root: Path, files: dict[str, str], below: str = "") -> Path:
    for name, text in files.items():
        path = root / below / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    return root


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that rates use; a test moves it."""
    now = [100.0]
    monkeypatch.setattr(channels.time, "perf_counter", lambda: now[0])
    return now


def test_rapl_returns_power_of_packages_and_their_memory(tmp_path: Path, clock: list[float]) -> None:
    root = tree(tmp_path, XEON, "sys/class/powercap")
    zones = rapl_zones(root)
    assert set(zones) == {"package-0", "dram-0"}
    assert devices.values_of(zones) == {}  # no time has passed, so there is no rate
    clock[0] += 2
    tree(
        tmp_path,
        {"intel-rapl:0/energy_uj": "262140000000", "intel-rapl:0:1/energy_uj": "7000000"},
        "sys/class/powercap",
    )
    assert devices.values_of(zones) == pytest.approx({"package-0": 20.0, "dram-0": 3.0})


def test_rapl_counter_that_wraps_has_no_negative_power(tmp_path: Path, clock: list[float]) -> None:
    root = tree(tmp_path, XEON, "sys/class/powercap")
    read = rapl_zones(root)["package-0"]
    clock[0] += 1
    tree(tmp_path, {"intel-rapl:0/energy_uj": "6671150"}, "sys/class/powercap")
    assert read() == pytest.approx(50.0)


def test_rapl_that_only_root_may_read_is_missing(tmp_path: Path) -> None:
    root = tree(tmp_path, {**XEON, "intel-rapl:0/energy_uj": "", "intel-rapl:0:1/energy_uj": ""}, "sys/class/powercap")
    assert rapl_zones(root) == {}
    assert devices.power_sensors(root) == ()
    with Sampler(root=root) as sampler:
        pass
    assert sampler.results()["cpu_power_w"] is None


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        ({}, {}, set()),
        ({}, {"sys/class/thermal/cooling_device0/cur_state": "3"}, {"cooling thermal-cpufreq-0 0"}),
        ({}, {"sys/class/thermal/cooling_device1/cur_state": "2"}, set()),  # a fan
        ({}, {"sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "12"}, {"CPU core"}),
        ({}, {"sys/class/hwmon/hwmon2/oc3_event_cnt": "1"}, {"over-current"}),
        ({}, {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"}, {"under-voltage", "throttling"}),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "50000"}, {}, set()),  # before the measurement
    ],
)
def test_throttling_names_its_reasons(
    tmp_path: Path, before: dict[str, str], after: dict[str, str], reasons: set[str]
) -> None:
    quiet = {
        "sys/class/thermal/cooling_device0/type": "thermal-cpufreq-0",
        "sys/class/thermal/cooling_device0/cur_state": "0",
        "sys/class/thermal/cooling_device1/type": "pwm-fan",
        "sys/class/thermal/cooling_device1/cur_state": "1",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
        "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "9",
        "sys/class/hwmon/hwmon2/oc3_event_cnt": "0",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "0",
    }
    root = tree(tmp_path, {**quiet, **before})
    found = throttling_channels(root)
    devices.values_of(found)
    tree(tmp_path, after)
    assert {name for name, value in devices.values_of(found).items() if value} == reasons


def test_throttling_of_a_machine_without_channels_is_missing(tmp_path: Path) -> None:
    with Sampler(root=tmp_path) as sampler:
        pass
    assert sampler.results()["throttled"] is None


NVML = r"""
#include <stdint.h>
#include <stdlib.h>
#define FAIL(name) if (getenv("FAKE_NVML_" name)) return 3
static int gpu;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = getenv("FAKE_NVML_GPUS") ? atoi(getenv("FAKE_NVML_GPUS")) : 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = &gpu; return i ? 2 : 0; }
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { FAIL("POWER"); *mw = 71500; return h == &gpu ? 0 : 2; }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *c) { *c = 61; return h == &gpu && sensor == 0 ? 0 : 2; }
int nvmlDeviceGetClockInfo(void *h, int type, unsigned *mhz) { *mhz = 1755; return h == &gpu && type == 0 ? 0 : 2; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, unsigned long long *bits) { *bits = 0x21; return h != &gpu; }
"""
"""A stand-in for the driver's library, with the names and types of nvml.h: 71.5 W, 61 degrees C, 1755 MHz, and an idle
bit (0x1) and a thermal slowdown (0x20) at the same time."""


@pytest.fixture(scope="module")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("the stand-in for NVML needs Linux and a C compiler (cc)")
    folder = tmp_path_factory.mktemp("nvml")
    source, library = folder / "nvml.c", folder / "libnvidia-ml.so.1"
    source.write_text(NVML, encoding="ascii")
    subprocess.run((compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source), check=True)
    return library


@pytest.fixture
def gpu(nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nvml, "LIBRARY", str(nvml_library))
    nvml._the_gpu.cache_clear()
    yield
    nvml._the_gpu.cache_clear()


@pytest.mark.usefixtures("gpu")
def test_nvml_reads_power_clock_temperature_and_throttling() -> None:
    assert devices.values_of(nvml.power_channels()) == {"gpu0": 71.5}
    assert devices.values_of(nvml.clock_channels()) == {"gpu0": 1755}
    assert devices.values_of(nvml.temperature_channels()) == {"gpu0": 61}
    reasons = devices.values_of(nvml.throttling_channels())
    assert [name for name, value in reasons.items() if value] == ["GPU thermal slowdown (driver)"]
    with Sampler() as sampler:
        pass
    found = sampler.results()
    assert found["gpu_power_w"] is not None
    assert found["gpu_power_w"].mean == pytest.approx(71.5)
    assert "gpu_power_w" in {sensor.name for sensor in devices.power_sensors()}


@pytest.mark.usefixtures("gpu")
def test_nvml_value_that_the_gpu_does_not_support_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_POWER", "1")
    assert nvml.power_channels() == {}
    assert nvml.clock_channels() != {}


@pytest.mark.usefixtures("gpu")
def test_nvml_has_no_channels_with_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_GPUS", "2")
    assert nvml.power_channels() == nvml.throttling_channels() == {}


def test_nvml_without_a_driver_has_no_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libnvidia-ml-that-does-not-exist.so.1")
    nvml._the_gpu.cache_clear()
    assert nvml.power_channels() == nvml.clock_channels() == nvml.throttling_channels() == {}
    nvml._the_gpu.cache_clear()


POWERMETRICS = """
*** Sampled system activity (Fri Sep 11 13:41:12 2026 +0200) (103.72ms elapsed) ***

**** Processor usage ****

P-Cluster idle residency:  43.77%
CPU 4 frequency: 2039 MHz

CPU Power: 823 mW
GPU Power: 26 mW
ANE Power: 323 mW
Combined Power (CPU + GPU + ANE): 1172 mW
"""
"""Layout of the sampler cpu_power on Apple Silicon."""


def test_powermetrics_output_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    latest = powermetrics.LatestPower()
    assert latest.channel("CPU")() is None
    latest.follow(POWERMETRICS.splitlines())
    values = {name: latest.channel(name)() for name in ("CPU", "GPU", "ANE")}
    assert values == pytest.approx({"CPU": 0.823, "GPU": 0.026, "ANE": 0.323})
    later = powermetrics.time.monotonic() + powermetrics.LONGEST_S
    monkeypatch.setattr(powermetrics.time, "monotonic", lambda: later)
    assert latest.channel("CPU")() is None  # powermetrics stopped


@pytest.mark.parametrize(("system", "user", "channels_found"), [("darwin", 0, 3), ("darwin", 501, 0), ("linux", 0, 0)])
def test_powermetrics_runs_on_macos_as_root_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, user: int, channels_found: int
) -> None:
    command = tmp_path / "powermetrics"
    command.write_text(f"#!/bin/sh\ncat <<'END'{POWERMETRICS}END\n", encoding="ascii")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(powermetrics.sys, "platform", system)
    monkeypatch.setattr(powermetrics.os, "geteuid", lambda: user)
    powermetrics._running.cache_clear()
    found = powermetrics.chip_power_channels()
    assert len(found) == channels_found
    powermetrics._running.cache_clear()
