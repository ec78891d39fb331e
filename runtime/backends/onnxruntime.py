"""ONNX Runtime on the CPU: one session per segment file.

Sessions as ONNX Runtime makes them get in each other's way. What is done about it, so that all segments together take
as long and hold as much as one graph:

- A session's threads spin after every run and starve the next session's; 12 segments then take ten times what one
  graph takes. ``session.force_spinning_stop`` ends the spinning with the run. Unlike a process-wide pool of threads it
  changes nothing for the app around us.
- Every session has an arena of its own for what it computes, which is cold in the cache when its turn comes. All of
  ours share one (``shared_arena``), and take from it tensor by tensor instead of in one block per session. What a large
  batch took is given back with the next small one.
- Residual and norm, fused, take 4 to 6 times as long as apart (ONNX Runtime 1.32: that kernel has no vector
  instructions). The fusion is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from devices import default_threads
from runtime.backends.host import HostBackend, Run, opened_once
from runtime.bundle import Manifest, Segment
from runtime.errors import BerxitError

Providers = Sequence[str | tuple[str, dict[str, Any]]]
"""ONNX Runtime's execution providers, the best first; with their options, where they have any."""
CPU: Providers = ("CPUExecutionProvider",)
LARGE = 512
"""Tokens that a batch may have, padding included, without having the arena's memory given back after it."""


class OnnxRuntimeBackend(HostBackend):
    """Runs segments with ONNX Runtime, on the CPU unless told otherwise; the loop's Backend."""

    name = "onnxruntime"

    def __init__(
        self, folder: Path, manifest: Manifest, threads: int, providers: Providers = CPU, *, lazy: bool = False
    ) -> None:
        self.providers: list[str] = []
        """What the sessions really run on."""
        if providers is not CPU:
            self.tokens_at_once = 16 * HostBackend.tokens_at_once

        def open_file(segment: Segment) -> Run:
            path = folder / segment.file
            key = (path.resolve(), segment.sha256, threads, repr(providers))
            session = opened_once(key, lambda: open_session(path, threads, providers))
            self.providers = session.get_providers()
            outputs = [output.name for output in segment.outputs]
            if segment.layer == 0 and providers is CPU:
                return _Embeddings(session, outputs)
            return partial(session.run, outputs)

        super().__init__(folder, manifest, threads, open_file, lazy=lazy)


class _Embeddings:
    """Runs the first segment, and has the first small batch after a large one give back what that took."""

    def __init__(self, session: ort.InferenceSession, outputs: list[str]) -> None:
        self._session, self._outputs = session, outputs
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._large = False

    def __call__(self, named: dict[str, npt.NDArray]) -> Sequence[npt.NDArray]:
        large = max(array.size for array in named.values()) > LARGE
        options = self._shrink if self._large and not large else None
        self._large = large
        return self._session.run(self._outputs, named, options)


def open_backend(folder: Path, manifest: Manifest, threads: int | None, *, lazy: bool = False) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(folder, manifest, threads or default_threads(), lazy=lazy)


def open_session(path: Path, threads: int, providers: Providers = CPU) -> ort.InferenceSession:
    """Raises BerxitError for a file that ONNX Runtime does not take."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if providers is CPU:
        shared_arena()
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")  # weights stay outside
        options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # ONNX Runtime has a dozen unrelated exception types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BerxitError(f"ONNX Runtime {ort.__version__} cannot load {path}: {reason}. Export again here") from error


@cache
def shared_arena() -> None:
    """Memory for what sessions compute; only those that ask for it take from it: ours.

    It grows in powers of two. Growing by what is asked for leaves a piece for every length that came by: 16 lengths at
    batch 64 then held 1,294 MiB instead of 229 (MiniLM-L6).
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    no_limit, powers_of_two, default = 0, 0, -1
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(no_limit, powers_of_two, default, default))
