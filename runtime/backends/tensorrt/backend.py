"""Backend on TensorRT engines.

Memory is laid out once per input length (plan.py). Hidden states are only on the GPU; each exit needs one small copy to
the host. Everything runs on one stream, under one lock, and all contexts share one block of activation memory.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt

from berxit import devices
from berxit.runtime.backends.pooled import PooledWorkspace, Returning
from berxit.runtime.backends.tensorrt.cuda import Cuda
from berxit.runtime.backends.tensorrt.engines import EngineCache, prepare_engines, read_engine, rows_of
from berxit.runtime.backends.tensorrt.plan import Plan, plan_for, runs_of, shape_of
from berxit.runtime.backends.tensorrt.versions import Api, Kernels, load
from berxit.runtime.bundle import Manifest, Segment, read_tensor
from berxit.runtime.bundle_files import BundleFolder
from berxit.runtime.cache import cache_folder
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.loop import Backend, every_exit
from berxit.runtime.manifest_checks import check_ports
from berxit.runtime.policies import Bools, Floats
from berxit.runtime.progress import Progress, silent
from berxit.runtime.tokenization import TokenBatch

_LOG = logging.getLogger(__name__)


class _Context:
    """Execution context of a segment at one input length. An address is bound only if it changed."""

    def __init__(self, api: Api, context: Any, segment: Segment, profile: int, memory: tuple[int, int], stream: int):
        self._api, self._context = api, context
        with api.refusing(f"profile {profile} of {segment.file}"):
            api.set_memory(self._context, *memory)
            chosen = self._context.set_optimization_profile_async(profile, stream)
            api.must(chosen, f"profile {profile} of {segment.file}")
        self._segment = segment
        self._bound: dict[str, int] = {}
        self._rows = 0

    def enqueue(self, addresses: Mapping[str, int], rows: int, length: int, stream: int) -> None:
        """``addresses``: tensor name -> address on the GPU."""
        if rows != self._rows:
            for tensor in self._segment.inputs:
                shape = shape_of(tensor, rows, length)
                if shape != tensor.shape:
                    with self._api.refusing(what := f"shape {shape} of {tensor.name} of {self._segment.file}"):
                        self._api.must(self._context.set_input_shape(tensor.name, shape), what)
            self._rows = rows
        for name, address in addresses.items():
            if self._bound.get(name) != address:
                done = self._context.set_tensor_address(name, address)
                self._api.must(done, f"an address for {name} of {self._segment.file}")
                self._bound[name] = address
        if not self._context.execute_async_v3(stream):
            raise BerxitError(
                f"{self._segment.file} did not run: {self._api.said()}. Run again, or berxit-build --force"
            )


class _Slot:
    """Memory for the rows of one call at one input length, on the GPU and pinned on the host.

    ``zero_copy``: the GPU reads inputs and writes outputs in the host's memory, without copies.
    """

    def __init__(
        self, cuda: Cuda, plan: Plan, manifest: Manifest, constants: Sequence[Mapping[str, int]], *, zero_copy: bool
    ):
        self.plan = plan
        self._cuda = cuda
        self._device = cuda.allocate(plan.size)
        self._mapped: int | None = None
        """Address of the host's memory on the GPU, with ``zero_copy``."""
        self._host = 0
        if zero_copy:
            self._mapped, self._bytes = cuda.mapped(plan.host_size)
        else:
            self._host, self._bytes = cuda.pinned(plan.host_size)
        self.done = (cuda.event(), cuda.event())
        self.turn = 0
        """Counts the steps, so that a state that was used before is recognized."""
        self.graphs: dict[int, tuple[Any, list[_Context]] | None] = {}
        """Step -> its CUDA graph for a single row, with the contexts that it was captured from, one per run; None if it
        cannot be captured."""
        self.addresses = [
            dict(fed)
            | {i.name: self._at(plan.input_place(i.role, run)) for i in segment.inputs if i.role != "constant"}
            | {o.name: self._at(plan.output_place(o.role, step, run)) for o in segment.outputs}
            for step, (segment, fed, runs) in enumerate(
                zip(manifest.segments, constants, runs_of(manifest), strict=True)
            )
            for run in runs
        ]
        """Run (0: the embeddings) -> tensor name -> address on the GPU."""

    def send_inputs(self, stream: int) -> None:
        if self._mapped is None:
            self._cuda.copy_in(self._device, self._host, self.plan.inputs.stop, stream)

    def fetch_outputs(self, step: int, stream: int) -> None:
        if self._mapped is None:
            outputs = self.plan.outputs[step % 2]
            start, size = outputs.start, outputs.stop - outputs.start
            self._cuda.copy_out(self._host + start, self._device + start, size, stream)

    def _at(self, place: str) -> int:
        offset = self.plan.places[place].offset
        if self._mapped is not None and offset < self.plan.host_size:
            return self._mapped + offset
        return self._device + offset

    def row(self, place: str, row: int) -> int:
        """Address of a row of a tensor on the GPU."""
        return self._at(place) + row * self.plan.places[place].row_bytes

    def view(self, place: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray:
        """A tensor's rows on the host."""
        start = self.plan.places[place].offset
        return self._bytes[start : start + prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


@dataclass(frozen=True)
class _Part:
    """State of up to max_batch rows between two layers."""

    pooled: PooledWorkspace[_Slot]
    rows: int
    turn: int
    done: int = 0
    """Number of enqueued steps: segments after the embeddings."""
    ahead: bool = False
    """True if the next step is enqueued, too."""

    @property
    def slot(self) -> _Slot:
        return self.pooled.workspace


State = tuple[_Part, ...]


@dataclass
class _Held:
    """Resources of a runner on the GPU. Each is released before the one that it was created from."""

    cuda: Cuda
    stream: int
    keep_kernels: Callable[[bytes], None]
    kernels: Kernels
    slots: list[_Slot] = field(default_factory=list)
    contexts: dict[tuple[str, int], _Context] = field(default_factory=dict)
    """Segment file and input length -> its context."""
    engines: dict[str, Any] = field(default_factory=dict)
    """Segment file -> its engine."""
    runtimes: list[Any] = field(default_factory=list)
    """Runtimes that deserialized the engines, and must outlive them."""

    def give_back(self) -> None:
        """Releases everything. Errors are ignored, because there is no caller to report them to."""
        with suppress(BerxitError):
            self.cuda.wait(self.stream)
        with suppress(BerxitError):
            if grown := self.kernels.grown():
                self.keep_kernels(grown)
        for slot in self.slots:
            for graph, _ in filter(None, slot.graphs.values()):
                self.cuda.free_graph(graph)
            slot.graphs.clear()
        self.slots.clear()
        self.contexts.clear()
        self.kernels = Kernels()
        self.engines.clear()
        self.runtimes.clear()
        self.cuda.close()


class TensorRtBackend(Backend):
    """Runs engines. A state may be used once, because the next one uses its memory.

    Its GPU memory is freed by ``close``, or with the last reference to the backend. ``cuda_graphs``: the layers of a
    single row are CUDA graphs. ``run_ahead``: layer i + 1 starts while the policy evaluates exit i. ``zero_copy``: the
    GPU reads inputs and writes outputs in the host's memory. All are off by default, because only a measurement on the
    GPU shows whether they are faster.
    """

    def __init__(
        self,
        folder: Path | BundleFolder,
        manifest: Manifest,
        api: Api,
        cuda: Cuda,
        engines: Mapping[str, Path],
        *,
        cuda_graphs: bool = False,
        run_ahead: bool = False,
        zero_copy: bool = False,
        kernels: bytes = b"",
        keep_kernels: Callable[[bytes], None] = lambda content: None,
    ) -> None:
        """``cuda`` belongs to this backend. ``engines``: segment file -> file of its engine. ``kernels``: the last
        argument of ``keep_kernels``."""
        if cuda_graphs and not api.shares_profiles:
            raise InputError(f"backend option cuda-graphs of {api.builder} needs TensorRT 8.6, this is {api.title}")
        self.name = api.builder
        self.layers = manifest.model.layers
        self.exits = manifest.exits
        self._manifest, self._api, self._cuda = manifest, api, cuda
        self._runs = runs_of(manifest)
        self._graphs, self._ahead, self._zero_copy = cuda_graphs, run_ahead, zero_copy
        self._lock = threading.Lock()
        self._stream = cuda.stream()
        self._held = _Held(cuda, self._stream, keep_kernels, Kernels(kernels))
        self._give_back = finalize(self, self._held.give_back)
        runtime = api.make_runtime()
        self._held.runtimes.append(runtime)
        for file, path in engines.items():  # One file at a time is in the host's memory.
            self._held.engines[file] = api.engine(runtime, read_engine(path), file)
        for segment in manifest.segments:
            check_ports(segment, *api.ports(self._held.engines[segment.file]), segment.file)
        size = max(api.memory_size(engine) for engine in self._held.engines.values())
        self._memory = (cuda.allocate(size), size)
        bundle = BundleFolder.at(folder)
        self._constants = [
            {name: cuda.upload(read_tensor(bundle, tensor), self._stream) for name, tensor in segment.constants.items()}
            for segment in manifest.segments
        ]
        self._free: dict[int, deque[Returning]] = defaultdict(deque)

    def warm_up(self) -> None:
        """Runs one row of every input length, because the first run of a context is slow: it creates the context, loads
        kernels and captures CUDA graphs. The first input of a caller is then as fast as later ones."""
        for length in self._manifest.lengths:
            batch = TokenBatch.pad([[self._manifest.model.pad_token_id] * length], [[0] * length], 0)
            for _ in range(2 if self._graphs else 1):  # A graph is captured in the first run and launched in the next.
                deque(every_exit(self, batch), maxlen=0)

    def close(self) -> None:
        """Releases memory, engines and stream on the GPU. Later calls raise BerxitError."""
        with self._lock:
            self._give_back()

    def after_fork(self) -> None:
        """Releases nothing in a forked child, because CUDA does not work there."""
        self._give_back.detach()

    def embed(self, batch: TokenBatch) -> State:
        rows = rows_of(self._manifest)
        longest = int(batch.lengths.max())
        length = next((length for length in self._manifest.lengths if length >= longest), None)
        if length is None:
            raise InputError(
                f"an input of {longest} tokens is longer than the bundle takes ({self._manifest.lengths[-1]}): export"
                f" again with --lengths up to {longest}, or shorten the text"
            )
        with self._at_work():
            return tuple(self._embed(batch, slice(i, i + rows), length) for i in range(0, len(batch), rows))

    def layer(self, layer: int, state: State) -> tuple[State, Floats, Floats | None]:
        step = 1 + self.exits.index(layer)
        with self._at_work():
            state = tuple(self._run(step, part) for part in state)
            if self._ahead:
                for part in state:
                    self._cuda.wait_for(part.slot.done[step % 2])
            else:
                self._cuda.wait(self._stream)
            logits = np.concatenate([self._answer("logits", step, part) for part in state])
            if not self._manifest.model.lte:
                return state, logits, None
            return state, logits, np.concatenate([self._answer("lte", step, part) for part in state])

    def keep(self, state: State, rows: Bools) -> State:
        kept, start = [], 0
        with self._at_work():
            for part in state:
                stay = np.flatnonzero(rows[start : start + part.rows])
                start += part.rows
                if len(stay):
                    kept.append(self._compact(part, stay))
        return tuple(kept)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """One caller at a time. Raises BerxitError after ``close``."""
        with self._lock:
            if not self._give_back.alive:
                raise BerxitError("this runner was closed and has nothing left on the GPU: load the bundle again")
            yield

    def _embed(self, batch: TokenBatch, rows: slice, length: int) -> _Part:
        pooled: PooledWorkspace[_Slot] = PooledWorkspace(self._free[length], partial(self._slot, length))
        slot, segment = pooled.workspace, self._manifest.segments[0]
        tokens = {
            "input_ids": batch.input_ids[rows, :length],  # The rest is padding.
            "token_type_ids": batch.token_type_ids[rows, :length],
            "attention_mask": batch.attention_mask[rows, :length],
        }
        given, width = tokens["input_ids"].shape
        for tensor in segment.inputs:
            view = slot.view(tensor.role, (given, length), tensor.dtype)
            view[:, :width] = tokens[tensor.role]
            view[:, width:] = self._manifest.model.pad_token_id if tensor.role == "input_ids" else 0
        slot.turn += 1
        slot.send_inputs(self._stream)
        self._context(segment, length).enqueue(slot.addresses[0], given, length, self._stream)
        return _Part(pooled, given, slot.turn)

    def _run(self, step: int, part: _Part) -> _Part:
        """Enqueues the step with the copy of its outputs, unless it is enqueued already; with ``run_ahead`` the next,
        too."""
        slot = self._next_turn(part)
        if not part.ahead:
            self._enqueue(step, slot, part.rows)
        # Several runs would overwrite the step's input, which is needed again if rows exit.
        ahead = self._ahead and step < len(self.exits) and len(self._runs[step + 1]) == 1
        if ahead:
            self._enqueue(step + 1, slot, part.rows)
        return _Part(part.pooled, part.rows, slot.turn, step, ahead)

    def _enqueue(self, step: int, slot: _Slot, rows: int) -> None:
        segment, length = self._manifest.segments[step], slot.plan.length
        if rows == 1 and self._graphs and step not in slot.graphs:
            # A context must not change after a graph was captured from it, so this run and slot have their own.
            contexts = [self._new_context(segment, length) for _ in self._runs[step]]
            self._enqueue_in(contexts, step, slot, rows)
            graph = self._cuda.capture(lambda: self._enqueue_in(contexts, step, slot, rows), self._stream)
            slot.graphs[step] = None if graph is None else (graph, contexts)
        elif rows == 1 and (captured := slot.graphs.get(step)):
            self._cuda.launch(captured[0], self._stream)
        else:
            self._enqueue_in([self._context(segment, length)] * segment.repeat, step, slot, rows)
        if self._ahead:
            self._cuda.mark(slot.done[step % 2], self._stream)

    def _enqueue_in(self, contexts: Sequence[_Context], step: int, slot: _Slot, rows: int) -> None:
        for context, run in zip(contexts, self._runs[step], strict=True):
            context.enqueue(slot.addresses[run], rows, slot.plan.length, self._stream)
        slot.fetch_outputs(step, self._stream)

    def _answer(self, role: str, step: int, part: _Part) -> Floats:
        tensor = next(output for output in self._manifest.segments[step].outputs if output.role == role)
        shape = shape_of(tensor, part.rows, part.slot.plan.length)
        return part.slot.view(f"{role}.{step % 2}", shape, tensor.dtype).copy()

    def _compact(self, part: _Part, stay: npt.NDArray[np.int64]) -> _Part:
        """Moves the remaining rows to the front, one by one, so that no row overlaps another. The result of a step that
        was started ahead is discarded, because it has the old rows; its input is still valid."""
        slot = self._next_turn(part)
        carried = [o.role for o in self._manifest.segments[0].outputs if o.role != "hidden"]
        for place in (f"hidden.{self._runs[part.done][-1] % 2}", *carried):
            for to, row in enumerate(stay.tolist()):
                if to != row:
                    self._cuda.move(
                        slot.row(place, to), slot.row(place, row), slot.plan.places[place].row_bytes, self._stream
                    )
        return _Part(part.pooled, len(stay), slot.turn, part.done, part.ahead and len(stay) == part.rows)

    def _next_turn(self, part: _Part) -> _Slot:
        if part.turn != part.slot.turn:
            raise BerxitError("a state of the TensorRT backend can be used only once: run the batch again from embed")
        part.slot.turn += 1
        return part.slot

    def _slot(self, length: int) -> _Slot:
        plan = plan_for(self._manifest, rows_of(self._manifest), length)
        with self._cuda.all_or_nothing():
            slot = _Slot(self._cuda, plan, self._manifest, self._constants, zero_copy=self._zero_copy)
        self._held.slots.append(slot)
        return slot

    def _context(self, segment: Segment, length: int) -> _Context:
        """The context of an engine and an input length, created when an input first has that length. Layers and callers
        share it, because before TensorRT 8.6 an optimization profile accepts only one context."""
        place = (segment.file, length)
        if place not in self._held.contexts:
            self._held.contexts[place] = self._new_context(segment, length)
        return self._held.contexts[place]

    def _new_context(self, segment: Segment, length: int) -> _Context:
        what = f"execution context of {segment.file}"
        context = self._api.context(self._held.engines[segment.file], self._held.kernels, what)
        profile = self._manifest.lengths.index(length)
        return _Context(self._api, context, segment, profile, self._memory, self._stream)


def open_with(
    builder: str,
    folder: Path | BundleFolder,
    manifest: Manifest,
    *,
    cuda_graphs: bool = False,
    run_ahead: bool = False,
    zero_copy: bool = False,
    progress: Progress = silent,
) -> TensorRtBackend:
    """Builds missing engines, opens all engines and warms them up. A build takes minutes: ``progress`` receives it, and
    a warning is logged. Raises BerxitError if TensorRT or a GPU is missing, or does not run the bundle."""
    api, cuda, cache = load(builder), Cuda.open(), EngineCache(cache_folder())
    gpu = cuda.gpu()
    engines = prepare_engines(
        folder,
        manifest,
        api,
        gpu,
        cache,
        workspace_mib=devices.recognise(devices.this_machine()).workspace_mib,
        progress=progress,
        report=_LOG.warning,
    )
    backend = TensorRtBackend(
        folder,
        manifest,
        api,
        cuda,
        engines,
        cuda_graphs=cuda_graphs,
        run_ahead=run_ahead,
        zero_copy=zero_copy,
        kernels=cache.read_kept("kernels", api, gpu),
        keep_kernels=partial(cache.write_kept, "kernels", api, gpu),
    )
    backend.warm_up()
    return backend
