"""Memory for ONNX Runtime's inputs and outputs that stays where it is, so that sessions are tied to it once per shape.

A session that is handed numpy arrays looks up names, checks and wraps every array, and allocates and copies every
output: some 10 microseconds a segment, where a layer of a small model in int8 takes 200. Tied (``IOBinding``) to
memory that is used again, it starts at once and writes where the next one reads. Hidden states take turns between two
places, since no session can write over what it reads.
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
"""Shapes that stay tied: lengths of single inputs, mostly. The one not used for longest goes."""


@dataclass(frozen=True)
class BoundStep:
    """A segment, its session, and what is always fed to it."""

    segment: Segment
    file: SegmentFile[ort.InferenceSession]
    constants: dict[str, ort.OrtValue]

    def run(self, buffers: Buffers, side: int, options: ort.RunOptions | None = None) -> None:
        """Reads hidden states on one ``side``, writes them on the other."""
        session = self.file.open()
        session.run_with_iobinding(buffers.binding(self, session, side), options)


class Buffers:
    """What B rows of S tokens are computed in, and the bindings of sessions to it."""

    def __init__(self, workspace: Workspace, rows: int, length: int) -> None:
        self._workspace: Workspace = weakref.proxy(workspace)  # no cycle: weights go with the last runner, at once
        self._sizes = {"batch": rows, "length": length}
        self._arrays: dict[str, npt.NDArray] = {}
        self._values: dict[str, ort.OrtValue] = {}
        self._bindings: dict[tuple[int, int], tuple[ort.InferenceSession, ort.IOBinding]] = {}

    def array(self, tensor: TensorInfo, side: int) -> npt.NDArray:
        """Where ``tensor`` lies: hidden states on the ``side`` that is asked for, everything else in its one place."""
        name = _name(tensor, side)
        found = self._arrays.get(name)
        if found is None:
            shape = tuple(self._sizes[size] if isinstance(size, str) else size for size in tensor.shape)
            found = self._workspace.take(name, shape, np.dtype(tensor.dtype))
            self._values[name] = ort.OrtValue.ortvalue_from_numpy(found)
            self._arrays[name] = found
        return found

    def binding(self, step: BoundStep, session: ort.InferenceSession, side: int) -> ort.IOBinding:
        key = step.segment.layer, side
        tied_to, found = self._bindings.get(key, (None, None))
        if found is None or tied_to is not session:  # a forked child opens its sessions anew
            found = session.io_binding()
            for tensor in step.segment.inputs:
                constant = step.constants.get(tensor.name)
                found.bind_ortvalue_input(tensor.name, constant or self._value(tensor, side))
            for tensor in step.segment.outputs:
                found.bind_ortvalue_output(tensor.name, self._value(tensor, 1 - side))
            self._bindings[key] = session, found
        return found

    def _value(self, tensor: TensorInfo, side: int) -> ort.OrtValue:
        self.array(tensor, side)
        return self._values[_name(tensor, side)]


def _name(tensor: TensorInfo, side: int) -> str:
    return f"hidden {side}" if tensor.role == "hidden" else tensor.role


class Workspace:
    """The memory of one call at a time. Shapes share it: each tensor starts where its place does."""

    def __init__(self) -> None:
        self._places: dict[str, npt.NDArray[np.uint8]] = {}
        self._shapes: OrderedDict[tuple[int, int], Buffers] = OrderedDict()

    def buffers(self, rows: int, length: int) -> Buffers:
        found = self._shapes.pop((rows, length), None) or Buffers(self, rows, length)
        self._shapes[rows, length] = found
        if len(self._shapes) > SHAPES:
            self._shapes.popitem(last=False)
        return found

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> npt.NDArray:
        """An array in the place of that name, which grows in powers of two; what lay there before is given up."""
        size = int(np.prod(shape)) * dtype.itemsize
        place = self._places.get(name)
        if place is None or place.size < size:
            place = self._places[name] = np.empty(1 << (size - 1).bit_length(), np.uint8)
            newest = next(reversed(self._shapes))
            self._shapes = OrderedDict([(newest, self._shapes[newest])])  # the others are tied to the smaller place
        return place[:size].view(dtype).reshape(shape)
