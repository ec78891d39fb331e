"""ONNX Runtime's TensorRT or CUDA execution provider (onnxruntime-gpu) for TensorRT bundles: their files are plain
ONNX.

Tensors are copied through host memory between segments, so a layer takes longer than with the backend ``tensorrt``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from berxit.devices import install_command
from berxit.runtime.backends.host import HostBackend, Run, State, opened_once
from berxit.runtime.backends.onnxruntime import Providers, open_session, ports_of
from berxit.runtime.backends.tensorrt.engines import rows_of
from berxit.runtime.backends.tensorrt.plan import shape_of
from berxit.runtime.bundle import Manifest, Segment
from berxit.runtime.bundle_files import BundleFile, BundleFolder
from berxit.runtime.cache import cache_folder
from berxit.runtime.errors import BerxitError
from berxit.runtime.loop import Backend
from berxit.runtime.manifest_checks import check_ports
from berxit.runtime.policies import Bools, Floats
from berxit.runtime.tokenization import TokenBatch

PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
HALF = ("fp16", "int8")
"""Precisions that run on the TensorRT provider. It cannot disable TF32, which has 10 bits of mantissa (ONNX Runtime's
issue 26029); fp32 therefore runs on the CUDA provider. Only the newest versions support bf16."""


def providers(available: list[str], manifest: Manifest, segment: Segment) -> Providers:
    """Execution providers for the segment, the best first. The CPU runs only operators that no GPU provider supports.

    Raises BerxitError if there is no GPU provider for it.
    """
    options: dict[str, dict[str, Any]] = {"CUDAExecutionProvider": {"use_tf32": False}}  # Exits are float32.
    if manifest.precision in HALF:
        options["TensorrtExecutionProvider"] = {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(engine_folder(manifest) / segment.sha256[:24]),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(engine_folder(manifest)),
            "trt_fp16_enable": True,
            "trt_int8_enable": manifest.precision == "int8",
            "trt_profile_min_shapes": _shapes(segment, 1, manifest.lengths[0]),
            "trt_profile_opt_shapes": _shapes(segment, 1, manifest.lengths[-1]),
            "trt_profile_max_shapes": _shapes(segment, rows_of(manifest), manifest.lengths[-1]),
        }
    chosen = [(name, options[name]) for name in PROVIDERS if name in available and name in options]
    if not chosen:
        raise BerxitError(
            "this needs tensorrt, or an onnxruntime with the TensorRT or CUDA provider, and the onnxruntime here has"
            f" {', '.join(available)} only: {install_command('tensorrt')}, or {install_command('onnxruntime-gpu')}"
        )
    return [*chosen, "CPUExecutionProvider"]


def unusable_here() -> str | None:
    """The reason why this machine cannot run it; None if it can."""
    available = ort.get_available_providers()
    return None if set(PROVIDERS) & set(available) else f"the onnxruntime here has {', '.join(available)} only"


def engine_folder(manifest: Manifest) -> Path:
    """Folder of the TensorRT provider's engines for this bundle.

    The provider identifies engines by the names in a graph, which layers share and retraining does not change. So every
    bundle has a folder of its own, named after everything its engines depend on, with one folder per segment file.
    """
    files = [segment.sha256 for segment in manifest.segments]
    held = json.dumps([files, manifest.precision, manifest.lengths, rows_of(manifest)])
    return cache_folder() / "onnxruntime" / sha256(held.encode()).hexdigest()[:24]


def _shapes(segment: Segment, rows: int, length: int) -> str:
    """Shapes of the inputs that vary, as ``name:1x16,...``."""
    varying = [tensor for tensor in segment.inputs if any(isinstance(size, str) for size in tensor.shape)]
    return ",".join(f"{tensor.name}:{'x'.join(map(str, shape_of(tensor, rows, length)))}" for tensor in varying)


class OnnxRuntimeGpuBackend(Backend):
    """Backend on a GPU provider of ONNX Runtime. Inputs are padded to the bundle's lengths, because a GPU provider
    needs time for every new shape. A call runs in parts of at most ``max_batch`` rows."""

    name = "onnxruntime-gpu"

    def __init__(
        self,
        folder: Path | BundleFolder,
        manifest: Manifest,
        threads: int,
        providers_of: Callable[[Segment], Providers],
    ) -> None:
        self.layers, self.exits, self.threads = manifest.model.layers, manifest.exits, threads
        self.providers: list[str] = []
        """Execution providers that the sessions use."""

        bundle = BundleFolder.at(folder)

        def open_file(segment: Segment, file: BundleFile) -> Run:
            chosen = providers_of(segment)
            if file.content is None:
                file.verify()  # Its sha256 is the key of stored engines.
            session = opened_once([file], (threads, repr(chosen)), lambda: open_session(file, threads, chosen))
            check_ports(segment, *ports_of(session), str(file))
            self.providers = session.get_providers()
            return partial(session.run, [output.name for output in segment.outputs])

        self._part = HostBackend(bundle, manifest, threads, open_file)
        self._lengths, self._rows = manifest.lengths, rows_of(manifest)
        self._pad_token_id = manifest.model.pad_token_id

    def embed(self, batch: TokenBatch) -> tuple[State, ...]:
        longest = batch.input_ids.shape[1]
        length = next((length for length in self._lengths if length >= longest), longest)
        width = ((0, 0), (0, length - longest))
        ids = np.pad(batch.input_ids, width, constant_values=self._pad_token_id)
        types, mask = np.pad(batch.token_type_ids, width), np.pad(batch.attention_mask, width)
        rows = [slice(start, start + self._rows) for start in range(0, len(batch), self._rows)]
        states = [self._part.embed(TokenBatch(ids[part], types[part], mask[part])) for part in rows]
        return tuple(state._replace(lengths=np.full(len(state.lengths), length)) for state in states)

    def layer(self, layer: int, state: tuple[State, ...]) -> tuple[tuple[State, ...], Floats, Floats | None]:
        states, logits, lte = zip(*(self._part.layer(layer, part) for part in state), strict=True)
        return states, np.concatenate(logits), None if lte[0] is None else np.concatenate(lte)

    def keep(self, state: tuple[State, ...], rows: Bools) -> tuple[State, ...]:
        stay = np.split(rows, np.cumsum([len(part.lengths) for part in state])[:-1])
        return tuple(self._part.keep(part, kept) for part, kept in zip(state, stay, strict=True) if kept.any())


def open_backend(folder: Path | BundleFolder, manifest: Manifest, threads: int | None) -> OnnxRuntimeGpuBackend:
    """Raises BerxitError if onnxruntime has no GPU provider, or cannot start it."""
    available = ort.get_available_providers()
    providers(available, manifest, manifest.segments[0])  # Raises before a folder is created.
    engines = engine_folder(manifest)
    try:
        for segment in manifest.segments:
            (engines / segment.sha256[:24]).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BerxitError(
            f"cannot write {engines}: {error.strerror}. Set BERXIT_CACHE to a folder with room"
        ) from error
    backend = OnnxRuntimeGpuBackend(folder, manifest, threads or 1, partial(providers, available, manifest))
    if not set(backend.providers) & set(PROVIDERS):
        raise BerxitError(
            f"onnxruntime {ort.__version__} runs {folder} on the CPU though it has a GPU provider: its CUDA, cuDNN or"
            " TensorRT libraries do not fit what is installed here (see ONNX Runtime's table of versions)"
        )
    return backend
