"""Device that a bundle runs on: chosen by name or detected, and checked against the bundle's target."""

from __future__ import annotations

from berxit import devices
from berxit.runtime.errors import BerxitError, InputError


def choose_device(name: str, target: str) -> devices.Device:
    """``device_here`` of ``name``. Raises InputError unless that device runs bundles exported for ``target``."""
    device = device_here(name)
    if target not in device.targets:
        others = [other for other in devices.DEVICES if target in other.targets]
        remedies = {other.remedy: other.name for other in others}  # of several devices, the last and most general
        raise InputError(
            f"the bundle was exported for '{target}', and device '{device.name}' runs {' or '.join(device.targets)}."
            f" {'. '.join(f'For {name}: {remedy}' for remedy, name in remedies.items())}"
        )
    return device


def device_here(name: str) -> devices.Device:
    """Device called ``name``; for "auto", the device that matches this machine.

    Raises InputError for an unknown name, BerxitError if this machine is another device.
    """
    machine = devices.this_machine()
    device = devices.recognise(machine) if name == "auto" else devices.find(name)
    if device is None:
        raise InputError(f"unknown device '{name}': choose auto, {', '.join(d.name for d in devices.DEVICES)}")
    if not device.matches(machine):
        raise BerxitError(
            f"device '{device.name}' is not this machine ({machine}): {device.remedy}, or use --device auto"
        )
    return device
