"""What back ends share whose tensors lie in the host's memory: they differ only in what runs a file."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

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


class SegmentFile:
    """A segment's file, opened at its first run unless ``open`` is called before."""

    def __init__(self, open_file: Callable[[], Run]) -> None:
        self._open_file = open_file
        self._run: Run | None = None
        self.seconds = 0.0
        """What opening it took."""

    @property
    def is_open(self) -> bool:
        return self._run is not None

    def open(self) -> Run:
        if self._run is None:
            start = time.perf_counter()
            self._run = self._open_file()
            self.seconds = time.perf_counter() - start
        return self._run

    def __call__(self, named: dict[str, npt.NDArray]) -> Sequence[npt.NDArray]:
        return self.open()(named)


_opened: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
"""What is open in this process; it is closed with the last runner that holds it."""
_opening = threading.Lock()


def opened_once(key: Hashable, open_file: Callable[[], Any]) -> Any:
    """What ``open_file`` makes, or made before for this key: runners of one bundle share its weights, and so do layers
    that are one file. The key must name the file by content and everything else that ``open_file`` depends on."""
    with _opening:
        found = _opened.get(key)
        if found is None:
            found = _opened[key] = open_file()
            _give_back_freed_memory()
    return found


def _give_back_freed_memory() -> None:
    """What reading a file took and freed stays with glibc's malloc until it is told: half as much as a layer again."""
    with suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class Step:
    """A segment: roles (hidden, logits, ...) tied to the names in its file."""

    run_file: SegmentFile
    inputs: dict[str, str]
    output_roles: tuple[str, ...]
    constants: dict[str, npt.NDArray]
    repeat: int = 1

    @classmethod
    def of(cls, segment: Segment, run_file: SegmentFile, folder: Path) -> Step:
        return cls(
            run_file,
            inputs={i.role: i.name for i in segment.inputs if i.name not in segment.constants},
            output_roles=tuple(o.role for o in segment.outputs),
            constants={name: read_tensor(folder, tensor) for name, tensor in segment.constants.items()},
            repeat=segment.repeat,
        )

    def run(self, feeds: dict[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        outputs: dict[str, npt.NDArray] = {}
        for _ in range(self.repeat):
            named = {name: outputs.get(role, feeds[role]) for role, name in self.inputs.items()}
            named.update(self.constants)
            outputs = dict(zip(self.output_roles, self.run_file(named), strict=True))
        return outputs


class HostBackend:
    """The loop's Backend, over whatever ``open_file`` makes of a segment's file."""

    name: str
    tokens_at_once = 1024
    """Tokens of a large batch that a CPU computes together; what it computes of more no longer fits its caches."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        threads: int,
        open_file: Callable[[Segment], Run],
        *,
        lazy: bool = False,
    ) -> None:
        """``lazy``: a layer's file is opened when an input first gets there, and not before."""
        self.layers = manifest.model.layers
        self.threads = threads
        known: dict[Hashable, SegmentFile] = {}  # what layers share is open for all of them
        files = [
            known.setdefault((s.file, tuple(o.name for o in s.outputs)), SegmentFile(partial(open_file, s)))
            for s in manifest.segments
        ]
        for file in files[:1] if lazy else files:
            file.open()
        steps = [Step.of(segment, file, folder) for segment, file in zip(manifest.segments, files, strict=True)]
        self._embeddings, *layers = steps
        self.exits = manifest.exits
        self._layers = dict(zip(self.exits, layers, strict=True))
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
        outputs = self._layers[layer].run(state.tensors)
        hidden = outputs.get("hidden", state.tensors["hidden"])  # the last segment may give none: nobody reads it
        return State({**state.tensors, "hidden": hidden}, state.lengths), outputs["logits"], outputs.get("lte")

    def opening_seconds(self, layer: int) -> float:
        """What an input waits for the file of ``layer``: nothing where it is open, else as long as the slowest layer
        took that is; infinity where none is."""
        if self._layers[layer].run_file.is_open:
            return 0.0
        return max((s.run_file.seconds for s in self._layers.values() if s.run_file.is_open), default=math.inf)

    def keep(self, state: State, rows: Bools) -> State:
        lengths = state.lengths[rows]
        longest = int(lengths.max())  # padding that no remaining row needs goes too
        kept = {role: _cut(array, self._length_axes[role], longest)[rows] for role, array in state.tensors.items()}
        return State(kept, lengths)


def _cut(array: npt.NDArray, axes: tuple[int, ...], length: int) -> npt.NDArray:
    """A view of the first ``length`` along each of ``axes``: cut first, or rows are copied twice."""
    return array[tuple(slice(length) if axis in axes else slice(None) for axis in range(array.ndim))]
