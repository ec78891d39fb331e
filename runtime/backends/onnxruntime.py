"""ONNX Runtime on the CPU: one session per segment file.

Sessions with default options each keep a pool of threads that spins after every run, and starve each other: 12 segments
then take ten times what one graph takes. ``session.force_spinning_stop`` ends the spinning when a run ends; it costs
1-8% at two threads against one graph and, unlike a process-wide pool, changes nothing for the app around us.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from devices import default_threads
from runtime.bundle import Manifest, Segment, read_tensor
from runtime.errors import BerxitError
from runtime.policies import Bools, Floats
from runtime.tokenization import TokenBatch

Providers = Sequence[str | tuple[str, dict[str, Any]]]
"""ONNX Runtime's execution providers, the best first; with their options, where they have any."""
CPU: Providers = ("CPUExecutionProvider",)


class State(NamedTuple):
    """B rows on their way through the layers."""

    tensors: dict[str, npt.NDArray]
    """Role -> what the next layer reads: hidden (B, S, d), and what the embeddings made for all layers."""
    lengths: npt.NDArray[np.int64]
    """(B,) tokens per row."""


@dataclass(frozen=True)
class _Step:
    """A loaded segment: roles (hidden, logits, ...) tied to the names in its file."""

    session: ort.InferenceSession
    inputs: dict[str, str]
    outputs: tuple[str, ...]
    output_roles: tuple[str, ...]
    constants: dict[str, npt.NDArray]

    def run(self, feeds: dict[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        named = {name: feeds[role] for role, name in self.inputs.items()}
        named.update(self.constants)
        return dict(zip(self.output_roles, self.session.run(self.outputs, named), strict=True))


class OnnxRuntimeBackend:
    """Runs segments with ONNX Runtime, on the CPU unless told otherwise; the loop's Backend."""

    name = "onnxruntime"

    def __init__(self, folder: Path, manifest: Manifest, threads: int, providers: Providers = CPU) -> None:
        self.layers = manifest.model.layers
        self.threads = threads
        sessions: dict[str, ort.InferenceSession] = {}
        options = _session_options(threads)
        steps = []
        for segment in manifest.segments:
            if segment.file not in sessions:
                sessions[segment.file] = _open_session(folder / segment.file, options, providers)
            steps.append(_tie(segment, sessions[segment.file], folder))
        self._embeddings, *self._layers = steps
        self.providers: list[str] = self._embeddings.session.get_providers()
        self._length_axes = {
            o.role: tuple(axis for axis, size in enumerate(o.shape) if size == "length")
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
        kept = {role: _cut(array[rows], self._length_axes[role], longest) for role, array in state.tensors.items()}
        return State(kept, lengths)


def _cut(array: npt.NDArray, axes: tuple[int, ...], length: int) -> npt.NDArray:
    """The first ``length`` along each of ``axes``, as an array of its own."""
    places = tuple(slice(length) if axis in axes else slice(None) for axis in range(array.ndim))
    return np.ascontiguousarray(array[places])


def open_backend(folder: Path, manifest: Manifest, threads: int | None) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(folder, manifest, threads or default_threads())


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _open_session(path: Path, options: ort.SessionOptions, providers: Providers) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # ONNX Runtime has a dozen unrelated exception types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BerxitError(f"ONNX Runtime {ort.__version__} cannot load {path}: {reason}. Export again here") from error


def _tie(segment: Segment, session: ort.InferenceSession, folder: Path) -> _Step:
    return _Step(
        session,
        inputs={i.role: i.name for i in segment.inputs if i.name not in segment.constants},
        outputs=tuple(o.name for o in segment.outputs),
        output_roles=tuple(o.role for o in segment.outputs),
        constants={name: read_tensor(folder, tensor) for name, tensor in segment.constants.items()},
    )
