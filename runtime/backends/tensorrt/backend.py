"""The exit loop's Backend on TensorRT engines.

Memory is laid out once per input length (plan.py). Hidden states never leave the GPU; per exit one small copy comes
back. Everything runs on one stream, under one lock, and all contexts share one block of activation memory.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import devices
from runtime.backends.tensorrt.cuda import Cuda
from runtime.backends.tensorrt.engines import EngineCache, cache_folder, prepare_engines, rows_of
from runtime.backends.tensorrt.plan import Plan, plan_for, shape_of
from runtime.backends.tensorrt.versions import Api, load
from runtime.bundle import Manifest, Segment, read_tensor
from runtime.console import progress_bar
from runtime.errors import BerxitError, InputError
from runtime.policies import Bools, Floats
from runtime.tokenization import TokenBatch

OPTIONS = ("graphs", "ahead")
"""What BERXIT_TENSORRT may name, with commas. graphs: a single row's layers are CUDA graphs. ahead: layer i + 1 starts
while exit i is being judged. Both off: only a measurement on your GPU can say that they pay."""


class _Step:
    """A segment at one input length, in a context of its own. What is bound already is not bound again."""

    def __init__(self, api: Api, engine: Any, segment: Segment, profile: int, memory: tuple[int, int], stream: int):
        self._api, self._context = api, api.context(engine)
        if self._context is None:
            raise BerxitError(f"{api.title} made no execution context for {segment.file}: is the GPU's memory full?")
        api.set_memory(self._context, *memory)
        self._context.set_optimization_profile_async(profile, stream)
        self._segment = segment
        self._bound: dict[str, int] = {}
        self._rows = 0

    def enqueue(self, addresses: Mapping[str, int], rows: int, length: int, stream: int) -> None:
        """``addresses``: tensor name -> where it lies on the GPU."""
        if rows != self._rows:
            for tensor in self._segment.inputs:
                shape = shape_of(tensor, rows, length)
                if shape != tensor.shape and not self._context.set_input_shape(tensor.name, shape):
                    raise BerxitError(f"{self._segment.file} takes no {tensor.name} of shape {shape}: run berxit-build")
            self._rows = rows
        for name, address in addresses.items():
            if self._bound.get(name) != address:
                self._context.set_tensor_address(name, address)
                self._bound[name] = address
        if not self._context.execute_async_v3(stream):
            raise BerxitError(
                f"{self._segment.file} did not run: {self._api.said()}. Run again, or berxit-build --force"
            )


class _Slot:
    """Memory for the rows of one call at one input length, on the GPU and pinned on the host."""

    def __init__(self, cuda: Cuda, plan: Plan, segments: Sequence[Segment], constants: Sequence[Mapping[str, int]]):
        self.plan = plan
        self.device = cuda.allocate(plan.size)
        self.host, self._bytes = cuda.pinned(plan.host_size)
        self.done = (cuda.event(), cuda.event())
        self.turn = 0
        """Grows with every step, so that a state that has been used up can be told."""
        self.graphs: dict[int, tuple[Any, _Step]] = {}
        """Layer -> its CUDA graph for a single row, and the step whose context the graph was taken from."""
        self.addresses = [
            dict(fed)
            | {
                i.name: self._at(plan.input_place(i.role, segment.layer))
                for i in segment.inputs
                if i.role != "constant"
            }
            | {o.name: self._at(plan.output_place(o.role, segment.layer)) for o in segment.outputs}
            for segment, fed in zip(segments, constants, strict=True)
        ]
        """Layer (0: the embeddings) -> tensor name -> where it lies on the GPU."""

    def _at(self, place: str) -> int:
        return self.device + self.plan.places[place].offset

    def row(self, place: str, row: int) -> int:
        """Where a row of a tensor lies on the GPU."""
        return self._at(place) + row * self.plan.places[place].row_bytes

    def view(self, place: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray:
        """A tensor's rows on the host."""
        start = self.plan.places[place].offset
        return self._bytes[start : start + prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


class _Lease:
    """Gives the slot back when nobody holds it any more: at the end of the loop, or when a stream is left early."""

    def __init__(self, free: deque[_Slot], slot: _Slot) -> None:
        self.slot = slot
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.slot)


@dataclass(frozen=True)
class _Part:
    """Up to max_batch rows on their way through the layers."""

    lease: _Lease
    rows: int
    turn: int
    done: int = 0
    """Layers that have been asked for."""
    ahead: bool = False
    """Whether the layer after these is running already."""

    @property
    def slot(self) -> _Slot:
        return self.lease.slot


