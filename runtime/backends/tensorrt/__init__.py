"""TensorRT on Jetson and desktop GPUs.

versions.py   differences between TensorRT 8.5 to 11 and TensorRT-RTX
cuda.py       calls of the CUDA runtime, through cuda-python
engines.py    from segment files to engines: build, timing cache, engine cache
plan.py       memory layout of an input length
backend.py    the exit loop's Backend
rtx.py        the same with TensorRT-RTX
"""

from __future__ import annotations

from pathlib import Path

from berxit.runtime.backends.tensorrt.backend import TensorRtBackend, open_with
from berxit.runtime.backends.tensorrt.cuda import no_gpu
from berxit.runtime.bundle import Manifest
from berxit.runtime.bundle_files import BundleFolder
from berxit.runtime.progress import Progress, silent

__all__ = ["TensorRtBackend", "open_backend", "unusable_here"]


def unusable_here(**_: bool) -> str | None:
    """The reason why this machine cannot run it; None if it can."""
    return no_gpu()


def open_backend(
    folder: Path | BundleFolder,
    manifest: Manifest,
    threads: int | None,
    *,
    cuda_graphs: bool = False,
    run_ahead: bool = False,
    zero_copy: bool = False,
    progress: Progress = silent,
) -> TensorRtBackend:
    return open_with(
        "tensorrt",
        folder,
        manifest,
        cuda_graphs=cuda_graphs,
        run_ahead=run_ahead,
        zero_copy=zero_copy,
        progress=progress,
    )
