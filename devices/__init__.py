"""Device descriptions, detection, sensors, and install commands. Imports nothing of the project."""

from berxit.devices.catalogue import DEVICES, Device
from berxit.devices.installation import TENSORRT_EXTRAS, fitting_extra, install_command, not_available
from berxit.devices.machine import Machine, default_threads, this_machine, usable_cores, with_cuda
from berxit.devices.sampling import Sampled, Sampler
from berxit.devices.sensors import (
    POWER,
    SENSORS,
    Reading,
    Sensor,
    all_cpus,
    cpu_seconds_of_others,
    peak_resident_mib,
    power_sensors,
    read_power,
    read_sensors,
    resident_mib,
    values_of,
)

__all__ = [
    "DEVICES",
    "POWER",
    "SENSORS",
    "TENSORRT_EXTRAS",
    "Device",
    "Machine",
    "Reading",
    "Sampled",
    "Sampler",
    "Sensor",
    "all_cpus",
    "cpu_seconds_of_others",
    "default_threads",
    "find",
    "fitting_extra",
    "install_command",
    "not_available",
    "peak_resident_mib",
    "power_sensors",
    "read_power",
    "read_sensors",
    "recognise",
    "resident_mib",
    "this_machine",
    "usable_cores",
    "values_of",
    "with_cuda",
]


def find(name: str) -> Device | None:
    """Device called ``name``; None if there is none."""
    return next((device for device in DEVICES if device.name == name), None)


def recognise(machine: Machine) -> Device:
    """First device in DEVICES that matches ``machine``. The last device, ``cpu``, matches every machine."""
    return next(device for device in DEVICES if device.matches(machine))
