"""TensorRT for RTX: the same segments and the same loop on desktop RTX GPUs, with engines built ahead of time."""

from __future__ import annotations

from pathlib import Path

from berxit.runtime.backends.tensorrt.backend import TensorRtBackend, open_with
from berxit.runtime.backends.tensorrt.cuda import no_gpu
from berxit.runtime.bundle import Manifest
from berxit.runtime.bundle_files import BundleFolder
from berxit.runtime.progress import Progress, silent


def unusable_here(**_: bool) -> str | None:
    """The reason why this machine cannot run it; None if it can."""
    return no_gpu()


def open_backend(
    folder: Path | BundleFolder,
    manifest: Manifest,
    threads: int | None,
    *,
    progress: Progress = silent,
) -> TensorRtBackend:
    return open_with("tensorrt-rtx", folder, manifest, progress=progress)
