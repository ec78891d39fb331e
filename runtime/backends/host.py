"""What back ends share that open the segments' files on this machine, and the one whose tensors are numpy's."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from berxit.runtime.backends import forking
from berxit.runtime.bundle import Manifest, Segment, TensorInfo, read_tensor
from berxit.runtime.bundle_files import BundleFile, BundleFolder
from berxit.runtime.policies import Bools, Floats
from berxit.runtime.tokenization import TokenBatch

Run = Callable[[dict[str, npt.NDArray]], Sequence[npt.NDArray]]
"""A loaded segment file: its inputs by name -> its outputs, in the manifest's order. Called from several threads."""


Opened = TypeVar("Opened")


class SegmentFile(Generic[Opened]):
    """A segment's file, and what it is once it is open."""

    def __init__(self, open_file: Callable[[], Opened]) -> None:
        self._open_file: Callable[[], Opened] | None = open_file
        self._opened: Opened | None = None
        self._opening = threading.Lock()
        self.seconds = 0.0
        """What opening it took."""

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    def open(self) -> Opened:
        if self._opened is None:
            with self._opening:
                if self._open_file is not None:  # another thread was not faster
                    start = time.perf_counter()
                    self._opened = self._open_file()
                    self.seconds = time.perf_counter() - start
                    self._open_file = None  # the descriptor of the file goes with it
        assert self._opened is not None
        return self._opened


_opened: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
"""What is open in this process; it is closed with the last runner that holds it."""


def opened_once(files: Sequence[BundleFile], options: Hashable, open_file: Callable[[], Any]) -> Any:
    """Result of ``open_file`` for these files, which runners of one bundle share.

    Files of the same content with the same ``options`` are opened once. The key is the sha256 of the bytes that were
    read, never a path or an unchecked checksum: unchecked files (``verify=False``) are not shared. A forked child
    shares nothing with its parent.
    """
    contents = tuple(file.content for file in files)
    with forking.opening:
        key = contents, options, forking.generation
        found = None if None in contents else _opened.get(key)
        if found is None:
            found = open_file()
            if None not in contents:
                _opened[key] = found
            _give_back_freed_memory()
    return found


def _give_back_freed_memory() -> None:
    """What reading a file took and freed stays with glibc's malloc until it is told: half as much as a layer again."""
    with suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


Room = TypeVar("Room")
IDLE = 4
"""Rooms that are kept for the next calls. More only live while as many threads ask at once."""


class Lease(Generic[Room]):
    """What one call computes in, for as long as somebody holds this: calls from several threads, and streams that are
    left half read, each have a room of their own."""

    def __init__(self, idle: deque[Room], make: Callable[[], Room]) -> None:
        self._idle = idle
        try:
            self.room = idle.pop()
        except IndexError:
            self.room = make()

    def __del__(self) -> None:
        if hasattr(self, "room"):  # it could be made
            self._idle.append(self.room)


class FilesBackend(Generic[Opened]):
    """What a back end has whose layers are files that can be opened one by one."""

    name: str
    tokens_at_once = 1024
    """Tokens of a large batch that a CPU computes together; what it computes of more no longer fits its caches."""

    def __init__(
        self,
        bundle: BundleFolder,
        manifest: Manifest,
        threads: int,
        open_file: Callable[[Segment, BundleFile], Opened],
        *,
        lazy: bool = False,
    ) -> None:
        """``lazy``: a layer's file is loaded when an input first gets there, and not before; its descriptor stays open
        until then."""
        self.layers, self.exits = manifest.model.layers, manifest.exits
        self.threads = threads
        known: dict[Hashable, SegmentFile[Opened]] = {}  # what layers share is open for all of them
        self._files = []
        for segment in manifest.segments:
            file = SegmentFile(partial(open_file, segment, bundle.file(segment)))
            self._files.append(known.setdefault((segment.file, tuple(o.name for o in segment.outputs)), file))
        for file in self._files[:1] if lazy else self._files:
            file.open()
        self._file_of = dict(zip(self.exits, self._files[1:], strict=True))

    def opening_seconds(self, layer: int) -> float:
        """What an input waits for the file of ``layer``: nothing where it is open, else as long as the slowest layer
        took that is; infinity where none is."""
        if self._file_of[layer].is_open:
            return 0.0
        return max((file.seconds for file in self._file_of.values() if file.is_open), default=math.inf)


class State(NamedTuple):
    """B rows on their way through the layers."""

    tensors: dict[str, npt.NDArray]
    """Role -> what the next layer reads: hidden (B, S, d), and what the embeddings made for all layers."""
    lengths: npt.NDArray[np.int64]
    """(B,) tokens per row."""


@dataclass(frozen=True)
class Step:
    """A segment: roles (hidden, logits, ...) tied to the names in its file."""

    file: SegmentFile[Run]
    inputs: dict[str, str]
    output_roles: tuple[str, ...]
    constants: dict[str, npt.NDArray]
    repeat: int = 1

    @classmethod
    def of(cls, segment: Segment, file: SegmentFile[Run], bundle: BundleFolder) -> Step:
        return cls(
            file,
            inputs={tensor.role: tensor.name for tensor in segment.varying},
            output_roles=tuple(o.role for o in segment.outputs),
            constants={name: read_tensor(bundle, tensor) for name, tensor in segment.constants.items()},
            repeat=segment.repeat,
        )

    def run(self, feeds: dict[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        outputs: dict[str, npt.NDArray] = {}
        for _ in range(self.repeat):
            named = {name: outputs.get(role, feeds[role]) for role, name in self.inputs.items()}
            named.update(self.constants)
            outputs = dict(zip(self.output_roles, self.file.open()(named), strict=True))
        return outputs


class HostBackend(FilesBackend[Run]):
    """The loop's Backend, over whatever ``open_file`` makes of a segment's file; its tensors are numpy arrays."""

    def __init__(
        self,
        bundle: BundleFolder,
        manifest: Manifest,
        threads: int,
        open_file: Callable[[Segment, BundleFile], Run],
        *,
        lazy: bool = False,
    ) -> None:
        super().__init__(bundle, manifest, threads, open_file, lazy=lazy)
        steps = [Step.of(segment, file, bundle) for segment, file in zip(manifest.segments, self._files, strict=True)]
        self._embeddings, *layers = steps
        self._layers = dict(zip(self.exits, layers, strict=True))
        self._length_axes = {o.role: length_axes(o) for o in manifest.segments[0].outputs}

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
        outputs = self._layers[layer].run(state.tensors)
        hidden = outputs.get("hidden", state.tensors["hidden"])  # the last segment may give none: nobody reads it
        return State({**state.tensors, "hidden": hidden}, state.lengths), outputs["logits"], outputs.get("lte")

    def keep(self, state: State, rows: Bools) -> State:
        lengths = state.lengths[rows]
        longest = int(lengths.max())  # padding that no remaining row needs goes too
        kept = {role: cut(array, self._length_axes[role], longest)[rows] for role, array in state.tensors.items()}
        return State(kept, lengths)


def length_axes(tensor: TensorInfo) -> tuple[int, ...]:
    """The axes along which a tensor is as long as the inputs."""
    return tuple(axis for axis, size in enumerate(tensor.shape) if size == "length")


def cut(array: npt.NDArray, axes: tuple[int, ...], length: int) -> npt.NDArray:
    """A view of the first ``length`` along each of ``axes``: cut first, or rows are copied twice."""
    return array[tuple(slice(length) if axis in axes else slice(None) for axis in range(array.ndim))]
