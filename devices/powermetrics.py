"""Power of a Mac's chip, from the command powermetrics of macOS. It needs root: run the measurement with sudo."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache

from berxit.devices.channels import Read

COMMAND = ("powermetrics", "--samplers", "cpu_power", "--sample-rate", "100", "--buffer-size", "1")
LONGEST_S = 1.0
"""Age from which a value is not used: the command stopped."""
_LINE = re.compile(r"(CPU|GPU|ANE) Power: *([0-9.]+) *(m?)W")


def chip_power_channels() -> Mapping[str, Read]:
    """Watts of the CPU, the GPU and the Neural Engine; empty on another system, and without root."""
    if sys.platform != "darwin" or os.geteuid() != 0 or shutil.which(COMMAND[0]) is None:
        return {}
    latest = _running()
    return {name: latest.channel(name) for name in ("CPU", "GPU", "ANE")}


class LatestPower:
    """The latest values in the output of powermetrics."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, float]] = {}
        """Name -> time, watts."""

    def follow(self, lines: Iterable[str]) -> None:
        """Reads lines until the output ends."""
        for line in lines:
            if found := _LINE.match(line.strip()):
                watts = float(found[2]) * (1e-3 if found[3] else 1.0)
                self._values[found[1]] = time.monotonic(), watts

    def channel(self, name: str) -> Read:
        """Reads one value; None before the first one, and if powermetrics stopped."""

        def read() -> float | None:
            at, watts = self._values.get(name, (-LONGEST_S, 0.0))
            return watts if time.monotonic() - at < LONGEST_S else None

        return read


@lru_cache(maxsize=1)
def _running() -> LatestPower:
    """Starts powermetrics once per process. It ends with the process."""
    latest = LatestPower()
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    atexit.register(process.terminate)
    assert process.stdout is not None
    threading.Thread(target=latest.follow, args=(process.stdout,), name="powermetrics", daemon=True).start()
    return latest
