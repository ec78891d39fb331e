"""OpenVINO on the CPU, over the bundle that ONNX Runtime reads: one compiled model per segment file.

OpenVINO compiles a segment once for every batch size and length. It computes in fp32 by default, so that predictions
equal the checkpoint's. With the option ``bf16`` it computes in bf16, twice as fast on a CPU that supports it; other
CPUs raise an error. Every infer request has its own memory, from which the next segment reads without a copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13

from berxit.devices import default_threads
from berxit.runtime.backends import forking
from berxit.runtime.backends.forking import REMEDY
from berxit.runtime.backends.host import (
    FilesBackend,
    SegmentFile,
    first_tokens,
    length_axes,
    opened_once,
)
from berxit.runtime.backends.pooled import IDLE, PooledWorkspace, Returning
from berxit.runtime.bundle import Manifest, Segment, TensorInfo, read_tensor
from berxit.runtime.bundle_files import BundleFile, BundleFolder
from berxit.runtime.errors import BerxitError
from berxit.runtime.manifest_checks import Port, check_ports
from berxit.runtime.policies import Bools, Floats
from berxit.runtime.tokenization import TokenBatch


@dataclass(frozen=True)
class CompiledSegment:
    """A segment with its compiled file and its constant inputs."""

    segment: Segment
    file: SegmentFile[ov.CompiledModel]
    constants: dict[str, ov.Tensor]


class Request:
    """An infer request of a segment: reads tensors by role. Its outputs are valid until it runs again."""

    def __init__(self, segment: CompiledSegment) -> None:
        self._proven: set[tuple[int, int]] = set()
        """Batch and length of the inputs that have worked."""
        compiled = segment.file.open()
        self._request = compiled.create_infer_request()
        places = {name: place for place, port in enumerate(compiled.inputs) for name in port.get_names()}
        for name, tensor in segment.constants.items():
            self._request.set_input_tensor(places[name], tensor)
        self._inputs = [(places[tensor.name], tensor.role) for tensor in segment.segment.varying]
        places = {name: place for place, port in enumerate(compiled.outputs) for name in port.get_names()}
        self._outputs = [(places[tensor.name], tensor.role) for tensor in segment.segment.outputs]

    def run(self, tensors: dict[str, ov.Tensor], shape: tuple[int, int]) -> dict[str, ov.Tensor]:
        """``shape``: batch and length of the inputs. Raises RuntimeError if the segment fails on them.

        With one thread, an inference runs in the calling thread. An error in it is not raised, and leaves the thread
        in a state in which later inferences fail and unloading crashes (OpenVINO 2026.4). An error depends on the
        shape, so the first inference of a shape runs in OpenVINO's own thread.
        """
        for place, role in self._inputs:
            self._request.set_input_tensor(place, tensors[role])
        if shape in self._proven:
            self._request.infer(share_outputs=True)
        else:
            try:
                self._request.start_async()
                self._request.wait()
            except RuntimeError as error:
                raise RuntimeError(_reason(error)) from error
            self._proven.add(shape)
        return {role: self._request.get_output_tensor(place) for place, role in self._outputs}


class Chain:
    """The infer requests of one call at a time, created at first use."""

    def __init__(self) -> None:
        self._requests: dict[int, tuple[Request, ...]] = {}

    def run(
        self, segment: CompiledSegment, tensors: dict[str, ov.Tensor], shape: tuple[int, int]
    ) -> dict[str, ov.Tensor]:
        """The tensors, updated with the segment's outputs. A segment that repeats has two requests, so that none reads
        its own outputs."""
        layer, repeat = segment.segment.layer, segment.segment.repeat
        if layer not in self._requests:
            self._requests[layer] = tuple(Request(segment) for _ in range(min(repeat, 2)))
        requests = self._requests[layer]
        for turn in range(repeat):
            tensors = {**tensors, **requests[turn % 2].run(tensors, shape)}
        return tensors


@dataclass(frozen=True)
class TensorState:
    """State of B rows between two layers. The chain overwrites it with its next input."""

    pooled: PooledWorkspace[Chain]
    tensors: dict[str, ov.Tensor]
    """Role -> input of the next layer: hidden (B, S, d), and the outputs of the embeddings that all layers read."""
    shape: tuple[int, int]
    """B and S, with padding."""
    lengths: npt.NDArray[np.int64]
    """(B,) tokens per row."""


class OpenVinoBackend(FilesBackend[ov.CompiledModel]):
    """Runs segments with OpenVINO's CPU plug-in."""

    name = "openvino"

    def __init__(
        self, bundle: BundleFolder, manifest: Manifest, threads: int, *, bf16: bool = False, lazy: bool = False
    ) -> None:
        """``bf16``: compute in bfloat16, whatever the dtype of the files."""
        core, precision = the_core(), "bf16" if bf16 else "f32"
        if problem := unusable_here(bf16=bf16):
            raise BerxitError(f"{problem}: omit the backend option bf16")
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # The app may use the cores that threads would be pinned to.
        }

        embeddings = manifest.segments[0]
        tables = {name: (bundle.file(t), read_tensor(bundle, t)) for name, t in embeddings.constants.items()}

        def open_file(segment: Segment, file: BundleFile) -> ov.CompiledModel:
            own = {} if segment.layer else tables
            files = [file, *(table for table, _ in own.values())]
            known = {name: values for name, (_, values) in own.items()}
            compiled: ov.CompiledModel = opened_once(
                files, ("openvino", threads, precision), partial(_compile, core, file, options, known)
            )
            fed = replace(segment, inputs=segment.varying) if own else segment
            check_ports(fed, _ports(compiled.inputs, fed.inputs), _ports(compiled.outputs, fed.outputs), str(file))
            return compiled

        super().__init__(bundle, manifest, threads, open_file, lazy=lazy)
        self._embeddings, *layers = (
            CompiledSegment(segment, file, _constants(bundle, segment) if segment.layer else {})
            for segment, file in zip(manifest.segments, self._files, strict=True)
        )
        self._layers = dict(zip(self.exits, layers, strict=True))
        self._length_axes = {o.role: length_axes(o) for o in manifest.segments[0].outputs}
        self._idle: deque[Returning] = deque(maxlen=IDLE)

    def embed(self, batch: TokenBatch) -> TensorState:
        pooled = PooledWorkspace(self._idle, Chain)
        ids = {tensor.role: _tensor(getattr(batch, tensor.role)) for tensor in self._embeddings.segment.varying}
        made = pooled.workspace.run(self._embeddings, ids, batch.input_ids.shape)
        return TensorState(
            pooled, {role: made[role] for role in self._length_axes}, batch.input_ids.shape, batch.lengths
        )

    def layer(self, layer: int, state: TensorState) -> tuple[TensorState, Floats, Floats | None]:
        tensors = state.pooled.workspace.run(self._layers[layer], state.tensors, state.shape)
        lte = tensors["lte"].data.copy() if "lte" in tensors else None
        return replace(state, tensors=tensors), tensors["logits"].data.copy(), lte

    def keep(self, state: TensorState, rows: Bools) -> TensorState:
        lengths = state.lengths[rows]
        longest = int(lengths.max())  # Removes padding that no remaining row needs.
        kept = {
            role: _tensor(first_tokens(state.tensors[role].data, axes, longest)[rows])
            for role, axes in self._length_axes.items()
        }
        return TensorState(state.pooled, kept, (len(lengths), longest), lengths)


