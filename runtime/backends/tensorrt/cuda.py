"""Calls of the CUDA runtime, through cuda-python. Every failure is a BerxitError."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.devices import install_command
from berxit.runtime.errors import BerxitError

NO_GPU = "run this on the Jetson, or on a machine whose nvidia-smi shows a GPU"
DRIVER_TOO_OLD = ("cudaErrorInsufficientDriver", "cudaErrorCallRequiresNewerDriver")
REMEDIES = {
    "cudaErrorNoDevice": NO_GPU,
    "cudaErrorMemoryAllocation": "stop other programs that use the GPU, or export with a smaller --max-batch",
    "cudaErrorIllegalAddress": "start this program again, because CUDA runs nothing in this process any more",
    "cudaErrorLaunchFailure": "start this program again, because CUDA runs nothing in this process any more",
}
"""Name of an error -> its remedy."""
OTHER_REMEDY = "start this program again, and check the GPU and its driver (nvidia-smi; dmesg on a Jetson)"


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]
    """Compute capability: (8, 7) on an Orin."""
    multiprocessors: int = 0
    """Distinguishes the Orin boards, which have the same name and compute capability. 0 if unknown."""


def no_gpu() -> str | None:
    """The reason why this machine has no usable GPU; None if it has one."""
    try:
        Cuda.open()
    except BerxitError as error:
        return str(error)
    return None


class Cuda:
    """``runtime``: cuda.bindings.runtime, whose functions return (error, value, ...).

    Owns the streams, events and memory that it creates, until ``close``. Its methods raise BerxitError if CUDA fails.
    """

    def __init__(self, runtime: ModuleType) -> None:
        self._runtime: Any = runtime
        self._owned: list[tuple[str, Any]] = []
        """Function that releases a resource, and the resource."""

    @classmethod
    def open(cls) -> Cuda:
        """Raises BerxitError without cuda-python, or without a GPU and its driver."""
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            how = install_command("tensorrt")
            raise BerxitError(f"this needs cuda-python, which is not installed here: {how}") from error
        cuda = cls(runtime)
        if cuda.call("cudaGetDeviceCount")[0] < 1:
            raise BerxitError(f"CUDA finds no GPU here: {NO_GPU}")
        return cuda

    def call(self, function: str, *arguments: Any) -> Any:
        """The values that the function returns, after its error code."""
        try:
            error, *values = getattr(self._runtime, function)(*arguments)
        except RuntimeError as reason:  # cuda-python 12: there is no driver, or it does not have the function
            raise BerxitError(f"CUDA's {function} failed ({reason}): {NO_GPU}") from reason
        if int(error) != 0:
            raise BerxitError(self._failure(function, getattr(error, "name", str(error))))
        return values

    def _failure(self, function: str, error: str) -> str:
        if error not in DRIVER_TOO_OLD:
            return f"CUDA's {function} failed with {error}: {REMEDIES.get(error, OTHER_REMEDY)}"
        # These two functions work in this state.
        package, driver = (self.call(f"cuda{each}GetVersion")[0] for each in ("Runtime", "Driver"))
        if driver == 0:  # cuda-python 13; for 12, see ``call``
            return f"CUDA finds no NVIDIA driver here: {NO_GPU}"
        return (
            f"cuda-python is built for CUDA {_dotted(package)}, and the driver here supports CUDA up to"
            f" {_dotted(driver)}: {install_command('tensorrt')}"
        )

    def gpu(self) -> Gpu:
        properties = self.call("cudaGetDeviceProperties", 0)[0]
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        capability = (int(properties.major), int(properties.minor))
        return Gpu(name.rstrip("\x00"), capability, int(properties.multiProcessorCount))

    def stream(self) -> int:
        stream = int(self.call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)[0])
        return self._own("cudaStreamDestroy", stream)

    def event(self) -> Any:
        event = self.call("cudaEventCreateWithFlags", self._runtime.cudaEventDisableTiming)[0]
        return self._own("cudaEventDestroy", event)

    def allocate(self, size: int) -> int:
        """Address of so many bytes on the GPU."""
        return self._own("cudaFree", int(self.call("cudaMalloc", max(size, 1))[0]))

    def pinned(self, size: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Pinned bytes on the host: their address, and a view of them. The GPU can read and write them at the same
        address (unified addressing), without a copy if it shares the memory of the CPU (a Jetson)."""
        address = self._own("cudaFreeHost", int(self.call("cudaMallocHost", size)[0]))
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def mapped(self, size: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Pinned bytes on the host that the GPU reads and writes in place: their address on the GPU, and a view."""
        address = int(self.call("cudaHostAlloc", size, self._runtime.cudaHostAllocMapped)[0])
        self._own("cudaFreeHost", address)
        view = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return int(self.call("cudaHostGetDevicePointer", address, 0)[0]), view

    def upload(self, array: npt.NDArray, stream: int) -> int:
        """Address of a copy of the array on the GPU, complete on return. It is copied on the stream that will read it:
        a plain cudaMemcpy from pageable memory may return before the GPU has the last bytes, and our stream would not
        wait for them."""
        contiguous = np.ascontiguousarray(array)
        address = self.allocate(contiguous.nbytes)
        self.copy_in(address, contiguous.ctypes.data, contiguous.nbytes, stream)
        self.wait(stream)
        return address

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """If the block raises, releases what it created."""
        before = len(self._owned)
        try:
            yield
        except BaseException:
            self._release(before)
            raise

    def close(self) -> None:
        """Releases everything, the newest first. Errors are ignored: the driver releases the rest with the process."""
        self._release(0)

    def _release(self, kept: int) -> None:
        while len(self._owned) > kept:
            free, thing = self._owned.pop()
            with suppress(BerxitError):
                self.call(free, thing)

    def _own(self, free: str, thing: Any) -> Any:
        self._owned.append((free, thing))
        return thing

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        self.call("cudaMemcpyAsync", device, host, size, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        self.call("cudaMemcpyAsync", host, device, size, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def move(self, to: int, device: int, size: int, stream: int) -> None:
        """Copies within the GPU; the two ranges must not overlap."""
        self.call("cudaMemcpyAsync", to, device, size, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice, stream)

    def wait(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", stream)

    def mark(self, event: Any, stream: int) -> None:
        self.call("cudaEventRecord", event, stream)

    def wait_for(self, event: Any) -> None:
        self.call("cudaEventSynchronize", event)

    def capture(self, enqueue: Callable[[], None], stream: int) -> Any | None:
        """Captures the work that ``enqueue`` puts on the stream as one graph, without running it. None if a part cannot
        be captured; the stream is then unchanged. The caller frees the graph."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        graph = launchable = None
        try:
            try:
                enqueue()
            finally:  # The capture ends in any case.
                graph = self.call("cudaStreamEndCapture", stream)[0]
            launchable = self.call("cudaGraphInstantiate", graph, 0)[0]
        except BerxitError:
            self._runtime.cudaGetLastError()  # Cleared, or TensorRT would report it as its own error.
        finally:
            if graph is not None:
                with suppress(BerxitError):  # The launchable graph does not depend on it.
                    self.call("cudaGraphDestroy", graph)
        return launchable

    def launch(self, graph: Any, stream: int) -> None:
        self.call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: Any) -> None:
        with suppress(BerxitError):
            self.call("cudaGraphExecDestroy", graph)


def _dotted(version: int) -> str:
    """CUDA's version number as text: 12060 -> 12.6."""
    return f"{version // 1000}.{version % 1000 // 10}"
