"""What a device is, which one this is, and its sensors. Imports nothing of the project."""

from berxit.devices.catalogue import DEVICES, Device
from berxit.devices.machine import Machine, default_threads, this_machine, usable_cores
from berxit.devices.sensors import Reading, read_sensors, resident_mib

__all__ = [
    "DEVICES",
    "Device",
    "Machine",
    "Reading",
    "default_threads",
    "find",
    "read_sensors",
    "recognise",
    "resident_mib",
    "this_machine",
    "usable_cores",
]


def find(name: str) -> Device | None:
    """The device of that name, if there is one."""
    return next((device for device in DEVICES if device.name == name), None)


def recognise(machine: Machine) -> Device:
    """What ``machine`` is: the most special device that fits. The last one, a CPU, always does."""
    return next(device for device in DEVICES if device.is_this(machine))
