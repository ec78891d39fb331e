"""ONNX Runtime on the CPU: one session per segment file.

With ONNX Runtime's defaults, sessions slow each other down. With these settings all segments together take as much time
and memory as one graph:

- By default a session's threads spin after every run and starve the next session's threads: 12 segments take ten times
  the latency of one graph. ``session.force_spinning_stop`` stops the spinning with the run and does not change the
  app's sessions. The next session then has to wake its threads. One thread pool for the whole process avoids this
  (option ``shared_pool``), but ONNX Runtime then rejects the app's own sessions unless they use the pool, too. It must
  therefore be requested.
- By default every session has its own memory arena, which is not in the CPU's cache when the session runs. Our sessions
  share one arena (``shared_arena``), and allocate each tensor separately instead of one block per session. The memory
  of a large batch is released with the next small one.
- Inputs and outputs are in persistent memory with IO bindings, one per shape (``workspace.py``).
- The fusion of residual and norm is off, because the fused kernel has no vector instructions (ONNX Runtime 1.32) and
  takes 4 to 6 times as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from berxit.devices import default_threads
from berxit.runtime.backends import forking
from berxit.runtime.backends.forking import REMEDY
from berxit.runtime.backends.host import (
    FilesBackend,
    first_tokens,
    length_axes,
    opened_once,
)
from berxit.runtime.backends.pooled import IDLE, PooledWorkspace, Returning
from berxit.runtime.backends.workspace import BoundSegment, Buffers, Workspace
from berxit.runtime.bundle import Manifest, Segment, TensorFile, read_tensor
from berxit.runtime.bundle_files import BundleFile, BundleFolder
from berxit.runtime.errors import BerxitError, PoolError
from berxit.runtime.manifest_checks import Port, check_ports
from berxit.runtime.policies import Bools, Floats
from berxit.runtime.tokenization import TokenBatch

Providers = Sequence[str | tuple[str, dict[str, Any]]]
"""Execution providers of ONNX Runtime, the best first, some with options."""
CPU: Providers = ("CPUExecutionProvider",)
POOLED = (
    "this process runs ONNX Runtime with one thread pool for all sessions, until it ends: use --backend onnxruntime"
    " --backend-option shared-pool, or another process"
)
DTYPES = {"tensor(float)": "float32"} | {
    f"tensor({name})": name for name in ("float16", "int8", "uint8", "int32", "int64")
}
"""ONNX Runtime's name of a tensor's type -> numpy's."""
LARGE = 512
"""A larger batch, in tokens with padding, has its memory released after it."""


class BoundState(NamedTuple):
    """State of B rows between two layers. The next state uses the same memory, so each is used once."""

    pooled: PooledWorkspace[Workspace]
    buffers: Buffers
    side: int
    """The side of the buffers that contains the hidden states."""
    lengths: npt.NDArray[np.int64]
    """(B,) tokens per row."""