State = tuple[_Part, ...]


class TensorRtBackend:
    """Runs engines; the loop's Backend. A state may be used once: its memory belongs to the next."""

    threads = 1

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        api: Api,
        cuda: Cuda,
        engines: Mapping[str, bytes],
        *,
        graphs: bool = False,
        ahead: bool = False,
    ) -> None:
        if graphs and not api.shares_profiles:
            raise InputError(f"BERXIT_TENSORRT=graphs needs TensorRT 10, this is {api.title}")
        self.name = api.builder
        self.layers = manifest.model.layers
        self.exits = manifest.exits
        self._manifest, self._api, self._cuda = manifest, api, cuda
        self._graphs, self._ahead = graphs, ahead
        self._lock = threading.Lock()
        self._stream = cuda.stream()
        runtime = api.trt.Runtime(api.logger)
        self._runtime = runtime  # engines live no longer than what read them
        self._engines = {file: _deserialized(api, runtime, file, data) for file, data in engines.items()}
        size = max(api.memory_size(engine) for engine in self._engines.values())
        self._memory = (cuda.allocate(size), size)
        self._constants = [
            {name: cuda.upload(read_tensor(folder, tensor)) for name, tensor in segment.constants.items()}
            for segment in manifest.segments
        ]
        self._steps: dict[tuple[str, int], _Step] = {}
        self._free: dict[int, deque[_Slot]] = defaultdict(deque)
        for length in manifest.lengths:  # so that the first query does not pay for it
            self._free[length].append(self._slot(length))
            for segment in manifest.segments:
                self._step(segment, length)

    def embed(self, batch: TokenBatch) -> State:
        rows = rows_of(self._manifest)
        longest = int(batch.lengths.max())
        length = next((length for length in self._manifest.lengths if length >= longest), None)
        if length is None:
            raise InputError(
                f"an input of {longest} tokens is longer than the bundle takes ({self._manifest.lengths[-1]}): export"
                f" again with --lengths up to {longest}, or shorten the text"
            )
        with self._lock:
            return tuple(self._embed(batch, slice(i, i + rows), length) for i in range(0, len(batch), rows))

    def layer(self, layer: int, state: State) -> tuple[State, Floats, Floats | None]:
        with self._lock:
            state = tuple(self._run(layer, part) for part in state)
            if self._ahead:
                for part in state:
                    self._cuda.wait_for(part.slot.done[layer % 2])
            else:
                self._cuda.wait(self._stream)
            logits = np.concatenate([self._answer("logits", layer, part) for part in state])
            if not self._manifest.model.lte:
                return state, logits, None
            return state, logits, np.concatenate([self._answer("lte", layer, part) for part in state])

    def keep(self, state: State, rows: Bools) -> State:
        kept, start = [], 0
        with self._lock:
            for part in state:
                stay = np.flatnonzero(rows[start : start + part.rows])
                start += part.rows
                if len(stay):
                    kept.append(self._compact(part, stay))
        return tuple(kept)

    def _embed(self, batch: TokenBatch, rows: slice, length: int) -> _Part:
        slot = self._free[length].popleft() if self._free[length] else self._slot(length)
        lease, segment = _Lease(self._free[length], slot), self._manifest.segments[0]
        tokens = {
            "input_ids": batch.input_ids[rows, :length],  # what is longer is padding
            "token_type_ids": batch.token_type_ids[rows, :length],
            "attention_mask": batch.attention_mask[rows, :length],
        }
        given, width = tokens["input_ids"].shape
        for tensor in segment.inputs:
            view = slot.view(tensor.role, (given, length), tensor.dtype)
            view[:, :width] = tokens[tensor.role]
            view[:, width:] = self._manifest.model.pad_token_id if tensor.role == "input_ids" else 0
        slot.turn += 1
        self._cuda.copy_in(slot.device, slot.host, slot.plan.inputs.stop, self._stream)
        self._step(segment, length).enqueue(slot.addresses[0], given, length, self._stream)
        return _Part(lease, given, slot.turn)

    def _run(self, layer: int, part: _Part) -> _Part:
        """Enqueues the layer with the way back of its answers, unless it is running already; and perhaps the next."""
        slot = self._next_turn(part)
        if not part.ahead:
            self._enqueue(layer, slot, part.rows)
        ahead = self._ahead and layer < self.layers
        if ahead:
            self._enqueue(layer + 1, slot, part.rows)
        return _Part(part.lease, part.rows, slot.turn, layer, ahead)

    def _enqueue(self, layer: int, slot: _Slot, rows: int) -> None:
        if rows == 1 and layer in slot.graphs:
            self._cuda.launch(slot.graphs[layer][0], self._stream)
        elif rows == 1 and self._graphs:
            # A context may not be changed once a graph was taken from it: it is this layer's and this slot's for ever.
            step = self._new_step(self._manifest.segments[layer], slot.plan.length)
            self._enqueue_step(step, layer, slot, rows)
            self._cuda.start_capture(self._stream)
            self._enqueue_step(step, layer, slot, rows)
            slot.graphs[layer] = (self._cuda.end_capture(self._stream), step)
        else:
            self._enqueue_step(self._step(self._manifest.segments[layer], slot.plan.length), layer, slot, rows)
        if self._ahead:
            self._cuda.mark(slot.done[layer % 2], self._stream)

    def _enqueue_step(self, step: _Step, layer: int, slot: _Slot, rows: int) -> None:
        step.enqueue(slot.addresses[layer], rows, slot.plan.length, self._stream)
        outputs = slot.plan.outputs[layer % 2]
        size = outputs.stop - outputs.start
        self._cuda.copy_out(slot.host + outputs.start, slot.device + outputs.start, size, self._stream)

    def _answer(self, role: str, layer: int, part: _Part) -> Floats:
        tensor = next(output for output in self._manifest.segments[layer].outputs if output.role == role)
        shape = shape_of(tensor, part.rows, part.slot.plan.length)
        return part.slot.view(f"{role}.{layer % 2}", shape, tensor.dtype).copy()

    def _compact(self, part: _Part, stay: npt.NDArray[np.int64]) -> _Part:
        """Moves the rows that go on to the front, one by one: a row never overlaps the place of another. What was
        started ahead ran with the old rows and is forgotten; its input is still there."""
        slot = self._next_turn(part)
        carried = [o.role for o in self._manifest.segments[0].outputs if o.role != "hidden"]
        for place in (f"hidden.{part.done % 2}", *carried):
            for to, row in enumerate(stay.tolist()):
                if to != row:
                    self._cuda.move(
                        slot.row(place, to), slot.row(place, row), slot.plan.places[place].row_bytes, self._stream
                    )
        return _Part(part.lease, len(stay), slot.turn, part.done, part.ahead and len(stay) == part.rows)

    def _next_turn(self, part: _Part) -> _Slot:
        if part.turn != part.slot.turn:
            raise BerxitError("a state of the TensorRT back end goes on only once: run the batch again from embed")
        part.slot.turn += 1
        return part.slot

    def _slot(self, length: int) -> _Slot:
        plan = plan_for(self._manifest, rows_of(self._manifest), length)
        return _Slot(self._cuda, plan, self._manifest.segments, self._constants)

    def _step(self, segment: Segment, length: int) -> _Step:
        """One context per engine and input length, whatever the number of layers and callers: before TensorRT 10 an
        optimisation profile takes no more."""
        place = (segment.file, length)
        if place not in self._steps:
            self._steps[place] = self._new_step(segment, length)
        return self._steps[place]

    def _new_step(self, segment: Segment, length: int) -> _Step:
        profile = self._manifest.lengths.index(length)
        return _Step(self._api, self._engines[segment.file], segment, profile, self._memory, self._stream)


def open_with(builder: str, folder: Path, manifest: Manifest) -> TensorRtBackend:
    """Builds the engines that are missing, and opens them. Raises BerxitError where TensorRT or a GPU is missing."""
    chosen = [name for name in os.environ.get("BERXIT_TENSORRT", "").split(",") if name]
    if unknown := set(chosen) - set(OPTIONS):
        raise InputError(f"BERXIT_TENSORRT names {', '.join(sorted(unknown))}: it knows {' and '.join(OPTIONS)}")
    api, cuda = load(builder), Cuda.open()
    engines = prepare_engines(
        folder,
        manifest,
        api,
        cuda.gpu(),
        EngineCache(cache_folder()),
        workspace_mib=devices.recognise(devices.this_machine()).workspace_mib,
        progress=progress_bar("building engines"),
        report=lambda line: click.echo(line, err=True),
    )
    return TensorRtBackend(folder, manifest, api, cuda, engines, graphs="graphs" in chosen, ahead="ahead" in chosen)


def _deserialized(api: Api, runtime: Any, file: str, data: bytes) -> Any:
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BerxitError(
            f"{api.title} cannot load the engine of {file}: {api.said()}. berxit-build --force builds it anew"
        )
    return engine
