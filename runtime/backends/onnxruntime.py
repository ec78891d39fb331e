"""ONNX Runtime on the CPU: one session per segment file.

Sessions as ONNX Runtime makes them get in each other's way. What is done about it, so that all segments together take
as long and hold as much as one graph:

- A session's threads spin after every run and starve the next session's; 12 segments then take ten times what one
  graph takes. ``session.force_spinning_stop`` ends the spinning with the run, and changes nothing for the app around
  us. What is left is that threads fall asleep with a segment's end and are woken by the next one's start. One pool for
  the whole process has no such ends (option ``shared_pool``), but ONNX Runtime then rejects the app's own sessions
  unless they use the pool, too. It must therefore be requested.
- Every session has an arena of its own for what it computes, which is cold in the cache when its turn comes. All of
  ours share one (``shared_arena``), and take from it tensor by tensor instead of in one block per session. What a large
  batch took is given back with the next small one.
- Their inputs and outputs lie in memory that stays, tied to them once per shape (``workspace.py``).
- Residual and norm, fused, take 4 to 6 times as long as apart (ONNX Runtime 1.32: that kernel has no vector
  instructions). The fusion is off.
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
from berxit.runtime.backends.host import IDLE, FilesBackend, PooledWorkspace, first_tokens, length_axes, opened_once
from berxit.runtime.backends.workspace import BoundSegment, Buffers, Workspace
from berxit.runtime.bundle import Manifest, Segment, TensorFile, read_tensor
from berxit.runtime.bundle_files import BundleFile, BundleFolder
from berxit.runtime.errors import BerxitError, PoolError
from berxit.runtime.manifest_checks import Port, check_ports
from berxit.runtime.policies import Bools, Floats
from berxit.runtime.tokenization import TokenBatch

Providers = Sequence[str | tuple[str, dict[str, Any]]]
"""ONNX Runtime's execution providers, the best first; with their options, where they have any."""
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
"""Tokens that a batch may have, padding included, without having its memory given back after it."""


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
        self._idle: deque[Workspace] = deque(maxlen=IDLE)
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
    """``threads``: None takes the process's pool. Raises BerxitError for a file that ONNX Runtime does not take,
    PoolError where the process has a pool and threads are asked for."""
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
        shared_arena(forking.generation)
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")  # weights stay outside
        options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    try:
        if not isinstance(file, BundleFile):
            model: str | bytes = str(file)
        elif providers is CPU:
            model = file.location()
        else:  # TensorRT's provider names its engines by the path of the model, and a descriptor's says nothing
            model = file.read_bytes()
        return ort.InferenceSession(model, options, providers=list(providers))
    except BerxitError:
        raise
    except Exception as error:  # ONNX Runtime has a dozen unrelated exception types
        if threads is not None and "use_per_session_threads" in str(error):  # the app around us started a pool
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
def shared_arena(generation: int) -> None:
    """Memory for what sessions compute; only those that ask for it take from it: ours. A forked child, another
    ``generation``, replaces it: a thread that is gone may have held its lock.

    It grows in powers of two. Growing by what is asked for leaves a piece for every length that came by: 16 lengths at
    batch 64 then held 1,294 MiB instead of 229 (MiniLM-L6).
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    no_limit, powers_of_two, default = 0, 0, -1
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(no_limit, powers_of_two, default, default))


_pool: list[tuple[int, int | None]] = []
"""The fork generation and the threads of the process's pool, once there is one; None where the app had started it."""


def start_pool(threads: int) -> None:
    """One pool of threads for all sessions of this process; one that the app has started already serves as well.

    Raises PoolError where we started one of another size: there can be one. A forked child has none of its threads.
    """
    with forking.opening:
        if not _pool:
            ours: int | None = threads
            try:
                ort.set_global_thread_pool_sizes(threads, 1)
            except AttributeError as error:
                raise BerxitError(
                    f"onnxruntime {ort.__version__} has no thread pool for the process: upgrade it, or omit"
                    " the backend option shared-pool"
                ) from error
            except Exception as error:  # ONNX Runtime has a dozen unrelated exception types
                if "already been created" not in str(error):
                    raise
                ours = None
            _pool.append((forking.generation, ours))
    generation, size = _pool[0]
    if generation != forking.generation:
        raise PoolError(f"the pool of ONNX Runtime's threads was started before this process was forked: {REMEDY}")
    if size not in (None, threads):
        raise PoolError(
            f"this process has its pool of {size} threads already, and {threads} are asked for: ask for {size}"
        )
