"""Sensors of the machine: clocks, temperature, power, load, power mode.

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

Read = Callable[[], "float | None"]
"""Reads one channel of a sensor; None if it has no value now."""


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


def _each(root: Path, folder: str, pattern: str, scale: float) -> dict[str, Read]:
    """One channel per file that matches: the number in it, multiplied by ``scale``."""
    return {str(file.relative_to(root)): _number(file, scale) for file in sorted((root / folder).glob(pattern))}


def _number(file: Path, scale: float = 1.0) -> Read:
    """Reads the number in a file of the kernel. Python's file objects take several times as long."""
    path = str(file)

    def read() -> float | None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            return int(os.read(descriptor, 64)) * scale
        except (OSError, ValueError):  # The sensor is off, or the file contains no number.
            return None
        finally:
            os.close(descriptor)

    return read


def _cpu_clocks(root: Path) -> Mapping[str, Read]:
    found = _each(root, "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq", 1e-3)
    return found or ({"cpuinfo": lambda: _cpuinfo_mhz(root)} if _cpuinfo_mhz(root) else {})


def _cpuinfo_mhz(root: Path) -> float | None:
    lines = (_text(root / "proc/cpuinfo") or "").splitlines()
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return fmean(clocks) if clocks else None


def _gpu_folders(root: Path) -> list[Path]:
    """Folders of the integrated GPU's clock: 17000000.gpu from JetPack 6 on, 17000000.ga10b and 17000000.gv11b
    before."""
    names = re.compile(r"gpu|ga10b|gv11b")
    return [folder for folder in sorted((root / "sys/class/devfreq").glob("*")) if names.search(folder.name)]


def _gpu_clocks(root: Path) -> Mapping[str, Read]:
    return {folder.name: _number(folder / "cur_freq", 1e-6) for folder in _gpu_folders(root)}


def _power_rails(root: Path) -> Mapping[str, Read]:
    """Watts of each rail that an INA3221 measures, from mV and mA. It has three channels; those that are not connected
    are called NC."""

    def power(hwmon: Path, channel: int) -> Read:
        volts, amperes = (_number(hwmon / f"{kind}{channel}_input", 1e-3) for kind in ("in", "curr"))

        def read() -> float | None:
            voltage, current = volts(), amperes()
            return None if voltage is None or current is None else voltage * current

        return read

    rails = {}
    for name in sorted((root / "sys/class/hwmon").glob("hwmon*/name")):
        for channel in (1, 2, 3) if _text(name) == "ina3221" else ():
            label = _text(name.with_name(f"in{channel}_label"))
            read = power(name.parent, channel)
            if label and label != "NC" and read() is not None:
                rails[label] = read
    return rails


def _module_power(rails: Mapping[str, float]) -> float:
    """Power of the module: its input rail, if there is one (Orin Nano, Orin NX, Xavier NX). Otherwise the sum of the
    rails, without VDDQ_VDD2_1V8AO, which VIN_SYS_5V0 supplies (AGX Orin)."""
    inputs = [rails[name] for name in ("VDD_IN", "POM_5V_IN") if name in rails]
    return inputs[0] if inputs else sum(watts for name, watts in rails.items() if name != "VDDQ_VDD2_1V8AO")


def _mean(values: Mapping[str, float]) -> float:
    return fmean(values.values())


def _highest(values: Mapping[str, float]) -> float:
    return max(values.values())


SENSORS: tuple[Sensor, ...] = (
    Sensor("cpu_mhz", "CPU clock", "MHz", _cpu_clocks, _mean),
    Sensor("gpu_mhz", "GPU clock", "MHz", _gpu_clocks, _highest),
    Sensor(
        "temperature_c",
        "temperature",
        "degrees C",
        lambda root: _each(root, "sys/class/thermal", "thermal_zone*/temp", 1e-3),
        _highest,
    ),
    Sensor("power_w", "power", "W", _power_rails, _module_power, named=True),
)
"""Sensors that a measurement samples. The temperature is that of the hottest thermal zone."""
POWER = next(sensor for sensor in SENSORS if sensor.name == "power_w")


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
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        peak_memory_mib=_memory_mib("VmHWM"),
        power_mode=_power_mode(),
        gpu_mhz=now["gpu_mhz"],
        clocks_fixed=_clocks_fixed(root),
    )


def read_power(root: Path = Path("/")) -> float | None:
    """Power of the module in W; None without a sensor."""
    return _value(POWER, root)


def values_of(channels: Mapping[str, Read]) -> dict[str, float]:
    """The channels that have a value now."""
    return {name: value for name, read in channels.items() if (value := read()) is not None}


def _value(sensor: Sensor, root: Path) -> float | None:
    values = values_of(sensor.channels(root))
    return sensor.combine(values) if values else None


def _clocks_fixed(root: Path) -> bool | None:
    """True if each integrated GPU's lowest and highest clock are equal; None without one."""
    limits = [[_number(folder / f"{end}_freq")() for end in ("min", "max")] for folder in _gpu_folders(root)]
    known = [(low, high) for low, high in limits if low is not None and high is not None]
    return all(low == high for low, high in known) if known else None


def _text(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def all_cpus() -> int:
    """Logical CPUs of the machine, including those that this process may not use. ``cpu_seconds_of_others`` covers all
    of them."""
    return os.cpu_count() or 1


def cpu_seconds_of_others() -> float | None:
    """CPU seconds used since boot by everything except this process and its children, including other guests of a
    hypervisor. None if the system does not report them."""
    line = (_text("/proc/stat") or "").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line[1:9])
    own = os.times()
    used = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return used - sum(own[:4])


def resident_mib() -> float | None:
    """Resident memory of this process, in MiB; None if the system does not report it."""
    return _memory_mib("VmRSS")


def _memory_mib(kind: str) -> float | None:
    for line in (_text("/proc/self/status") or "").splitlines():
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
