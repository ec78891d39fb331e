"""Sensors of the machine: clocks, temperature, throttling, power, load, power mode.

Read before and after a measurement, they show whether the machine was throttled or busy. Sampled during a measurement,
they show its clocks and its power. The value of a missing sensor is None, never 0. A new sensor is one entry in
SENSORS.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from berxit.devices import nvml, power, powermetrics, throttling
from berxit.devices.channels import Read, file_channels, number_in, text_of


@dataclass(frozen=True)
class Sensor:
    """A quantity that can be read at any time. A sensor that counts, such as an energy counter, has a channel that
    returns the rate since its last call."""

    name: str
    """Key in results."""
    title: str
    unit: str
    channels: Callable[[Path], Mapping[str, Read]]
    """Finds the sensor's channels below a root folder: name -> the function that reads it. Empty if the machine does
    not have the sensor. It looks for files once, so that a read is cheap."""
    combine: Callable[[Mapping[str, float]], float]
    """The value of the sensor from those of its channels, of which there is at least one."""
    named: bool = False
    """True if results also contain the channels: the rails of the power."""


def _cpu_clocks(root: Path) -> Mapping[str, Read]:
    found = file_channels(root, "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq", 1e-3)
    return found or ({"cpuinfo": lambda: _cpuinfo_mhz(root)} if _cpuinfo_mhz(root) else {})


def _cpuinfo_mhz(root: Path) -> float | None:
    lines = (text_of(root / "proc/cpuinfo") or "").splitlines()
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return fmean(clocks) if clocks else None


def _gpu_folders(root: Path) -> list[Path]:
    """Folders of the integrated GPU's clock: 17000000.gpu from JetPack 6 on, 17000000.ga10b and 17000000.gv11b
    before."""
    names = re.compile(r"gpu|ga10b|gv11b")
    return [folder for folder in sorted((root / "sys/class/devfreq").glob("*")) if names.search(folder.name)]


def _gpu_clocks(root: Path) -> Mapping[str, Read]:
    found = {folder.name: number_in(folder / "cur_freq", 1e-6) for folder in _gpu_folders(root)}
    return found or _of_this_machine(root, nvml.clock_channels)


def _of_this_machine(root: Path, channels: Callable[[], Mapping[str, Read]]) -> Mapping[str, Read]:
    """Channels that are not files below ``root``: those of a driver or a command."""
    return channels() if root == Path("/") else {}


def _throttling(root: Path) -> Mapping[str, Read]:
    return {**throttling.throttling_channels(root), **_of_this_machine(root, nvml.throttling_channels)}


def _mean(values: Mapping[str, float]) -> float:
    return fmean(values.values())


def _sum(values: Mapping[str, float]) -> float:
    return sum(values.values())


def _highest(values: Mapping[str, float]) -> float:
    return max(values.values())


SENSORS: tuple[Sensor, ...] = (
    Sensor("cpu_mhz", "CPU clock", "MHz", _cpu_clocks, _mean),
    Sensor("gpu_mhz", "GPU clock", "MHz", _gpu_clocks, _highest),
    Sensor(
        "temperature_c",
        "temperature",
        "degrees C",
        lambda root: file_channels(root, "sys/class/thermal", "thermal_zone*/temp", 1e-3),
        _highest,
    ),
    Sensor(
        "gpu_temperature_c",
        "GPU temperature",
        "degrees C",
        lambda root: _of_this_machine(root, nvml.temperature_channels),
        _highest,
    ),
    Sensor("throttled", "throttling", "", _throttling, _highest, named=True),
    Sensor("power_w", "module power", "W", power.rails, power.module_power, named=True),
    Sensor("cpu_power_w", "CPU and memory power", "W", power.rapl_zones, _sum, named=True),
    Sensor(
        "chip_power_w",
        "chip power",
        "W",
        lambda root: _of_this_machine(root, powermetrics.chip_power_channels),
        _sum,
        named=True,
    ),
    Sensor("gpu_power_w", "GPU power", "W", lambda root: _of_this_machine(root, nvml.power_channels), _sum),
)
"""Sensors that a measurement samples. The temperature is that of the hottest thermal zone. ``throttled`` is 1 while any
reason limits a clock, else 0; its mean is the share of the time."""
POWER = next(sensor for sensor in SENSORS if sensor.name == "power_w")
"""Power of a whole module, which contains its CPU, GPU and memory."""
POWER_OF_PARTS = tuple(sensor for sensor in SENSORS if sensor.name in ("cpu_power_w", "chip_power_w", "gpu_power_w"))
"""Power of parts of a machine, used if there is no sensor for the whole module."""


@dataclass(frozen=True)
class Reading:
    """State of the machine at one time."""

    cpu_mhz: float | None
    """Mean clock frequency of the CPU cores."""
    temperature_c: float | None
    """Temperature of the hottest thermal zone."""
    load: float | None
    """Load average of the last minute."""
    governor: str | None
    """CPU frequency governor."""
    peak_memory_mib: float | None
    """Peak resident memory of this process."""
    power_mode: str | None = None
    """Power mode of a Jetson, as ``nvpmodel -q`` names it without the prefix MODE_: 15W, MAXN_SUPER, ..."""
    gpu_mhz: float | None = None
    """Clock frequency of an integrated GPU."""
    clocks_fixed: bool | None = None
    """True if the integrated GPU cannot change its clock, as after ``jetson_clocks``."""


def read_sensors(root: Path = Path("/")) -> Reading:
    """Reads the machine whose files are below ``root``."""
    now = {sensor.name: _value(sensor, root) for sensor in SENSORS}
    return Reading(
        cpu_mhz=now["cpu_mhz"],
        temperature_c=now["temperature_c"],
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        governor=text_of(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        peak_memory_mib=peak_resident_mib(),
        power_mode=_power_mode(),
        gpu_mhz=now["gpu_mhz"],
        clocks_fixed=_clocks_fixed(root),
    )


def read_power(root: Path = Path("/")) -> float | None:
    """Power of the module in W; None without a sensor."""
    return _value(POWER, root)


def power_sensors(root: Path = Path("/")) -> tuple[Sensor, ...]:
    """The power sensors of the machine: that of the module, or else those of its parts. Empty without any."""
    return tuple(each for each in (POWER,) if each.channels(root)) or tuple(
        each for each in POWER_OF_PARTS if each.channels(root)
    )


def values_of(channels: Mapping[str, Read]) -> dict[str, float]:
    """The channels that have a value now."""
    return {name: value for name, read in channels.items() if (value := read()) is not None}


def _value(sensor: Sensor, root: Path) -> float | None:
    values = values_of(sensor.channels(root))
    return sensor.combine(values) if values else None


def _clocks_fixed(root: Path) -> bool | None:
    """True if each integrated GPU's lowest and highest clock are equal; None without one."""
    limits = [[number_in(folder / f"{end}_freq")() for end in ("min", "max")] for folder in _gpu_folders(root)]
    known = [(low, high) for low, high in limits if low is not None and high is not None]
    return all(low == high for low, high in known) if known else None


