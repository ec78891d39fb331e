"""Time of one sample of all sensors on this machine. Goal: below 1% of the interval between two samples.

    python benchmarks/sampling_cost.py [--root FOLDER] [--samples 500]

``--root`` is a folder with another machine's files: /sys, /proc and /etc.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from berxit import devices
from berxit.devices.sampling import INTERVAL
from berxit.runtime.console import run


@click.command()
@click.option("--root", type=click.Path(path_type=Path), default=Path("/"))
@click.option("--samples", default=500, show_default=True)
def command(root: Path, samples: int) -> None:
    channels = [sensor.channels(root) for sensor in devices.SENSORS]
    start, busy = time.perf_counter(), time.thread_time()
    for _ in range(samples):
        for found in channels:
            devices.values_of(found)
    elapsed, used = (
        1e6 * (now - then) / samples for now, then in ((time.perf_counter(), start), (time.thread_time(), busy))
    )
    click.echo(
        f"{sum(map(len, channels))} channels: {elapsed:.0f} microseconds per sample, {used:.0f} of them on the CPU:"
        f" {1e-4 * used / INTERVAL:.3f}% of one core at {1 / INTERVAL:.0f} samples per second"
    )


if __name__ == "__main__":
    run(command)
