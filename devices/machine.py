"""Hardware and operating system of this machine, read from the operating system. Unknown fields are empty or 0."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from berxit.devices.cuda_driver import driver_cuda_version, has_jetson_gpu

CUDA_13_DRIVER = 580
"""Major version of the first driver for CUDA 13."""


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
    l4t: str = ""
    """Release of Jetson Linux, such as 36.4.3."""
    jetpack: int = 0
    """Major version of JetPack that the driver of a Jetson belongs to; 0 if unknown or another machine."""
    driver: str = ""
    """Version of the NVIDIA driver, such as 540.4.0."""
    cuda: str = ""
    """Latest CUDA version that the driver supports, such as 12.6. Only ``with_cuda`` reads it."""

    def __str__(self) -> str:
        parts = [f"{self.system} {self.architecture}", self.board or self.processor, self.gpu, f"{self.cores} cores"]
        return ", ".join(part for part in parts if part)

    @property
    def supports_cuda_13(self) -> bool:
        """True if the driver supports CUDA 13; False if it is older or unknown."""
        if self.cuda:
            return _numbers(self.cuda) >= (13,)
        return self.jetpack >= 7 or _numbers(self.driver) >= (CUDA_13_DRIVER,)

    @property
    def software(self) -> str:
        """Releases of Jetson Linux, the NVIDIA driver and CUDA, as far as they are known."""
        known = {"L4T": self.l4t, "driver": self.driver, "CUDA": self.cuda}
        return ", ".join(f"{name} {version}" for name, version in known.items() if version)


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    return read_machine()


def with_cuda(machine: Machine) -> Machine:
    """This machine, with the CUDA version of its driver. Loads the driver's library into this process."""
    found = driver_cuda_version()
    return replace(machine, cuda=".".join(map(str, found))) if found else machine


def read_machine(
    root: Path = Path("/"),
    *,
    architecture: str = platform.machine(),
    kernel: str = platform.release(),
    jetson_gpu: Callable[[], bool] = has_jetson_gpu,
) -> Machine:
    """The machine whose files are below ``root``.

    ``kernel``: release of its kernel. ``jetson_gpu``: returns True if its GPU is a Jetson's; called only if neither a
    file nor the kernel identifies the board.
    """
    read = partial(_read, root=root)
    l4t, driver = _l4t(read("etc/nv_tegra_release")), _driver(read("proc/driver/nvidia/version"))
    jetson_linux = bool(l4t) or "-tegra" in kernel
    # A container masks the device tree. jetson-containers writes the model to this file and mounts it.
    copied = read("tmp/nv_jetson_model") if architecture == "aarch64" else ""
    board = read("proc/device-tree/model") or (copied if re.match("NVIDIA|Jetson", copied) else "")
    if not board and architecture == "aarch64" and (jetson_linux or jetson_gpu()):
        board = "NVIDIA Jetson"
    return Machine(
        system=platform.system(),
        architecture=architecture,
        processor=_processor(read("proc/cpuinfo")),
        cores=usable_cores(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        board=board,
        gpu=_gpu(root),
        l4t=l4t,
        jetpack=_jetpack(driver, l4t, kernel) if is_jetson(board) else 0,
        driver=driver,
    )


def is_jetson(board: str) -> bool:
    """True for the board of any Jetson. JetPack 5 omits "Jetson" from the names of some boards."""
    return any(word in board.lower() for word in ("jetson", "orin", "xavier"))


def _l4t(release: str) -> str:
    """36.4.3 from the first line of /etc/nv_tegra_release: ``# R36 (release), REVISION: 4.3, ...``."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release)
    return f"{found[1]}.{found[2]}" if found else ""


def _jetpack(driver: str, l4t: str, kernel: str) -> int:
    """Major version of JetPack; 0 if unknown. The driver comes first, because a container can contain another
    release file than its host."""
    for version, first_of in (
        (driver, {7: (CUDA_13_DRIVER,), 6: (540,), 5: (34,)}),
        (l4t, {7: (38,), 6: (36,), 5: (34,)}),
        (kernel, {7: (6,), 6: (5, 15), 5: (5, 10)}),
    ):
        if known := _numbers(version):
            return next((jetpack for jetpack, first in first_of.items() if known >= first), 4)
    return 0


def _numbers(version: str) -> tuple[int, ...]:
    """(5, 15, 148) of "5.15.148-tegra"."""
    found = re.match(r"[\d.]*\d", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _driver(version: str) -> str:
    """540.4.0 from the first line of /proc/driver/nvidia/version: ``NVRM version: ... 540.4.0  Release Build ...``."""
    found = re.search(r"\s(\d+(?:\.\d+)+)\s", version.partition("\n")[0])
    return found[1] if found else ""


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


def _read(path: str, root: Path = Path("/")) -> str:
    try:
        return (root / path).read_text(encoding="utf-8", errors="replace").strip("\x00\n ")
    except OSError:
        return ""


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
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


def _gpu(root: Path) -> str:
    if platform.system() == "Darwin":
        return ""
    # Reading the driver's files is immediate; nvidia-smi can take a second.
    cards = [_read(str(path)) for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))]
    names = [line.partition(":")[2].strip() for card in cards for line in card.splitlines() if line.startswith("Model")]
    return ", ".join(names or _run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines())
