"""ONNX Runtime's GPU providers. Without one, what can be shown is the choice, the padding, and what is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from exporters.export import export
from exporters.options import ExportOptions
from runtime.backends import open_backend
from runtime.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend, providers
from runtime.bundle import read_manifest
from runtime.errors import BerxitError
from runtime.golden import differences, read_golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    output = tmp_path_factory.mktemp("gpu") / "bundle"
    export(checkpoint, "tensorrt", output, options=ExportOptions("fp32", (8, 32)))
    return output


def test_the_best_provider_comes_first() -> None:
    available = ["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]
    chosen = providers(available, "fp16")
    assert [name if isinstance(name, str) else name[0] for name in chosen] == available[::-1]
    options = dict(entry for entry in chosen if not isinstance(entry, str))
    assert options["TensorrtExecutionProvider"]["trt_fp16_enable"]
    assert not options["TensorrtExecutionProvider"]["trt_int8_enable"]
    assert not dict(e for e in providers(available, "fp32") if not isinstance(e, str))["CUDAExecutionProvider"][
        "use_tf32"
    ]
    assert [entry[0] for entry in providers(available[:2], "int8")[:1]] == ["CUDAExecutionProvider"]


def test_without_a_gpu_provider_one_line_says_how_to_get_one(folder: Path) -> None:
    if set(onnxruntime.get_available_providers()) & {"CUDAExecutionProvider", "TensorrtExecutionProvider"}:
        pytest.skip("this onnxruntime has a GPU provider")
    with pytest.raises(BerxitError, match=r"needs tensorrt, or an onnxruntime with .* pip install onnxruntime-gpu"):
        open_backend(folder, read_manifest(folder), backend="onnxruntime-gpu")


def test_inputs_are_padded_to_the_lengths_and_stay_so(folder: Path) -> None:
    manifest = read_manifest(folder)
    backend = OnnxRuntimeGpuBackend(folder, manifest, 1, ("CPUExecutionProvider",))
    golden = read_golden(folder, manifest)
    assert max(differences(backend, golden, 0)) <= 1e-5
    batch = golden.batch(0)
    state = backend.embed(batch)
    assert 8 < batch.input_ids.shape[1] < 32
    assert state.tensors["hidden"].shape == (len(batch), 32, 32)
    kept = backend.keep(state, np.arange(len(batch)) == int(batch.lengths.argmin()))
    assert kept.tensors["hidden"].shape == (1, 32, 32)
