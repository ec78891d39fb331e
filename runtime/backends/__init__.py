"""Back ends: each runs one target's segment files for the exit loop.

A new one is one module here and one line in BACKENDS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.bundle import Manifest
from runtime.errors import BerxitError, InputError

if TYPE_CHECKING:
    from runtime.loop import Backend


@dataclass(frozen=True)
class BackendInfo:
    module: str
    """The module here that has ``open_backend(folder, manifest, threads)``."""
    package: str
    """What it imports; not there -> the user is told how to install it."""
    install: str


BACKENDS = {
    "onnxruntime": BackendInfo("runtime.backends.onnxruntime", "onnxruntime", "pip install 'berxit[onnxruntime]'"),
}
"""Target name in the manifest -> the back end that runs it."""


def open_backend(folder: Path, manifest: Manifest, threads: int | None = None) -> Backend:
    """Loads a bundle's segments. Raises BerxitError where this machine has no back end for the bundle's target."""
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}: it must be at least 1")
    info = BACKENDS.get(manifest.target)
    if info is None:
        raise BerxitError(
            f"{folder} was exported for '{manifest.target}', which this berxit cannot run:"
            f" it runs {', '.join(BACKENDS)}. Upgrade berxit, or export for one of these"
        )
    try:
        opener: Callable[[Path, Manifest, int | None], Backend] = import_module(info.module).open_backend
    except ModuleNotFoundError as error:
        if error.name != info.package:
            raise
        raise BerxitError(f"{folder} needs {info.package}, which is not installed here: {info.install}") from None
    return opener(folder, manifest, threads)
