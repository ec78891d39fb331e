"""ONNX Runtime on the CPU: one session per segment file.

Sessions with default options each keep a pool of threads that spins after every run, and starve each other: 12 segments
then take ten times what one graph takes. ``session.force_spinning_stop`` ends the spinning when a run ends; it costs
1-8% at two threads against one graph and, unlike a process-wide pool, changes nothing for the app around us.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort

from devices import default_threads
from runtime.backends.host import HostBackend, Run
from runtime.bundle import Manifest, Segment
from runtime.errors import BerxitError

Providers = Sequence[str | tuple[str, dict[str, Any]]]
"""ONNX Runtime's execution providers, the best first; with their options, where they have any."""
CPU: Providers = ("CPUExecutionProvider",)


class OnnxRuntimeBackend(HostBackend):
    """Runs segments with ONNX Runtime, on the CPU unless told otherwise; the loop's Backend."""

    name = "onnxruntime"

    def __init__(self, folder: Path, manifest: Manifest, threads: int, providers: Providers = CPU) -> None:
        options = _session_options(threads)
        self.providers: list[str] = []
        """What the sessions really run on."""

        def open_file(segment: Segment) -> Run:
            session = _open_session(folder / segment.file, options, providers)
            self.providers = session.get_providers()
            return partial(session.run, [output.name for output in segment.outputs])

        super().__init__(folder, manifest, threads, open_file)


def open_backend(folder: Path, manifest: Manifest, threads: int | None) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(folder, manifest, threads or default_threads())


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _open_session(path: Path, options: ort.SessionOptions, providers: Providers) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # ONNX Runtime has a dozen unrelated exception types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BerxitError(f"ONNX Runtime {ort.__version__} cannot load {path}: {reason}. Export again here") from error
