"""Device catalogue, detection of the machine, sensors."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import pytest

from berxit import devices
from berxit.devices import (
    DEVICES,
    SENSORS,
    Machine,
    default_threads,
    find,
    machine,
    read_sensors,
    recognise,
    sensors,
    this_machine,
    usable_cores,
)

BLANK = Machine("Linux", "x86_64", "Some CPU", 4, 16.0, "", "")


def board(name: str) -> Machine:
    return dataclasses.replace(BLANK, architecture="aarch64", processor="", board=name)


@pytest.mark.parametrize(
    ("these", "name"),
    [
        (board("NVIDIA Jetson Orin Nano Developer Kit"), "jetson-orin-nano"),
        (board("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"), "jetson-orin-nano"),
        (board("NVIDIA Jetson Orin NX Engineering Reference Developer Kit"), "jetson-orin-nx"),
        (board("NVIDIA Jetson AGX Orin Developer Kit"), "jetson-agx-orin"),
        (board("Jetson AGX Orin"), "jetson-agx-orin"),
        (board("NVIDIA Jetson Xavier NX Developer Kit"), "jetson-xavier"),
        (board("NVIDIA Jetson Nano Developer Kit"), "jetson"),
        (board("Raspberry Pi 5 Model B Rev 1.0"), "raspberry-pi"),
        (board("Raspberry Pi 4 Model B Rev 1.4"), "raspberry-pi"),
        (board("Radxa ROCK 5B"), "cpu"),
        (dataclasses.replace(BLANK, gpu="NVIDIA GeForce RTX 4070"), "desktop-gpu"),
        (Machine("Windows", "AMD64", "Some CPU", 8, 32.0, "", "NVIDIA GeForce RTX 4070"), "desktop-gpu"),
        (Machine("Darwin", "arm64", "Apple M2", 8, 16.0, "", ""), "mac"),
        (Machine("Darwin", "x86_64", "Intel Core i5", 4, 8.0, "", ""), "mac"),
        (BLANK, "cpu"),
        (Machine("", "", "", 1, 0.0, "", ""), "cpu"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_recognise_returns_most_specific_device(these: Machine, name: str) -> None:
    assert recognise(these).name == name


@pytest.mark.parametrize(
    ("model", "name"),
    [("NVIDIA Orin Nano Developer Kit", "jetson-orin-nano"), ("NVIDIA Orin NX Developer Kit", "jetson-orin-nx")],
)
def test_recognise_jetson_without_jetson_in_board_name(model: str, name: str) -> None:
    assert recognise(board(model)).name == name
    jetson = find("jetson")
    assert jetson is not None
    assert jetson.matches(board(model))


def test_recognise_prefers_jetson_over_desktop_gpu() -> None:
    nano = dataclasses.replace(board("NVIDIA Jetson Orin Nano Developer Kit"), gpu="Orin (nvgpu)")
    assert recognise(nano).name == "jetson-orin-nano"
    assert not DEVICES[[device.name for device in DEVICES].index("desktop-gpu")].matches(nano)


def test_device_matches_specific_and_general_devices() -> None:
    nano = board("NVIDIA Jetson Orin Nano Developer Kit")
    fits = [device.name for device in DEVICES if device.matches(nano)]
    assert fits == ["jetson-orin-nano", "jetson", "cpu"]


def test_device_matches_never_for_phones() -> None:
    for name in ("iphone", "ipad"):
        device = find(name)
        assert device is not None
        assert not device.matches(Machine("Darwin", "arm64", "Apple A17", 6, 8.0, "", ""))


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_devices_have_all_required_fields(device: devices.Device) -> None:
    assert find(device.name) is device
    assert device.description
    assert device.remedy
    assert device.precision in ("fp32", "fp16", "int8")
    assert device.targets
    assert set(device.targets) <= {"onnxruntime", "tensorrt", "coreml"}


def test_devices_have_unique_names_and_end_with_cpu() -> None:
    names = [device.name for device in DEVICES]
    assert len(set(names)) == len(names)
    assert names[-1] == "cpu"


def test_find_returns_none_for_unknown_name() -> None:
    assert find("toaster") is None
    assert find("") is None


def test_machine_str_lists_known_fields() -> None:
    assert str(BLANK) == "Linux x86_64, Some CPU, 4 cores"
    assert str(board("Raspberry Pi 5")) == "Linux aarch64, Raspberry Pi 5, 4 cores"
    assert str(dataclasses.replace(BLANK, gpu="RTX")) == "Linux x86_64, Some CPU, RTX, 4 cores"


def test_this_machine_reads_all_fields() -> None:
    here = this_machine()
    assert here.system in ("Linux", "Darwin", "Windows")
    assert here.architecture
    assert here.cores == usable_cores() >= 1
    assert here.memory_gib >= 0
    assert recognise(here).matches(here)


def test_usable_cores_follows_cpu_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(machine.os, "sched_getaffinity")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (3, 3), (4, 4), (64, 4)])
def test_default_threads_is_at_most_four(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    assert default_threads(tmp_path) == threads  # no /proc, no /sys


def test_machine_field_is_empty_without_command_or_file(tmp_path: Path) -> None:
    assert machine._run("no-such-command-anywhere") == ""
    assert machine._read(str(tmp_path / "nothing")) == ""
    (tmp_path / "model").write_bytes(b"Raspberry Pi 5\x00")
    assert machine._read(str(tmp_path / "model")) == "Raspberry Pi 5"


def test_read_sensors_returns_numbers_or_none() -> None:
    reading = read_sensors()
    for name in ("cpu_mhz", "temperature_c", "load", "peak_memory_mib"):
        value = getattr(reading, name)
        assert value is None or isinstance(value, float)
    assert reading.governor is None or reading.governor
    assert reading.cpu_mhz is None or reading.cpu_mhz > 0
    assert reading.peak_memory_mib is None or reading.peak_memory_mib > 1


def test_read_sensors_returns_none_for_missing_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sensors.os, "getloadavg", raising=False)
    monkeypatch.setattr(sensors.shutil, "which", lambda name: None)
    monkeypatch.setattr(sensors, "_memory_mib", lambda kind: None)
    assert read_sensors(tmp_path) == devices.Reading(None, None, None, None, None, None, None, None)


@pytest.mark.parametrize(
    ("script", "mode"),
    [
        ("echo 'NV Power Mode: MODE_15W'; echo 2", "15W"),
        ("echo 'NVPM WARN: fan mode is not set!'; echo 'NV Power Mode: MAXN SUPER'; echo 0", "MAXN SUPER"),
        ("echo 'NVPM ERROR: root required' >&2; exit 1", None),
        ("exec sleep 60", None),
        ("echo 'NV Power Mode:'; echo 2", None),
        ("echo 'NVPM VERB: Current mode: NV Power Mode: 40W'; echo 4", "40W"),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="the stand-in for nvpmodel is a shell script")
def test_read_sensors_parses_power_mode_of_nvpmodel(
    script: str, mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvpmodel"
    command.write_text(f'#!/bin/sh\n[ "$1" = -q ] || exit 2\n{script}\n', encoding="ascii")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert read_sensors().power_mode == mode


def test_read_sensors_converts_units(tmp_path: Path) -> None:
    files(
        tmp_path,
        **{
            "sys/class/thermal/thermal_zone0/temp": "41000",
            "sys/class/thermal/thermal_zone1/temp": "57500",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1000000",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2000000",
            "sys/class/devfreq/17000000.ga10b/cur_freq": "624750000",
        },
    )
    reading = read_sensors(tmp_path)
    assert (reading.temperature_c, reading.cpu_mhz, reading.gpu_mhz) == (57.5, 1500, 624.75)


def test_read_sensors_uses_cpuinfo_without_cpufreq(tmp_path: Path) -> None:
    files(tmp_path, **{"proc/cpuinfo": "cpu MHz\t: 2000.0\nmodel name\t: CPU\ncpu MHz\t: 3000.0"})
    assert read_sensors(tmp_path).cpu_mhz == 2500


def test_sensor_files_without_a_number_are_ignored(tmp_path: Path) -> None:
    zones = {"0": "41000", "1": "-5", "2": "N/A", "3": ""}
    files(tmp_path, **{f"sys/class/thermal/thermal_zone{zone}/temp": text for zone, text in zones.items()})
    (tmp_path / "sys/class/thermal/thermal_zone4").mkdir()
    (sensor,) = [sensor for sensor in SENSORS if sensor.name == "temperature_c"]
    assert sorted(sensors.values_of(sensor.channels(tmp_path)).values()) == [-0.005, 41.0]


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_coreml_devices_define_compute_units_and_target_version(device: devices.Device) -> None:
    if "coreml" in device.targets:
        assert device.compute_units in ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")
        assert device.target_version in ("ios18", "macos15", "ios16")
        assert list(device.lengths) == sorted(set(device.lengths))
        assert device.layout == ("ane" if device.compute_units == "CPU_AND_NE" else None)
    else:
        assert device.compute_units is None


def files(root: Path, **contents: str) -> Path:
    for path, text in contents.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    return root


def siblings(root: Path, *groups: str) -> Path:
    """Creates topology files in which CPU i shares its core with the CPUs ``groups[i]``."""
    return files(
        root, **{f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": text for i, text in enumerate(groups)}
    )


def test_physical_cores_counts_sibling_threads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert machine.physical_cores(tmp_path) == 4  # no topology files
    siblings(tmp_path, "0,2", "1,3", "0,2", "1,3")
    assert machine.physical_cores(tmp_path) == 2
    assert default_threads(tmp_path) == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2}, raising=False)
    assert default_threads(tmp_path) == 1


@pytest.mark.parametrize(
    ("contents", "quota", "threads"),
    [
        ({}, math.inf, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, math.inf, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2.5, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "nonsense"}, math.inf, 4),
        (  # the quota of a parent group applies too
            {
                "proc/self/cgroup": "0::/pod/app",
                "sys/fs/cgroup/pod/app/cpu.max": "max 100000",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000",
            },
            3.0,
            3,
        ),
        (
            {
                "proc/self/cgroup": "7:cpuset:/\n4:cpu,cpuacct:/docker/1\n0::/",
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2.0,
            2,
        ),
    ],
)
def test_default_threads_respects_cpu_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: dict[str, str], quota: float, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    files(tmp_path, **contents)
    assert machine.cpu_quota(tmp_path) == quota
    assert default_threads(tmp_path) == threads
