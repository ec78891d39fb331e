"""Which device a bundle runs on: the name the user typed, or this machine, checked against what the bundle needs."""

from __future__ import annotations

from berxit import devices
from berxit.runtime.errors import BerxitError, InputError


def choose_device(name: str, target: str) -> devices.Device:
    """``device_here``, if it runs bundles made for ``target``. Raises InputError where it does not."""
    device = device_here(name)
    if target not in device.targets:
        others = [other for other in devices.DEVICES if target in other.targets]
        ways = {other.how_to_get_there: other.name for other in others}  # the most general device of each way
        raise InputError(
            f"the bundle was exported for '{target}', and device '{device.name}' runs {' or '.join(device.targets)}."
            f" {'. '.join(f'For {name}: {way}' for way, name in ways.items())}"
        )
    return device


def device_here(name: str) -> devices.Device:
    """The device called ``name`` ("auto": this machine), if it is this machine.

    Raises InputError for an unknown name, BerxitError on another machine.
    """
    machine = devices.this_machine()
    device = devices.recognise(machine) if name == "auto" else devices.find(name)
    if device is None:
        raise InputError(f"unknown device '{name}': choose auto, {', '.join(d.name for d in devices.DEVICES)}")
    if not device.is_this(machine):
        raise BerxitError(
            f"device '{device.name}' is not this machine ({machine}): {device.how_to_get_there}, or use --device auto"
        )
    return device
