"""Where everything lies in the memory of one input length: planned once, so that the loop only runs and copies."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import numpy as np

from berxit.runtime.bundle import Manifest, TensorInfo
from berxit.runtime.errors import BerxitError

ALIGNMENT = 256
"""TensorRT wants the address of a tensor to be a multiple of this."""


@dataclass(frozen=True)
class Place:
    """A tensor within a block of memory."""

    offset: int
    row_bytes: int
    """One row's share; rows follow one another."""


@dataclass(frozen=True)
class Plan:
    """The block of one input length, for up to ``rows`` rows.

    Step i is the i-th segment after the embeddings, one run of its file or several (ALBERT). Two hidden states take
    turns: run k of the loop reads hidden (k - 1) % 2 and writes hidden k % 2. So do two sets of outputs, step by step:
    a step can run ahead while the one before is being judged.
    """

    rows: int
    length: int
    places: dict[str, Place]
    """input_ids, ...; hidden.0, hidden.1; attention_bias, ...; logits.0, lte.0, logits.1, lte.1."""
    inputs: slice
    """Bytes that go to the GPU in one copy."""
    outputs: tuple[slice, slice]
    """Bytes that come back in one copy, at every exit."""
    size: int

    @property
    def host_size(self) -> int:
        """Inputs and outputs stand first: the host needs no room for more."""
        return self.outputs[1].stop

    def input_place(self, role: str, run: int) -> str:
        return f"hidden.{(run - 1) % 2}" if role == "hidden" else role

    def output_place(self, role: str, step: int, run: int) -> str:
        if role == "hidden":
            return f"hidden.{run % 2}"
        return f"{role}.{step % 2}" if role in ("logits", "lte") else role


def runs_of(manifest: Manifest) -> tuple[range, ...]:
    """Step -> its runs, counted through the whole loop; the embeddings are step 0 and run 0."""
    ends = list(accumulate(segment.repeat for segment in manifest.segments))
    return tuple(range(start, end) for start, end in pairwise((0, *ends)))


def plan_for(manifest: Manifest, rows: int, length: int) -> Plan:
    """Lays out all tensors of the loop, but for the constants."""
    embeddings, first = manifest.segments[0], manifest.segments[1]
    by_role = {tensor.role: tensor for tensor in (*embeddings.inputs, *embeddings.outputs, *first.outputs)}
    asked = [tensor.role for tensor in embeddings.inputs]
    carried = [tensor.role for tensor in embeddings.outputs if tensor.role != "hidden"]
    answers = [tensor.role for tensor in first.outputs if tensor.role != "hidden"]
    places: dict[str, Place] = {}
    end = 0

    def put(name: str, role: str) -> None:
        nonlocal end
        places[name] = Place(end, row_bytes(by_role[role], length))
        end += -(-places[name].row_bytes * rows // ALIGNMENT) * ALIGNMENT

    for role in asked:
        put(role, role)
    inputs = slice(0, end)
    outputs = []
    for turn in (0, 1):
        start = end
        for role in answers:
            put(f"{role}.{turn}", role)
        outputs.append(slice(start, end))
    for name, role in (("hidden.0", "hidden"), ("hidden.1", "hidden"), *((role, role) for role in carried)):
        put(name, role)
    return Plan(rows, length, places, inputs, (outputs[0], outputs[1]), end)


def shape_of(tensor: TensorInfo, rows: int, length: int) -> tuple[int, ...]:
    """The tensor's sizes, with those that vary filled in."""
    sizes = {"batch": rows, "length": length}
    return tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)


def row_bytes(tensor: TensorInfo, length: int) -> int:
    if not tensor.shape or tensor.shape[0] != "batch":
        raise BerxitError(f"tensor {tensor.name} has no rows: {tensor.shape}. Export the bundle again")
    return prod(shape_of(tensor, 1, length)) * np.dtype(tensor.dtype).itemsize
