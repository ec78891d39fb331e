"""Version and GPU of the CUDA driver, read from the driver's own library. Works before any Python package is
installed."""

from __future__ import annotations

import ctypes
import subprocess
import sys

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
JETSON_GPUS = frozenset({(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)})
"""Compute capabilities of Jetson's GPUs: Nano, TX2, Xavier, Orin, and Thor, which CUDA 13 renamed. Other machines have
integrated GPUs, too: the DGX Spark's is (12, 1)."""

_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76
"""CU_DEVICE_ATTRIBUTE_INTEGRATED, _COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""


def driver_cuda_version() -> tuple[int, int] | None:
    """Latest CUDA version that the driver supports, as (major, minor). None without a driver.

    cuDriverGetVersion does not initialize CUDA, so this process can still fork. It also works if a CUDA runtime is too
    new for the driver.
    """
    library, version = _library(), ctypes.c_int()
    if library is None or library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def has_jetson_gpu() -> bool:
    """True if the first GPU is integrated and has the compute capability of a Jetson.

    Attributes need an initialized driver, and a process that initialized it cannot use CUDA after a fork. A child
    process therefore reads them.
    """
    if _library() is None:
        return False
    command = (sys.executable, "-I", __file__)
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None


def _is_jetson_gpu() -> bool:
    """Initializes CUDA in this process and reads the attributes of the first GPU. False if there is none."""
    library, device, value = ctypes.CDLL(LIBRARY), ctypes.c_int(), ctypes.c_int()
    if library.cuInit(0) != 0 or library.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return False
    values = []
    for attribute in (_INTEGRATED, _MAJOR, _MINOR):
        if library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return False
        values.append(value.value)
    integrated, *capability = values
    return integrated == 1 and tuple(capability) in JETSON_GPUS


if __name__ == "__main__":
    sys.exit(0 if _is_jetson_gpu() else 1)
