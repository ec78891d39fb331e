"""What back ends share whose tensors lie in the host's memory: they differ only in what runs a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.bundle import Manifest, Segment, read_tensor
from runtime.policies import Bools, Floats
from runtime.tokenization import TokenBatch

Run = Callable[[dict[str, npt.NDArray]], Sequence[npt.NDArray]]
"""A loaded segment file: its inputs by name -> its outputs, in the manifest's order. Called from several threads."""


class State(NamedTuple):
    """B rows on their way through the layers."""

    tensors: dict[str, npt.NDArray]
    """Role -> what the next layer reads: hidden (B, S, d), and what the embeddings made for all layers."""
    lengths: npt.NDArray[np.int64]
    """(B,) tokens per row."""


@dataclass(frozen=True)
class Step:
    """A segment: roles (hidden, logits, ...) tied to the names in its file."""

    run_file: Run
    inputs: dict[str, str]
    output_roles: tuple[str, ...]
    constants: dict[str, npt.NDArray]

    @classmethod
    def of(cls, segment: Segment, run_file: Run, folder: Path) -> Step:
        return cls(
            run_file,
            inputs={i.role: i.name for i in segment.inputs if i.name not in segment.constants},
            output_roles=tuple(o.role for o in segment.outputs),
            constants={name: read_tensor(folder, tensor) for name, tensor in segment.constants.items()},
        )

    def run(self, feeds: dict[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        named = {name: feeds[role] for role, name in self.inputs.items()}
        named.update(self.constants)
        return dict(zip(self.output_roles, self.run_file(named), strict=True))


class HostBackend:
    """The loop's Backend, over whatever ``open_file`` makes of a segment's file; a shared file is opened once."""

    name: str

    def __init__(self, folder: Path, manifest: Manifest, threads: int, open_file: Callable[[Segment], Run]) -> None:
        self.layers = manifest.model.layers
        self.threads = threads
        files: dict[str, Run] = {}
        steps = []
        for segment in manifest.segments:
            if segment.file not in files:
                files[segment.file] = open_file(segment)
            steps.append(Step.of(segment, files[segment.file], folder))
        self._embeddings, *self._layers = steps
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
