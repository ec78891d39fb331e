"""ONNX Runtime's TensorRT or CUDA provider, for those who have onnxruntime-gpu: the TensorRT bundle's files are plain
ONNX. Tensors go over the host between segments, so this costs more per layer than the back end of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from runtime.backends.host import State
from runtime.backends.onnxruntime import OnnxRuntimeBackend, Providers
from runtime.backends.tensorrt.engines import cache_folder
from runtime.bundle import Manifest
from runtime.errors import BerxitError
from runtime.tokenization import TokenBatch

PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


def providers(available: list[str], precision: str) -> Providers:
    """What to run with, the best first; the CPU only for what a GPU provider leaves over. Raises BerxitError."""
    cache = str(cache_folder() / "onnxruntime")
    options: dict[str, dict[str, Any]] = {
        "TensorrtExecutionProvider": {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": cache,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": cache,
            "trt_fp16_enable": precision in ("fp16", "int8"),
            "trt_int8_enable": precision == "int8",
        },
        "CUDAExecutionProvider": {"use_tf32": precision != "fp32"},
    }
    chosen = [(name, options[name]) for name in PROVIDERS if name in available]
    if not chosen:
        raise BerxitError(
            "this needs tensorrt, or an onnxruntime with the TensorRT or CUDA provider, and the onnxruntime here has"
            f" {', '.join(available)} only: on a Jetson JetPack brings tensorrt (python3-libnvinfer), on a desktop"
            " pip install 'berxit[tensorrt]', or pip install onnxruntime-gpu"
        )
    return [*chosen, "CPUExecutionProvider"]


class OnnxRuntimeGpuBackend(OnnxRuntimeBackend):
    """Pads inputs to the bundle's lengths and leaves them so: the TensorRT provider builds an engine per shape."""

    name = "onnxruntime-gpu"

    def __init__(self, folder: Path, manifest: Manifest, threads: int, chosen: Providers) -> None:
        super().__init__(folder, manifest, threads, chosen)
        self._lengths = manifest.lengths
        self._pad_token_id = manifest.model.pad_token_id

    def embed(self, batch: TokenBatch) -> State:
        longest = batch.input_ids.shape[1]
        length = next((length for length in self._lengths if length >= longest), longest)
        width = ((0, 0), (0, length - longest))
        state = super().embed(
            TokenBatch(
                np.pad(batch.input_ids, width, constant_values=self._pad_token_id),
                np.pad(batch.token_type_ids, width),
                np.pad(batch.attention_mask, width),
            )
        )
        return state._replace(lengths=np.full(len(batch), length))


def open_backend(folder: Path, manifest: Manifest, threads: int | None) -> OnnxRuntimeGpuBackend:
    """Raises BerxitError where onnxruntime has no GPU provider, or could not start the one it has."""
    chosen = providers(ort.get_available_providers(), manifest.precision)
    backend = OnnxRuntimeGpuBackend(folder, manifest, threads or 1, chosen)
    if not set(backend.providers) & set(PROVIDERS):
        raise BerxitError(
            f"onnxruntime {ort.__version__} runs {folder} on the CPU though it has a GPU provider: its CUDA, cuDNN or"
            " TensorRT libraries do not fit what is installed here (see ONNX Runtime's table of versions)"
        )
    return backend
