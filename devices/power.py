"""Power sensors in files of the kernel: the rails of a Jetson (INA3221), and the energy counters of a CPU (RAPL)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from berxit.devices.channels import Read, number_in, rate_of, text_of


def rails(root: Path) -> Mapping[str, Read]:
    """Watts of each rail that an INA3221 measures, from mV and mA. It has three channels; those that are not connected
    are called NC."""

    def power(hwmon: Path, channel: int) -> Read:
        volts, amperes = (number_in(hwmon / f"{kind}{channel}_input", 1e-3) for kind in ("in", "curr"))

        def read() -> float | None:
            voltage, current = volts(), amperes()
            return None if voltage is None or current is None else voltage * current

        return read

    found = {}
    for name in sorted((root / "sys/class/hwmon").glob("hwmon*/name")):
        for channel in (1, 2, 3) if text_of(name) == "ina3221" else ():
            label = text_of(name.with_name(f"in{channel}_label"))
            read = power(name.parent, channel)
            if label and label != "NC" and read() is not None:
                found[label] = read
    return found


def module_power(watts: Mapping[str, float]) -> float:
    """Power of the module: its input rail, if there is one (Orin Nano, Orin NX, Xavier NX). Otherwise the sum of the
    rails, without VDDQ_VDD2_1V8AO, which VIN_SYS_5V0 supplies (AGX Orin)."""
    inputs = [watts[name] for name in ("VDD_IN", "POM_5V_IN") if name in watts]
    return inputs[0] if inputs else sum(power for name, power in watts.items() if name != "VDDQ_VDD2_1V8AO")


def rapl_zones(root: Path) -> Mapping[str, Read]:
    """Watts of each CPU package and of its memory, from the energy counters (powercap) of Intel and AMD CPUs.

    The other zones are parts of a package (core, uncore), or contain it (psys). Since Linux 5.10, only root may read
    the counters; without the permission there is no channel.
    """
    found = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name, joules = text_of(zone / "name") or "", number_in(zone / "energy_uj", 1e-6)
        if name.startswith(("package", "dram")) and joules() is not None:
            found[_zone_name(zone, name)] = rate_of(joules, number_in(zone / "max_energy_range_uj", 1e-6)())
    return found


def _zone_name(zone: Path, name: str) -> str:
    """``package-0``; for its memory, whose zone is intel-rapl:0:1, ``dram-0``."""
    parts = zone.name.split(":")
    return name if len(parts) < 3 else f"{name}-{parts[1]}"
