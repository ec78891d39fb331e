"""Hardware and operating system of this machine, read from the operating system. Unknown fields are empty or 0."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    system: str
    """Linux, Darwin, Windows."""
    architecture: str
    """x86_64, aarch64, arm64."""
    processor: str
    """Model name of the CPU."""
    cores: int
    """CPU cores that this process may use."""
    memory_gib: float
    """Physical memory in GiB; 0 if unknown."""
    board: str
    """Model of a single-board computer, such as a Jetson or a Raspberry Pi, from the device tree."""
    gpu: str
    """Names of the NVIDIA GPUs, comma-separated."""

    def __str__(self) -> str:
        parts = [f"{self.system} {self.architecture}", self.board or self.processor, self.gpu, f"{self.cores} cores"]
        return ", ".join(part for part in parts if part)


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        processor=_processor(),
        cores=usable_cores(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        board=_read("/proc/device-tree/model"),
        gpu=_gpu(),
    )


def usable_cores() -> int:
    """CPU cores that this process may use; fewer than the machine has under taskset or in some containers."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads(root: Path = Path("/")) -> int:
    """Default number of CPU threads for one small model at batch size 1.

    The smallest of: 4, because a layer of a small model does not scale to more threads and the app needs the other
    cores; the physical cores, because the threads of one core share its arithmetic units; and the CPU quota of the
    container, because a container that exceeds its quota is suspended. ``root``: folder that contains /proc and /sys.
    """
    return max(1, int(min(4, physical_cores(root), cpu_quota(root))))


def physical_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may use; logical CPUs if the system does not report the core of each CPU."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    cpus = root / "sys/devices/system/cpu"
    siblings = (_read(str(cpus / f"cpu{cpu}/topology/thread_siblings_list")) for cpu in os.sched_getaffinity(0))
    known = [text for text in siblings if text]
    return len(set(known)) if known else usable_cores()


def cpu_quota(root: Path = Path("/")) -> float:
    """CPU quota of this process's control groups, in CPUs (docker --cpus); infinite without a limit."""
    granted = [math.inf]
    for line in _read(str(root / "proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # cgroup version 1 has one folder per controller, version 2 has one for all
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        path = top / group.lstrip("/")
        for folder in (path, *path.parents):
            if folder.is_relative_to(top):
                granted.append(_granted(folder))
    return min(granted)


def _granted(group: Path) -> float:
    limits = _read(str(group / "cpu.max")).split()
    limits = limits or [_read(str(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period")]
    try:
        quota, period = map(int, limits)
    except ValueError:  # "max" (no limit), or the file does not exist
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\x00\n ")
    except OSError:
        return ""


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor()


def _memory_bytes() -> int:
    if platform.system() == "Darwin":
        return int(_run("sysctl", "-n", "hw.memsize") or 0)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _gpu() -> str:
    if platform.system() == "Darwin":
        return ""
    # Reading the driver's files is immediate; nvidia-smi can take a second.
    cards = [_read(str(path)) for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    names = [line.partition(":")[2].strip() for card in cards for line in card.splitlines() if line.startswith("Model")]
    return ", ".join(names or _run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines())
