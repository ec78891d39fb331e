"""Provenance of a result: command, options, seeds, commit, versions and machine, stored with the numbers."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from berxit.devices.machine import this_machine
from berxit.runtime.errors import BerxitError
from berxit.runtime.json_data import read_json

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "berxit",
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "coremltools",
    "tensorrt",
    "scipy",
)


MACHINE = ("system", "architecture", "processor", "cores", "memory_gib", "gpu")


@dataclass(frozen=True)
class Invocation:
    """The command that runs."""

    line: str | None = None
    """The command line with the given options; None in a notebook or an app."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """All options with their values."""


invocation: Callable[[], Invocation] = Invocation
"""Returns the command that runs. ``runtime/console.py`` replaces it, because only commands depend on click."""


def provenance() -> dict[str, Any]:
    """Everything that is needed to repeat the present command, as JSON types.

    - ``command`` and ``options``: the command that runs, with all options; None and empty in a notebook. A path is
      reduced to its last part, because results are shared.
    - ``seeds``: the seeds of the command and of the checkpoints among its arguments. ``training``: their options.
    - ``commit``: the commit of a checkout, with ``+`` if tracked files have changed; None in an installation.
    - ``versions`` of the packages that are loaded. ``machine``: processor, cores, memory and GPU.
    """
    running = invocation()
    training = dict(_training(running.options))
    seeds = {each["seed"] for each in (running.options, *training.values()) if isinstance(each.get("seed"), int)}
    machine = asdict(this_machine())
    return {
        "command": running.line,
        "options": {name: without_folders(value) for name, value in running.options.items()},
        "seeds": sorted(seeds),
        "training": training,
        "commit": commit(),
        "versions": _versions(),
        "machine": {name: machine[name] for name in MACHINE},
    }


@lru_cache(maxsize=1)
def commit() -> str | None:
    """First 12 digits of the checkout's commit, with ``+`` if tracked files have changed. None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        return _git("rev-parse", "HEAD")[:12] + ("+" if _git("status", "-s", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _training(parameters: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and training options of each checkpoint among the arguments."""
    for value in parameters.values():
        given = value if isinstance(value, list | tuple) else (value,)
        for part in (part for each in given if isinstance(each, str | Path) for part in str(each).split("=")):
            try:
                file = Path(part) / "training.json"
                options = read_json(file).get("options") if part and file.is_file() else None
            except (BerxitError, OSError):
                continue
            if isinstance(options, dict):
                yield Path(part).resolve().name, options


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        if name in sys.modules:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
    return found


def without_folders(value: Any) -> Any:
    """A value of an option as a JSON type; a path without its folders, also in NAME=PATH."""
    if isinstance(value, list | tuple):
        return [without_folders(each) for each in value]
    if isinstance(value, str | Path):
        return "=".join(_last_part(each, isinstance(value, Path)) for each in str(value).split("="))
    return value if isinstance(value, int | float | bool | None) else str(value)


def _last_part(text: str, is_path: bool) -> str:
    return Path(text).name or text if is_path or ("/" in text and Path(text).exists()) else text
