"""Device descriptions, detection, sensors, and install commands. Imports nothing of the project."""

from berxit.devices.catalogue import DEVICES, Device
from berxit.devices.installation import install_command, tensorrt_command
from berxit.devices.machine import Machine, default_threads, this_machine, usable_cores
from berxit.devices.sensors import Reading, all_cpus, cpu_seconds_of_others, read_sensors, resident_mib

__all__ = [
    "DEVICES",
    "Device",
    "Machine",
    "Reading",
    "all_cpus",
    "cpu_seconds_of_others",
    "default_threads",
    "find",
    "install_command",
    "read_sensors",
    "recognise",
    "resident_mib",
    "tensorrt_command",
    "this_machine",
    "usable_cores",
]


def find(name: str) -> Device | None:
    """Device called ``name``; None if there is none."""
    return next((device for device in DEVICES if device.name == name), None)


def recognise(machine: Machine) -> Device:
    """First device in DEVICES that matches ``machine``. The last device, ``cpu``, matches every machine."""
    return next(device for device in DEVICES if device.matches(machine))
