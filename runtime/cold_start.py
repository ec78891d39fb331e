"""Start of a bundle in a new process: load time, latency of the first prediction, and memory.

The bench measures it in child processes, because its own process has loaded the bundle already, and other packages.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from berxit import devices
from berxit.runtime.progress import Progress, show_note, silent
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tokenization import Text

_LOG = logging.getLogger(__name__)
STARTS = 3
"""Number of measured starts; the reported values are their medians."""
SCRIPT = """import time
start = time.perf_counter()
from berxit.runtime.cold_start import main
main(start)"""
"""Code of the new process. It does not start this module, because the import is measured, too."""
LONGEST_S = 600
"""A start that takes longer is stopped."""


@dataclass(frozen=True)
class ColdStart:
    """A start in a new process; medians of several. The operating system may have cached the files."""

    import_s: float
    """Seconds to import the runtime; the interpreter's own start is not included."""
    load_s: float
    """Seconds of ``EarlyExitRunner.load``, checksums and the import of the backend included."""
    first_ms: float
    """Milliseconds of the first prediction, under the bundle's own policy."""
    starts: int
    memory_before_mib: float | None
    """Peak resident memory before the bundle was loaded: interpreter and runtime. None if the system does not report
    it, as all values of the memory."""
    memory_by_layer: dict[int, float | None]
    """Exit layer -> peak resident memory of a process whose inputs have reached that layer and no deeper one. If the
    backend can load a layer when it is first reached (``lazy``), the deeper layers are not loaded."""
    lazy: bool
    """True if ``memory_by_layer`` was measured with ``lazy``."""


def measure_cold_start(
    bundle: Path, arguments: Mapping[str, Any], inputs: Sequence[Text], *, lazy: bool, progress: Progress = silent
) -> ColdStart | None:
    """``arguments``: of ``EarlyExitRunner.load``, as JSON types. ``inputs``: the first one is predicted first; all of
    them run at every depth. ``lazy``: the backend can load layers when they are first reached.

    Returns None if a new process cannot run, with a warning in the log: the other measurements are valid without it.
    """
    found: list[dict[str, Any]] = []
    with progress(STARTS + 1) as bar:
        show_note(bar, "load time and memory")
        for start in range(STARTS + 1):
            depth = start == STARTS
            request = {
                "bundle": str(bundle),
                "arguments": {**arguments, "lazy": lazy if depth else bool(arguments.get("lazy"))},
                "inputs": list(inputs) if depth else list(inputs[:1]),
                "by_layer": depth,
            }
            try:
                found.append(_child(request))
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                _LOG.warning("load time and memory were not measured: a new process failed: %s", _last_line(error))
                return None
            bar.update(1)
    *starts, deep = found

    def median(name: str) -> float:
        return sorted(float(each[name]) for each in starts)[len(starts) // 2]

    return ColdStart(
        median("import_s"),
        median("load_s"),
        median("first_ms"),
        len(starts),
        deep["memory_before_mib"],
        {int(layer): mib for layer, mib in deep["memory_by_layer"].items()},
        lazy,
    )


def _child(request: dict[str, Any]) -> dict[str, Any]:
    """Runs ``main`` in a new process, which finds the packages of this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        (sys.executable, "-c", SCRIPT),
        input=json.dumps(request),
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _last_line(error: Exception) -> str:
    lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def main(start: float) -> None:
    """Reads a request from standard input, and writes the measurement to standard output, both as JSON. ``start``:
    before the import."""
    imported = time.perf_counter()
    request = json.load(sys.stdin)
    before = devices.peak_resident_mib()
    options = request["arguments"]
    loading = time.perf_counter()
    runner = EarlyExitRunner.load(request["bundle"], options.pop("device", "auto"), **options)
    loaded = time.perf_counter()
    texts: list[Text] = [text if isinstance(text, str) else (text[0], text[1]) for text in request["inputs"]]
    memory, first = {}, None
    if request["by_layer"]:
        for layer in runner.backend.exits:
            for text in texts:
                runner.answer([text], runner.policy.at_depth(layer))
            memory[layer] = devices.peak_resident_mib()
    else:
        first = runner.answer(texts, runner.policy)[0].latency_ms
    result = {
        "import_s": imported - start,
        "load_s": loaded - loading,
        "first_ms": first,
        "memory_before_mib": before,
        "memory_by_layer": memory,
    }
    os.write(1, json.dumps(result).encode())  # the answer to the parent process
