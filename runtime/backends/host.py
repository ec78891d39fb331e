"""Base classes of the backends whose segments are files on this machine, and the backend with numpy tensors."""

from __future__ import annotations

import ctypes
import math
import threading
import time
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
from berxit.runtime.loop import Backend
from berxit.runtime.policies import Bools, Floats
from berxit.runtime.tokenization import TokenBatch

Run = Callable[[dict[str, npt.NDArray]], Sequence[npt.NDArray]]
"""A loaded segment file: inputs by name -> outputs in the manifest's order. Called from several threads."""


Opened = TypeVar("Opened")


class SegmentFile(Generic[Opened]):
    """A segment's file, which is loaded at the first ``open``."""

    def __init__(self, open_file: Callable[[], Opened]) -> None:
        self._open_file: Callable[[], Opened] | None = open_file
        self._opened: Opened | None = None
        self._opening = threading.Lock()
        self.seconds = 0.0
        """Load time."""

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    def open(self) -> Opened:
        if self._opened is None:
            with self._opening:
                if self._open_file is not None:  # No other thread was faster.
                    start = time.perf_counter()
                    self._opened = self._open_file()
                    self.seconds = time.perf_counter() - start
                    self._open_file = None  # Closes the file's descriptor.
        assert self._opened is not None
        return self._opened


_opened: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
"""Open files of this process. A file is closed with the last runner that uses it."""


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
            _trim_heap()
    return found


def _trim_heap() -> None:
    """Returns freed memory to the system. glibc's malloc otherwise keeps the memory that reading a file needed, half
    the size of a layer."""
    with suppress(OSError, TypeError, AttributeError):  # Another C library.
        ctypes.CDLL(None).malloc_trim(0)


class FilesBackend(Backend, Generic[Opened]):
    """Base class of backends whose layers are files that can be loaded one by one."""

    tokens_at_once = 1024
    """The activations of larger parts no longer fit a CPU's caches."""

    def __init__(
        self,
        bundle: BundleFolder,
        manifest: Manifest,
        threads: int,
        open_file: Callable[[Segment, BundleFile], Opened],
        *,
        lazy: bool = False,
    ) -> None:
        """``lazy``: a layer's file is loaded when an input first reaches the layer. Its descriptor is open until
        then."""
        self.layers, self.exits = manifest.model.layers, manifest.exits
        self.threads = threads
        known: dict[Hashable, SegmentFile[Opened]] = {}  # A file that layers share is loaded once.
        self._files = []
        for segment in manifest.segments:
            file = SegmentFile(partial(open_file, segment, bundle.file(segment)))
            self._files.append(known.setdefault((segment.file, tuple(o.name for o in segment.outputs)), file))
        for file in self._files[:1] if lazy else self._files:
            file.open()
        self._file_of = dict(zip(self.exits, self._files[1:], strict=True))

    def opening_seconds(self, layer: int) -> float:
        """0 if the file of ``layer`` is loaded, else the longest load time of a layer so far; infinity if no layer is
        loaded."""
        if self._file_of[layer].is_open:
            return 0.0
        return max((file.seconds for file in self._file_of.values() if file.is_open), default=math.inf)


class State(NamedTuple):
    """State of B rows between two layers."""

    tensors: dict[str, npt.NDArray]
    """Role -> input of the next layer: hidden (B, S, d), and the outputs of the embeddings that all layers read."""
    lengths: npt.NDArray[np.int64]
    """(B,) tokens per row."""


@dataclass(frozen=True)
class LoadedSegment:
    """A segment with its file. Maps roles (hidden, logits, ...) to the names in the file."""

    file: SegmentFile[Run]
    inputs: dict[str, str]
    output_roles: tuple[str, ...]
    constants: dict[str, npt.NDArray]
    repeat: int = 1

    @classmethod
    def of(cls, segment: Segment, file: SegmentFile[Run], bundle: BundleFolder) -> LoadedSegment:
        return cls(
            file,
            inputs={tensor.role: tensor.name for tensor in segment.varying},
            output_roles=tuple(o.role for o in segment.outputs),
            constants={name: read_tensor(bundle, tensor) for name, tensor in segment.constants.items()},
            repeat=segment.repeat,
        )

    def run(self, tensors: dict[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        """Outputs by role. ``tensors``: inputs by role."""
        outputs: dict[str, npt.NDArray] = {}
        for _ in range(self.repeat):
            named = {name: outputs.get(role, tensors[role]) for role, name in self.inputs.items()}
            named.update(self.constants)
            outputs = dict(zip(self.output_roles, self.file.open()(named), strict=True))
        return outputs


class HostBackend(FilesBackend[Run]):
    """Backend with numpy tensors. ``open_file`` loads a segment's file as a function."""

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
        segments = zip(manifest.segments, self._files, strict=True)
        self._embeddings, *layers = (LoadedSegment.of(segment, file, bundle) for segment, file in segments)
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
        hidden = outputs.get("hidden", state.tensors["hidden"])  # Optional output of the last segment.
        return State({**state.tensors, "hidden": hidden}, state.lengths), outputs["logits"], outputs.get("lte")

    def keep(self, state: State, rows: Bools) -> State:
        lengths = state.lengths[rows]
        longest = int(lengths.max())  # Removes padding that no remaining row needs.
        kept = {
            role: first_tokens(array, self._length_axes[role], longest)[rows] for role, array in state.tensors.items()
        }
        return State(kept, lengths)


def length_axes(tensor: TensorInfo) -> tuple[int, ...]:
    """The axes of a tensor along which its size is the length of the inputs."""
    return tuple(axis for axis, size in enumerate(tensor.shape) if size == "length")


def first_tokens(array: npt.NDArray, axes: tuple[int, ...], length: int) -> npt.NDArray:
    """A view of the first ``length`` entries along each of ``axes``. Rows that are selected from it are copied once."""
    return array[tuple(slice(length) if axis in axes else slice(None) for axis in range(array.ndim))]