def _tensor(array: npt.NDArray) -> ov.Tensor:
    return ov.Tensor(np.ascontiguousarray(array), shared_memory=True)


def unusable_here(*, bf16: bool = False) -> str | None:
    """The reason why this machine cannot run it; None if it can."""
    lacks = bf16 and "BF16" not in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "this CPU has no bf16" if lacks else None


def open_backend(
    folder: Path | BundleFolder,
    manifest: Manifest,
    threads: int | None,
    *,
    bf16: bool = False,
    lazy: bool = False,
) -> OpenVinoBackend:
    return OpenVinoBackend(BundleFolder.at(folder), manifest, threads or default_threads(), bf16=bf16, lazy=lazy)


def _ports(found: Sequence[Any], stated: Sequence[TensorInfo]) -> list[Port]:
    """OpenVINO's ports, each under the one of its names that the manifest contains."""
    names, ports = {tensor.name for tensor in stated}, []
    for port in found:
        name = next((name for name in port.get_names() if name in names), port.any_name)
        dtype = np.dtype(port.get_element_type().to_dtype()).name
        rank = port.get_partial_shape()
        shape = None if rank.rank.is_dynamic else tuple("?" if d.is_dynamic else d.get_length() for d in rank)
        ports.append(Port(name, dtype, shape))
    return ports


def the_core() -> ov.Core:
    """The process's OpenVINO core. Raises BerxitError in a process that was forked after the core was used, because
    OpenVINO's threads do not exist there."""
    core, generation = _core()
    if generation != forking.generation:
        raise BerxitError(f"OpenVINO was started before this process was forked and cannot run here: {REMEDY}")
    return core


@cache
def _core() -> tuple[ov.Core, int]:
    """The process's only core, and its fork generation. Every core has its own CPU plug-in. With several cores, the
    last one to be deleted restores the signal stack of an earlier one (OpenVINO 2026.4), and the next Ctrl-C ends the
    process with SIGSEGV."""
    return ov.Core(), forking.generation


def _constants(bundle: BundleFolder, segment: Segment) -> dict[str, ov.Tensor]:
    return {name: ov.Tensor(read_tensor(bundle, tensor)) for name, tensor in segment.constants.items()}


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's message, which states what failed. The lines before it are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _compile(
    core: ov.Core, file: BundleFile, options: dict[str, object], tables: dict[str, npt.NDArray]
) -> ov.CompiledModel:
    """``tables``: constant inputs to compile into the model. Otherwise OpenVINO would convert a whole table at every
    inference if its dtype differs from the precision of the computation."""
    location = file.location()
    try:
        model = core.read_model(location)
        for parameter in model.get_parameters():
            for name in parameter.output(0).get_names() & tables.keys():
                known = opset13.constant(tables[name])
                if known.output(0).get_element_type() != parameter.get_element_type():
                    raise BerxitError(f"{file}: input '{name}' is not {tables[name].dtype} in the file. Export again")
                for reader in parameter.output(0).get_target_inputs():
                    reader.replace_source_output(known.output(0))
                model.remove_parameter(parameter)
        return core.compile_model(model, "CPU", options)
    except BerxitError:
        raise
    except Exception as error:  # OpenVINO raises bare RuntimeError with a long text.
        reason = _reason(error).replace(str(location), str(file))
        raise BerxitError(
            f"OpenVINO {ov.__version__} cannot load {file}: {reason}. Use --backend onnxruntime, or export again"
        ) from error
