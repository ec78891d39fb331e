"""Throttling: has the machine reduced its clocks because of heat, current or voltage?

One channel per reason, 1 while it throttles, else 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from berxit.devices.channels import Read, increase_of, number_in, text_of

_COOLS_BY_CLOCK = re.compile(r"cpu|gpu|devfreq|processor|powerclamp", re.IGNORECASE)
_OTHER_COOLING = re.compile(r"fan|alert|surface", re.IGNORECASE)
PI_BITS = {0x1: "under-voltage", 0x2: "clock limit", 0x4: "throttling", 0x8: "temperature limit"}
"""Lowest bits of a Raspberry Pi's ``get_throttled``. Those from 0x10000 on mean the same at any time since boot."""


def throttling_channels(root: Path) -> Mapping[str, Read]:
    """Channels of the kernel's cooling devices, of the throttle counters of Intel CPUs, of the over-current events of a
    Jetson, and of a Raspberry Pi's firmware."""
    return {**_cooling_devices(root), **_counters(root), **_raspberry_pi(root)}


def _cooling_devices(root: Path) -> dict[str, Read]:
    """Passive cooling: the kernel limits a clock while the state of its cooling device is above 0. Fans are active
    cooling."""

    def channel(file: Path) -> Read:
        state = number_in(file)

        def read() -> float | None:
            value = state()
            return None if value is None else float(value > 0)

        return read

    found = {}
    for folder in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind = text_of(folder / "type") or ""
        if _COOLS_BY_CLOCK.search(kind) and not _OTHER_COOLING.search(kind):
            found[f"cooling {kind} {folder.name.removeprefix('cooling_device')}"] = channel(folder / "cur_state")
    return found


def _counters(root: Path) -> dict[str, Read]:
    files = {
        "CPU core": sorted((root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/core_throttle_count")),
        "CPU package": sorted((root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/package_throttle_count")),
        "over-current": sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")),
    }

    def total(counters: list[Read]) -> Read:
        def read() -> float | None:
            values = [value for counter in counters if (value := counter()) is not None]
            return sum(values) if values else None

        return read

    return {name: increase_of(total([number_in(path) for path in paths])) for name, paths in files.items() if paths}


def _raspberry_pi(root: Path) -> dict[str, Read]:
    file = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
    if not file.exists():
        return {}

    def channel(bit: int) -> Read:
        def read() -> float | None:
            try:
                return float(bool(int(text_of(file) or "", 16) & bit))
            except ValueError:
                return None

        return read

    return {name: channel(bit) for bit, name in PI_BITS.items()}
