"""Sensors of the machine: CPU clock, temperature, load, power mode.

Read before and after a measurement, they show whether the machine was throttled or busy. The value of a missing sensor
is None.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reading:
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
    """Power mode of a Jetson, as ``nvpmodel -q`` names it: 15W, MAXN, ..."""


def read_sensors() -> Reading:
    clocks = _numbers("/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
    temperatures = _numbers("/sys/class/thermal", "thermal_zone*/temp")
    return Reading(
        cpu_mhz=sum(clocks) / len(clocks) / 1e3 if clocks else _cpuinfo_mhz(),
        temperature_c=max(temperatures) / 1e3 if temperatures else None,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        governor=_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        peak_memory_mib=_memory_mib("VmHWM"),
        power_mode=_power_mode(),
    )


def _text(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _numbers(folder: str, pattern: str) -> list[float]:
    texts = [_text(path) for path in sorted(Path(folder).glob(pattern))]
    return [float(text) for text in texts if text and text.lstrip("-").isdigit()]


def _cpuinfo_mhz() -> float | None:
    lines = (_text("/proc/cpuinfo") or "").splitlines()
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


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
    try:
        output = subprocess.run(("nvpmodel", "-q"), capture_output=True, text=True, timeout=2, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    modes = [line.partition(":")[2].strip() for line in output.splitlines() if line.startswith("NV Power Mode")]
    return modes[0].removeprefix("MODE_") if modes and modes[0] else None
