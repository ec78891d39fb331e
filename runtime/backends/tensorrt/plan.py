"""Memory layout of one input length. It is planned once, so that the loop only runs and copies."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import numpy as np

from berxit.runtime.bundle import Manifest, TensorInfo
from berxit.runtime.errors import BerxitError

ALIGNMENT = 256
"""TensorRT requires addresses of tensors that are multiples of this."""


@dataclass(frozen=True)
class Place:
    """Location of a tensor in a block of memory."""

    offset: int
    row_bytes: int
    """Bytes of one row; rows are consecutive."""


@dataclass(frozen=True)
class Plan:
    """The block of one input length, for up to ``rows`` rows.

    Step i is the i-th segment after the embeddings, one run of its file or several (ALBERT). Two hidden states
    alternate: run k of the loop reads hidden (k - 1) % 2 and writes hidden k % 2. Two sets of outputs alternate step by
    step, so that a step can run while the policy evaluates the previous one.
    """

    rows: int
    length: int
    places: dict[str, Place]
    """input_ids, ...; hidden.0, hidden.1; attention_bias, ...; logits.0, lte.0, logits.1, lte.1."""
    inputs: slice
    """Bytes that are copied to the GPU at once."""
    outputs: tuple[slice, slice]
    """Bytes that are copied to the host at once, for every exit."""
    size: int

    @property
    def host_size(self) -> int:
        """Bytes of inputs and outputs, which are first in the block: the host needs only these."""
        return self.outputs[1].stop

    def input_place(self, role: str, run: int) -> str:
        return f"hidden.{(run - 1) % 2}" if role == "hidden" else role

    def output_place(self, role: str, step: int, run: int) -> str:
        if role == "hidden":
            return f"hidden.{run % 2}"
        return f"{role}.{step % 2}" if role in ("logits", "lte") else role


def runs_of(manifest: Manifest) -> tuple[range, ...]:
    """Step -> its runs, counted over the whole loop; the embeddings are step 0 and run 0."""
    ends = list(accumulate(segment.repeat for segment in manifest.segments))
    return tuple(range(start, end) for start, end in pairwise((0, *ends)))


def plan_for(manifest: Manifest, rows: int, length: int) -> Plan:
    """The layout of all tensors of the loop except the constants."""
    embeddings, first = manifest.segments[0], manifest.segments[1]
    by_role = {tensor.role: tensor for tensor in (*embeddings.inputs, *embeddings.outputs, *first.outputs)}
    read = [tensor.role for tensor in embeddings.inputs]
    carried = [tensor.role for tensor in embeddings.outputs if tensor.role != "hidden"]
    returned = [tensor.role for tensor in first.outputs if tensor.role != "hidden"]
    places: dict[str, Place] = {}
    end = 0

    def put(name: str, role: str) -> None:
        nonlocal end
        places[name] = Place(end, row_bytes(by_role[role], length))
        end += -(-places[name].row_bytes * rows // ALIGNMENT) * ALIGNMENT

    for role in read:
        put(role, role)
    inputs = slice(0, end)
    outputs = []
    for turn in (0, 1):
        start = end
        for role in returned:
            put(f"{role}.{turn}", role)
        outputs.append(slice(start, end))
    for name, role in (("hidden.0", "hidden"), ("hidden.1", "hidden"), *((role, role) for role in carried)):
        put(name, role)
    return Plan(rows, length, places, inputs, (outputs[0], outputs[1]), end)


def shape_of(tensor: TensorInfo, rows: int, length: int) -> tuple[int, ...]:
    """Shape of the tensor for so many rows and tokens."""
    sizes = {"batch": rows, "length": length}
    return tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)


def row_bytes(tensor: TensorInfo, length: int) -> int:
    if not tensor.shape or tensor.shape[0] != "batch":
        raise BerxitError(f"tensor {tensor.name} has no rows: {tensor.shape}. Export the bundle again")
    return prod(shape_of(tensor, 1, length)) * np.dtype(tensor.dtype).itemsize