def all_cpus() -> int:
    """Logical CPUs of the machine, including those that this process may not use. ``cpu_seconds_of_others`` covers all
    of them."""
    return os.cpu_count() or 1


def cpu_seconds_of_others() -> float | None:
    """CPU seconds used since boot by everything except this process and its children, including other guests of a
    hypervisor. None if the system does not report them."""
    line = (text_of("/proc/stat") or "").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line[1:9])
    own = os.times()
    used = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return used - sum(own[:4])


def resident_mib() -> float | None:
    """Resident memory of this process, in MiB; None if the system does not report it."""
    return _memory_mib("VmRSS")


def peak_resident_mib() -> float | None:
    """Peak resident memory of this process, in MiB; None if the system does not report it."""
    return _memory_mib("VmHWM")


def _memory_mib(kind: str) -> float | None:
    for line in (text_of("/proc/self/status") or "").splitlines():
        if line.startswith(kind):
            return float(line.split()[1]) / 1024
    return None


def _power_mode() -> str | None:
    """Power mode from the line ``NV Power Mode: MODE_15W`` of nvpmodel's output. None if nvpmodel fails; old releases
    need root."""
    if not shutil.which("nvpmodel"):
        return None
    output = ""
    with suppress(OSError, subprocess.SubprocessError):
        output = subprocess.run(("nvpmodel", "-q"), capture_output=True, text=True, timeout=2, check=False).stdout
    found = re.search(r"NV Power Mode: *(?:MODE_)?(\S.*)", output)
    return found[1].strip() if found else None
