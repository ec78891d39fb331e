"""Reused memory for the inputs and outputs of ONNX Runtime's sessions, with one IO binding per shape.

A session that receives numpy arrays looks up names, checks and wraps every array, and allocates and copies every
output: some 10 microseconds per segment, while a layer of a small model in int8 takes 200. With an IO binding
(``IOBinding``) to reused memory it starts at once and writes its outputs to the memory that the next session reads.
Hidden states alternate between two arrays, because no session can overwrite its own input.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from berxit.runtime.backends.host import SegmentFile
from berxit.runtime.bundle import Segment, TensorInfo

SHAPES = 64
"""Largest number of shapes that keep their bindings: mostly lengths of single inputs. The least recently used shape is
removed first."""


@dataclass(frozen=True)
class BoundSegment:
    """A segment with its session and its constant inputs."""

    segment: Segment
    file: SegmentFile[ort.InferenceSession]
    constants: dict[str, ort.OrtValue]

    def run(self, buffers: Buffers, side: int, options: ort.RunOptions | None = None) -> None:
        """Reads the hidden states of one ``side`` and writes those of the other."""
        session = self.file.open()
        session.run_with_iobinding(buffers.binding(self, session, side), options)


class Buffers:
    """The arrays for B rows of S tokens, and the IO bindings of sessions to them."""

    def __init__(self, workspace: Workspace, rows: int, length: int) -> None:
        self._workspace: Workspace = weakref.proxy(workspace)  # No cycle: weights are freed with the last runner.
        self._sizes = {"batch": rows, "length": length}
        self._arrays: dict[str, npt.NDArray] = {}
        self._values: dict[str, ort.OrtValue] = {}
        self._bindings: dict[tuple[int, int], tuple[ort.InferenceSession, ort.IOBinding]] = {}

    def array(self, tensor: TensorInfo, side: int) -> npt.NDArray:
        """The array of ``tensor``. Hidden states have one per ``side``, every other tensor has one."""
        name = _name(tensor, side)
        found = self._arrays.get(name)
        if found is None:
            shape = tuple(self._sizes[size] if isinstance(size, str) else size for size in tensor.shape)
            found = self._workspace.take(name, shape, np.dtype(tensor.dtype))
            self._values[name] = ort.OrtValue.ortvalue_from_numpy(found)
            self._arrays[name] = found
        return found

    def binding(self, bound: BoundSegment, session: ort.InferenceSession, side: int) -> ort.IOBinding:
        """The segment's IO binding, created at first use."""
        key = bound.segment.layer, side
        known, found = self._bindings.get(key, (None, None))
        if found is None or known is not session:  # A forked child loads its sessions again.
            found = session.io_binding()
            for tensor in bound.segment.inputs:
                constant = bound.constants.get(tensor.name)
                found.bind_ortvalue_input(tensor.name, constant or self._value(tensor, side))
            for tensor in bound.segment.outputs:
                found.bind_ortvalue_output(tensor.name, self._value(tensor, 1 - side))
            self._bindings[key] = session, found
        return found

    def _value(self, tensor: TensorInfo, side: int) -> ort.OrtValue:
        self.array(tensor, side)
        return self._values[_name(tensor, side)]


def _name(tensor: TensorInfo, side: int) -> str:
    return f"hidden {side}" if tensor.role == "hidden" else tensor.role


class Workspace:
    """The memory of one call at a time. All shapes share it: each tensor starts at the beginning of its block."""

    def __init__(self) -> None:
        self._blocks: dict[str, npt.NDArray[np.uint8]] = {}
        self._shapes: OrderedDict[tuple[int, int], Buffers] = OrderedDict()

    def buffers(self, rows: int, length: int) -> Buffers:
        """The buffers of a shape, created at first use."""
        found = self._shapes.pop((rows, length), None) or Buffers(self, rows, length)
        self._shapes[rows, length] = found
        if len(self._shapes) > SHAPES:
            self._shapes.popitem(last=False)
        return found

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> npt.NDArray:
        """An array in the block of that name. Blocks grow in powers of two; the content of a smaller block is lost."""
        size = int(np.prod(shape)) * dtype.itemsize
        block = self._blocks.get(name)
        if block is None or block.size < size:
            block = self._blocks[name] = np.empty(1 << (size - 1).bit_length(), np.uint8)
            newest = next(reversed(self._shapes))
            self._shapes = OrderedDict([(newest, self._shapes[newest])])  # The others are bound to the smaller block.
        return block[:size].view(dtype).reshape(shape)