class OnnxRuntimeBackend(FilesBackend[ort.InferenceSession]):
    """Runs segments with ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(
        self, bundle: BundleFolder, manifest: Manifest, threads: int, *, lazy: bool = False, shared_pool: bool = False
    ) -> None:
        """``shared_pool``: use the thread pool of the process instead of one pool per session."""
        if shared_pool:
            start_pool(threads)
        threads_of_session = None if shared_pool else threads

        def open_file(segment: Segment, file: BundleFile) -> ort.InferenceSession:
            session: ort.InferenceSession = opened_once(
                [file], ("onnxruntime", threads_of_session), lambda: open_session(file, threads_of_session)
            )
            check_ports(segment, *ports_of(session), str(file))
            return session

        super().__init__(bundle, manifest, threads, open_file, lazy=lazy)
        self._embeddings, *layers = (
            BoundSegment(segment, file, {name: _constant(bundle, t) for name, t in segment.constants.items()})
            for segment, file in zip(manifest.segments, self._files, strict=True)
        )
        self._layers = dict(zip(self.exits, layers, strict=True))
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._idle: deque[Returning] = deque(maxlen=IDLE)
        self._large = False
        """True if the last batch had more than LARGE tokens; the next smaller batch releases its memory."""

    def embed(self, batch: TokenBatch) -> BoundState:
        small_again = self._large and batch.input_ids.size <= LARGE
        self._large = batch.input_ids.size > LARGE
        if small_again:
            self._idle.clear()  # Workspaces of that batch's size.
        pooled, embeddings = PooledWorkspace(self._idle, Workspace), self._embeddings
        buffers = pooled.workspace.buffers(*batch.input_ids.shape)
        for tensor in embeddings.segment.varying:
            buffers.array(tensor, 0)[...] = getattr(batch, tensor.role)
        embeddings.run(buffers, 1, self._shrink if small_again else None)
        return BoundState(pooled, buffers, 0, batch.lengths)

    def layer(self, layer: int, state: BoundState) -> tuple[BoundState, Floats, Floats | None]:
        bound, side = self._layers[layer], state.side
        for _ in range(bound.segment.repeat):
            bound.run(state.buffers, side)
            side = 1 - side
        outputs = {t.role: state.buffers.array(t, side).copy() for t in bound.segment.outputs if t.role != "hidden"}
        return state._replace(side=side), outputs["logits"], outputs.get("lte")

    def keep(self, state: BoundState, rows: Bools) -> BoundState:
        lengths = state.lengths[rows]
        longest = int(lengths.max())  # Removes padding that no remaining row needs.
        buffers = state.pooled.workspace.buffers(len(lengths), longest)
        side = 1 - state.side
        for tensor in self._embeddings.segment.outputs:
            before = first_tokens(state.buffers.array(tensor, state.side), length_axes(tensor), longest)
            after = buffers.array(tensor, side)
            if tensor.role == "hidden":  # Row by row, without a copy in between: it is large.
                for place, row in enumerate(np.flatnonzero(rows)):
                    after[place] = before[row]
            else:
                after[...] = before[rows]  # Copies first: both have the same memory.
        return BoundState(state.pooled, buffers, side, lengths)


def open_backend(
    folder: Path | BundleFolder,
    manifest: Manifest,
    threads: int | None,
    *,
    lazy: bool = False,
    shared_pool: bool = False,
) -> OnnxRuntimeBackend:
    bundle = BundleFolder.at(folder)
    return OnnxRuntimeBackend(bundle, manifest, threads or default_threads(), lazy=lazy, shared_pool=shared_pool)


def _constant(bundle: Path | BundleFolder, tensor: TensorFile) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(read_tensor(bundle, tensor)))


def open_session(file: Path | BundleFile, threads: int | None, providers: Providers = CPU) -> ort.InferenceSession:
    """``threads``: None uses the thread pool of the process. Raises BerxitError for a file that ONNX Runtime cannot
    load, PoolError if ``threads`` is a number and the process has a thread pool."""
    if threads is not None and _pool:
        raise PoolError(POOLED)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is None:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if providers is CPU:
        options.enable_mem_pattern = False
        if shared_arena(forking.generation):
            options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry(
            "session.use_device_allocator_for_initializers", "1"
        )  # Weights are outside the arena.
        options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    try:
        if not isinstance(file, BundleFile):
            model: str | bytes = str(file)
        elif providers is CPU:
            model = file.location()
        else:  # TensorRT's provider names its engines after the path, and a descriptor's path is no name.
            model = file.read_bytes()
        return ort.InferenceSession(model, options, providers=list(providers))
    except BerxitError:
        raise
    except Exception as error:  # ONNX Runtime has many unrelated exception types.
        if threads is not None and "use_per_session_threads" in str(error):  # The app started a thread pool.
            raise PoolError(POOLED) from error
        reason = str(error).splitlines()[0].replace(str(model), str(file)) if str(error) else type(error).__name__
        raise BerxitError(f"ONNX Runtime {ort.__version__} cannot load {file}: {reason}. Export again here") from error


def ports_of(session: ort.InferenceSession) -> tuple[list[Port], list[Port]]:
    """The session's inputs and outputs."""

    def ports(tensors: Sequence[ort.NodeArg]) -> list[Port]:
        sizes = [tuple(size if isinstance(size, int) else str(size) for size in tensor.shape) for tensor in tensors]
        return [Port(t.name, DTYPES.get(t.type, t.type), shape) for t, shape in zip(tensors, sizes, strict=True)]

    return ports(session.get_inputs()), ports(session.get_outputs())


@cache
def shared_arena(generation: int) -> bool:
    """Registers the memory arena of our sessions; the app's sessions do not use it, unless it registered its own. A
    forked child, which has another ``generation``, replaces it, because a thread that does not exist there may have
    locked it. Older versions of ONNX Runtime cannot replace it: False, each session then has an arena of its own.

    The arena grows in powers of two. With exact growth it keeps one block per length: 1,294 MiB instead of 229 for 16
    lengths at batch 64 (MiniLM-L6).
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    no_limit, powers_of_two, default = 0, 0, -1
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg(no_limit, powers_of_two, default, default))
    except Exception as error:  # ONNX Runtime has many unrelated exception types.
        if "already been registered" not in str(error):
            raise
        return generation == 0  # the app's arena
    return True


_pool: list[tuple[int, int | None]] = []
"""Fork generation and number of threads of the process's thread pool, if there is one; None: the app started it."""


def start_pool(threads: int) -> None:
    """Starts one thread pool for all sessions of this process, unless the app has started one.

    Raises PoolError if the process has one of another size, because there can be only one, and in a forked child, where
    its threads do not exist.
    """
    with forking.opening:
        if not _pool:
            ours: int | None = threads
            try:
                ort.set_global_thread_pool_sizes(threads, 1)
            except AttributeError as error:
                raise BerxitError(
                    f"onnxruntime {ort.__version__} has no thread pool for the process: upgrade it to 1.23 or"
                    " newer, or omit the backend option shared-pool"
                ) from error
            except Exception as error:  # ONNX Runtime has many unrelated exception types.
                if "already been created" not in str(error):
                    raise
                ours = None
            _pool.append((forking.generation, ours))
    generation, size = _pool[0]
    if generation != forking.generation:
        raise PoolError(f"ONNX Runtime's thread pool was started before this process was forked: {REMEDY}")
    if size not in (None, threads):
        raise PoolError(
            f"threads is {threads}, but this process already has a thread pool of {size}: use threads={size}"
        )
