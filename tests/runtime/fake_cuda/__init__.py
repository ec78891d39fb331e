"""Fake CUDA driver (driver.cpp) for the real cuda-python, in this process or in a child process."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCE = Path(__file__).parent / "driver.cpp"
KINDS = ("memory", "pinned", "stream", "event", "graph", "launchable")
"""Kinds of resources that the driver counts."""
LAUNCH_FAILED = 719


@lru_cache(maxsize=1)
def library() -> Path:
    """Compiled driver, in a folder of its own for LD_LIBRARY_PATH. Skips the test if nothing can compile it."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("the fake CUDA driver needs Linux and a C++ compiler (g++)")
    path = ROOT / "build" / "fake_cuda" / sha256(SOURCE.read_bytes()).hexdigest()[:16] / "libcuda.so.1"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as scratch:  # Another test process may compile it, too.
            made = Path(scratch) / path.name
            flags = ("-std=c++17", "-O0", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{path.name}")
            subprocess.run((compiler, *flags, "-o", made, SOURCE), check=True)
            made.replace(path)
    return path


def run_with_driver(
    script: str, *arguments: str, python: str = sys.executable, paths: tuple[Path, ...] = (), **settings: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a child process that finds the fake driver.

    ``settings``: environment variables of the driver without FAKE_CUDA_, such as ``driver="12.2"``. ``paths``: folders
    that the child imports from, before the project's.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAKE_CUDA_")}
    environment |= {f"FAKE_CUDA_{name.upper()}": value for name, value in settings.items()}
    environment["LD_LIBRARY_PATH"] = str(library().parent)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (*paths, ROOT)))
    command = (python, "-c", script, *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


class Driver:
    """The fake driver of this process. ``calls``, ``live`` and ``released`` count since the last ``reset``."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        """Exceptions of launched work; the driver reports each as a launch failure."""
        self._lib = ctypes.CDLL(str(library()), mode=ctypes.RTLD_GLOBAL)
        for function in ("fakeLive", "fakeCalls", "fakeCopiesOut"):
            getattr(self._lib, function).restype = ctypes.c_long
        for function in ("fakeReleased", "fakeFunctions"):
            getattr(self._lib, function).restype = ctypes.c_char_p
        self._lib.fakeHas.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
        self._works: list[Callable[[], None]] = []
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_size_t)(self._work)
        self._lib.cuLaunchHostFunc.argtypes = (ctypes.c_size_t, type(self._run), ctypes.c_size_t)
        self._lib.cuStreamIsCapturing.argtypes = (ctypes.c_size_t, ctypes.POINTER(ctypes.c_int))
        self._lib.cuStreamSynchronize.argtypes = (ctypes.c_size_t,)

    def reset(self) -> None:
        """Forgets all resources, counts and failures."""
        self._lib.fakeReset()
        self._works.clear()
        self.errors.clear()

    def fail(self, failures: str) -> None:
        """Failing calls from now on, as FAKE_CUDA_FAIL has them; empty: none."""
        self._lib.fakeFail(failures.encode())

    def functions(self) -> list[str]:
        """Names of the driver functions that were called, without their suffixes (_v2)."""
        return self._lib.fakeFunctions().decode().split()

    def calls(self, function: str) -> int:
        """Number of calls of a driver function, such as cuMemAlloc."""
        return int(self._lib.fakeCalls(function.encode()))

    def copies_out(self) -> int:
        """Number of copies to the host that ran, also as part of a graph."""
        return int(self._lib.fakeCopiesOut())

    def live(self) -> dict[str, int]:
        """Kind of resource -> number that exists now, without kinds of which there are none."""
        counts = {kind: int(self._lib.fakeLive(kind.encode())) for kind in KINDS}
        return {kind: count for kind, count in counts.items() if count}

    def released(self) -> list[str]:
        """Kinds of released resources in order, and "busy" for memory that was freed while work was enqueued."""
        return self._lib.fakeReleased().decode().split()

    def forget_released(self) -> None:
        self._lib.fakeForgetReleased()

    def note(self, kind: str) -> None:
        """Adds an object of the test to ``released``."""
        self._lib.fakeNote(kind.encode())

    def launch(self, stream: int, work: Callable[[], None]) -> None:
        """Enqueues Python code as a kernel."""
        self._works.append(work)
        status = self._lib.cuLaunchHostFunc(stream, self._run, len(self._works) - 1)
        assert status == 0, f"launch failed with {status}"

    def capturing(self, stream: int) -> bool:
        status = ctypes.c_int()
        assert self._lib.cuStreamIsCapturing(stream, status) == 0
        return status.value != 0

    def synchronize(self, stream: int) -> int:
        """Status of cuStreamSynchronize. During a capture it fails, and invalidates the capture."""
        return int(self._lib.cuStreamSynchronize(stream))

    def at(self, address: int, size: int) -> np.ndarray:
        """View of ``size`` bytes that the GPU can address, from one allocation."""
        assert self._lib.fakeHas(address, size, 1), f"illegal address {address:#x}, {size} bytes"
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def _work(self, index: int) -> None:
        try:
            self._works[index]()
        except BaseException as error:
            self.errors.append(error)
            self._lib.fakeBreak(LAUNCH_FAILED)


NO_DEVICE = "cuDeviceGetCount=100"
"""Failure of a machine without a GPU."""


def driver_of_this_process() -> Driver:
    """The fake driver with its GPU. Skips the test if cuda-python cannot run on it."""
    driver = loaded_driver()
    driver.fail("")
    return driver


@lru_cache(maxsize=1)
def loaded_driver() -> Driver:
    """The fake driver, which must be loaded before cuda-python looks for one. Skips as ``driver_of_this_process``."""
    version = pytest.importorskip("cuda.bindings", reason="cuda-python is not installed here").__version__
    if tuple(map(int, version.split(".")[:2])) > (12, 8):
        pytest.skip(f"cuda-python {version} calls undocumented functions of the driver: install the extra dev")
    maps = Path("/proc/self/maps")
    if maps.exists() and "libcuda.so" in maps.read_text():
        pytest.skip("this process has loaded the NVIDIA driver of this machine")
    return Driver()
