"""OpenVINO on the CPU, over the bundle that ONNX Runtime reads: one compiled model per segment file.

OpenVINO compiles a segment once for every batch and length. It computes in fp32 unless told otherwise, so that it
answers as the checkpoint does; ``openvino-bf16`` is the same in bf16, twice as fast where the CPU has bf16 and refused
where it has not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import openvino as ov

from devices import default_threads
from runtime.bundle import Manifest, Segment, read_tensor
from runtime.errors import BerxitError
from runtime.policies import Bools, Floats
from runtime.tokenization import TokenBatch


class State(NamedTuple):
    """B rows on their way through the layers."""

    tensors: dict[str, npt.NDArray]
    """Role -> what the next layer reads: hidden (B, S, d), and what the embeddings made for all layers."""
    lengths: npt.NDArray[np.int64]
    """(B,) tokens per row."""


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


@dataclass(frozen=True)
class _Step:
    """A segment: roles (hidden, logits, ...) tied to the names in its file."""

    model: _Model
    inputs: dict[str, str]
    output_roles: tuple[str, ...]
    constants: dict[str, npt.NDArray]

    def run(self, feeds: dict[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        named = {name: feeds[role] for role, name in self.inputs.items()}
        return dict(zip(self.output_roles, self.model.run({**named, **self.constants}), strict=True))


class OpenVinoBackend:
    """Runs segments with OpenVINO's CPU plug-in; the loop's Backend."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int, precision: str) -> None:
        self.name = "openvino" if precision == "f32" else f"openvino-{precision}"
        self.layers = manifest.model.layers
        self.threads = threads
        core = ov.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BerxitError("this CPU has no bf16: run the bundle with --backend openvino")
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # the app around us may be busy on the cores we would be tied to
        }
        models: dict[str, _Model] = {}
        steps = []
        for segment in manifest.segments:
            if segment.file not in models:
                models[segment.file] = _Model(_compile(core, folder / segment.file, options))
            steps.append(_tie(segment, models[segment.file], folder))
        self._embeddings, *self._layers = steps
        self._length_axes = {
            o.role: [axis for axis, size in enumerate(o.shape) if size == "length"]
            for o in manifest.segments[0].outputs
        }

    def embed(self, batch: TokenBatch) -> State:
        outputs = self._embeddings.run(
            {
                "input_ids": batch.input_ids,
                "token_type_ids": batch.token_type_ids,
                "attention_mask": batch.attention_mask,
            }
        )
        return State(outputs, batch.lengths)

    def layer(self, layer: int, state: State) -> tuple[State, Floats, Floats | None]:
        outputs = self._layers[layer - 1].run(state.tensors)
        next_state = State({**state.tensors, "hidden": outputs["hidden"]}, state.lengths)
        return next_state, outputs["logits"], outputs.get("lte")

    def keep(self, state: State, rows: Bools) -> State:
        lengths = state.lengths[rows]
        longest = int(lengths.max())  # padding that no remaining row needs goes too
        return State({role: self._trim(role, array[rows], longest) for role, array in state.tensors.items()}, lengths)

    def _trim(self, role: str, array: npt.NDArray, length: int) -> npt.NDArray:
        for axis in self._length_axes[role]:
            array = array.take(range(length), axis)
        return array


def open_backend(folder: Path, manifest: Manifest, threads: int | None, precision: str = "f32") -> OpenVinoBackend:
    """``precision``: f32 or bf16, what the segments compute in, whatever their files hold."""
    return OpenVinoBackend(folder, manifest, threads or default_threads(), precision)


def _compile(core: ov.Core, path: Path, options: dict[str, object]) -> ov.CompiledModel:
    try:
        return core.compile_model(core.read_model(path), "CPU", options)
    except Exception as error:  # OpenVINO raises bare RuntimeError with pages of text
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise BerxitError(
            f"OpenVINO {ov.__version__} cannot load {path}: {reason}. Take --backend onnxruntime, or export again"
        ) from error


def _tie(segment: Segment, model: _Model, folder: Path) -> _Step:
    return _Step(
        model,
        inputs={i.role: i.name for i in segment.inputs if i.name not in segment.constants},
        output_roles=tuple(o.role for o in segment.outputs),
        constants={name: read_tensor(folder, tensor) for name, tensor in segment.constants.items()},
    )
