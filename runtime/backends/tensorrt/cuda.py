"""The few calls of the CUDA runtime that the back end makes, through cuda-python. Every failure is a BerxitError."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import BerxitError

NO_GPU = "run this on the Jetson, or on a machine whose nvidia-smi shows a GPU"


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]
    """Compute capability: (8, 7) on an Orin."""


class Cuda:
    """``runtime``: cuda.bindings.runtime, whose functions answer (error, value, ...)."""

    def __init__(self, runtime: ModuleType) -> None:
        self._runtime: Any = runtime

    @classmethod
    def open(cls) -> Cuda:
        """Raises BerxitError without cuda-python, or without a GPU and its driver."""
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BerxitError(
                "this needs cuda-python, which is not installed here: pip install 'cuda-python>=12.6' (the release of"
                " your CUDA: 12.6 on JetPack 6)"
            ) from error
        cuda = cls(runtime)
        if cuda.call("cudaGetDeviceCount")[0] < 1:
            raise BerxitError(f"CUDA finds no GPU here: {NO_GPU}")
        return cuda

    def call(self, function: str, *arguments: Any) -> Any:
        """What the function gives back: a tuple, or its only value left as a tuple of one."""
        error, *values = getattr(self._runtime, function)(*arguments)
        if int(error) != 0:
            name = getattr(error, "name", str(error))
            raise BerxitError(f"CUDA's {function} failed with {name}: {NO_GPU}, with memory and a driver that fits")
        return values

    def gpu(self) -> Gpu:
        properties = self.call("cudaGetDeviceProperties", 0)[0]
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        return Gpu(name.rstrip("\x00"), (int(properties.major), int(properties.minor)))

    def stream(self) -> int:
        return int(self.call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)[0])

    def event(self) -> Any:
        return self.call("cudaEventCreateWithFlags", self._runtime.cudaEventDisableTiming)[0]

    def allocate(self, size: int) -> int:
        """Bytes on the GPU, for as long as the process lives."""
        return int(self.call("cudaMalloc", max(size, 1))[0])

    def pinned(self, size: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Bytes on the host that the GPU copies from and to by itself: address, and a view of them."""
        address = int(self.call("cudaMallocHost", size)[0])
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def upload(self, array: npt.NDArray) -> int:
        """A copy of the array on the GPU; done when this returns."""
        contiguous = np.ascontiguousarray(array)
        address = self.allocate(contiguous.nbytes)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpy", address, contiguous.ctypes.data, contiguous.nbytes, kind)
        return address

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        self.call("cudaMemcpyAsync", device, host, size, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        self.call("cudaMemcpyAsync", host, device, size, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def move(self, to: int, device: int, size: int, stream: int) -> None:
        """Within the GPU; the two may not overlap."""
        self.call("cudaMemcpyAsync", to, device, size, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice, stream)

    def wait(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", stream)

    def mark(self, event: Any, stream: int) -> None:
        self.call("cudaEventRecord", event, stream)

    def wait_for(self, event: Any) -> None:
        self.call("cudaEventSynchronize", event)

    def start_capture(self, stream: int) -> None:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        """What was enqueued since, as one graph to launch."""
        graph = self.call("cudaStreamEndCapture", stream)[0]
        return self.call("cudaGraphInstantiate", graph, 0)[0]

    def launch(self, graph: Any, stream: int) -> None:
        self.call("cudaGraphLaunch", graph, stream)
