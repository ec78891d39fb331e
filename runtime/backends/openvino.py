"""OpenVINO on the CPU, over the bundle that ONNX Runtime reads: one compiled model per segment file.

OpenVINO compiles a segment once for every batch and length. It computes in fp32 unless told otherwise, so that it
answers as the checkpoint does; ``openvino-bf16`` is the same in bf16, twice as fast where the CPU has bf16 and refused
where it has not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy.typing as npt
import openvino as ov

from devices import default_threads
from runtime.backends.host import HostBackend, Run, opened_once
from runtime.bundle import Manifest, Segment
from runtime.errors import BerxitError


@dataclass(frozen=True)
class _Model:
    """A compiled file and its idle infer requests: one is enough unless several threads ask at once."""

    compiled: ov.CompiledModel
    idle: deque[ov.InferRequest] = field(default_factory=deque)

    def run(self, named: dict[str, npt.NDArray]) -> tuple[npt.NDArray, ...]:
        """The outputs in the file's order. Copies, because the next run of the request writes over its own."""
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        found = request.infer(named, share_inputs=True, share_outputs=False)
        self.idle.append(request)
        return found.to_tuple()


class OpenVinoBackend(HostBackend):
    """Runs segments with OpenVINO's CPU plug-in; the loop's Backend."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int, precision: str, *, lazy: bool = False) -> None:
        self.name = "openvino" if precision == "f32" else f"openvino-{precision}"
        core = the_core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BerxitError("this CPU has no bf16: run the bundle with --backend openvino")
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # the app around us may be busy on the cores we would be tied to
        }

        def open_file(segment: Segment) -> Run:
            path = folder / segment.file
            key = (path.resolve(), segment.sha256, threads, precision)
            model: _Model = opened_once(key, lambda: _Model(_compile(core, path, options)))
            return model.run

        super().__init__(folder, manifest, threads, open_file, lazy=lazy)


def open_backend(
    folder: Path, manifest: Manifest, threads: int | None, precision: str = "f32", *, lazy: bool = False
) -> OpenVinoBackend:
    """``precision``: f32 or bf16, what the segments compute in, whatever their files hold."""
    return OpenVinoBackend(folder, manifest, threads or default_threads(), precision, lazy=lazy)


@cache
def the_core() -> ov.Core:
    """One for the process. Each has a CPU plug-in of its own, and the one that goes last leaves the main thread the
    signal stack of one that went before (OpenVINO 2026.4): the next Ctrl-C would end the process by SIGSEGV."""
    return ov.Core()


def _compile(core: ov.Core, path: Path, options: dict[str, object]) -> ov.CompiledModel:
    try:
        return core.compile_model(core.read_model(path), "CPU", options)
    except Exception as error:  # OpenVINO raises bare RuntimeError with pages of text
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise BerxitError(
            f"OpenVINO {ov.__version__} cannot load {path}: {reason}. Take --backend onnxruntime, or export again"
        ) from error
