"""Power, clock, temperature and throttling of an NVIDIA GPU, from the driver's library NVML. Needs no package.

A machine with several GPUs has no channels: NVML numbers them differently from CUDA, so a channel could be that of
another GPU than the one that runs the model.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache

from berxit.devices.channels import Read

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_TEMPERATURE_GPU, _CLOCK_GRAPHICS = 0, 0
THROTTLED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown (driver)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksThrottleReasons that are limits, not settings of the user or an idle GPU."""


def power_channels() -> Mapping[str, Read]:
    """Watts of the GPU board."""
    return _channel(lambda gpu: gpu.read("nvmlDeviceGetPowerUsage", ctypes.c_uint), 1e-3)


def temperature_channels() -> Mapping[str, Read]:
    """Temperature of the GPU, in degrees C."""
    return _channel(lambda gpu: gpu.read("nvmlDeviceGetTemperature", ctypes.c_uint, _TEMPERATURE_GPU))


def clock_channels() -> Mapping[str, Read]:
    """Clock of the GPU, in MHz."""
    return _channel(lambda gpu: gpu.read("nvmlDeviceGetClockInfo", ctypes.c_uint, _CLOCK_GRAPHICS))


def throttling_channels() -> Mapping[str, Read]:
    """One channel per reason: 1 while it limits the clock, else 0."""
    gpu = _the_gpu()
    if gpu is None or gpu.throttle_reasons() is None:
        return {}

    def channel(bit: int) -> Read:
        def read() -> float | None:
            reasons = gpu.throttle_reasons()
            return None if reasons is None else float(bool(reasons & bit))

        return read

    return {f"GPU {name}": channel(bit) for bit, name in THROTTLED.items()}


class _Gpu:
    """The only GPU of the machine."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle

    def read(self, function: str, kind: type, *arguments: int) -> int | None:
        """The value that an NVML function stores; None if this GPU or driver does not support it."""
        value = kind()
        call = getattr(self._library, function, None)
        if call is None or call(self._handle, *arguments, ctypes.byref(value)) != 0:
            return None
        return int(value.value)

    def throttle_reasons(self) -> int | None:
        return self.read("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)


@lru_cache(maxsize=1)
def _the_gpu() -> _Gpu | None:
    """None without a driver, and with another number of GPUs than one."""
    try:
        library = ctypes.CDLL(LIBRARY)
        count, handle = ctypes.c_uint(), ctypes.c_void_p()
        if library.nvmlInit_v2() != 0 or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return None
        if count.value != 1 or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0:
            return None
    except (OSError, AttributeError):  # No driver, or one that is too old.
        return None
    return _Gpu(library, handle)


def _channel(value_of: Callable[[_Gpu], int | None], scale: float = 1.0) -> Mapping[str, Read]:
    """A channel of the GPU; none if it does not support the value, as most values of a Jetson."""
    gpu = _the_gpu()
    if gpu is None or value_of(gpu) is None:
        return {}

    def read() -> float | None:
        value = value_of(gpu)
        return None if value is None else value * scale

    return {"gpu0": read}
