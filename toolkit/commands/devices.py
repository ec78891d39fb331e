"""``berxit devices``: the known devices, and the one that this machine is."""

from __future__ import annotations

import click

from berxit import devices
from berxit.runtime.console import debug_option
from berxit.runtime.tables import markdown_table


@click.command("devices")
@debug_option
def command() -> None:
    """List the known devices, and mark the one that this machine is."""
    machine = devices.this_machine()
    here = devices.recognise(machine)
    rows = [
        [
            device.name,
            device.description,
            ", ".join(device.targets),
            device.precision,
            "this machine" if device is here else "",
        ]
        for device in devices.DEVICES
    ]
    click.echo(markdown_table(["device", "what it is", "runs bundles for", "precision", ""], rows))
    click.echo(f"\nthis machine: {machine}, {machine.memory_gib} GiB of memory: --device {here.name}")
