"""GPU execution providers of ONNX Runtime, without a GPU: their choice and options, padding and error messages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import prepared

from berxit.runtime.backends import open_backend as open_named
from berxit.runtime.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend, engine_folder, open_backend, providers
from berxit.runtime.bundle import Manifest, read_manifest
from berxit.runtime.errors import BerxitError
from berxit.runtime.golden import differences, read_golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    def build(folder: Path) -> None:
        from berxit.exporters.export import export
        from berxit.exporters.options import ExportOptions

        export(checkpoint, "tensorrt", folder / "bundle", options=ExportOptions("fp32", (8, 32)))

    return prepared(tmp_path_factory, "gpu", build) / "bundle"


AVAILABLE = ["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]


def options_of(manifest: Manifest, place: int = 1) -> dict[str, dict]:
    chosen = providers(AVAILABLE, manifest, manifest.segments[place])
    assert chosen[-1] == "CPUExecutionProvider"
    return dict(entry for entry in chosen if not isinstance(entry, str))


def test_providers_prefer_tensorrt(folder: Path) -> None:
    half = replace(read_manifest(folder), precision="fp16")
    assert list(options_of(half)) == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    options = options_of(half)["TensorrtExecutionProvider"]
    assert options["trt_fp16_enable"]
    assert not options["trt_int8_enable"]
    assert options_of(replace(half, precision="int8"))["TensorrtExecutionProvider"]["trt_int8_enable"]
    assert [entry[0] for entry in providers(AVAILABLE[:2], half, half.segments[1])[:1]] == ["CUDAExecutionProvider"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fp32_and_bf16_bundles_use_cuda_provider(precision: str, folder: Path) -> None:
    manifest = replace(read_manifest(folder), precision=precision)
    assert options_of(manifest) == {"CUDAExecutionProvider": {"use_tf32": False}}


def test_engine_folder_is_unique_per_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The provider identifies engines by name only, so the name of the folder must cover weights, precision, shapes."""
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path))
    manifest = replace(read_manifest(folder), precision="fp16")
    again = replace(manifest.segments[2], sha256="0" * 64)
    others = [
        replace(manifest, segments=(*manifest.segments[:2], again, *manifest.segments[3:])),
        replace(manifest, precision="int8"),
        replace(manifest, lengths=(32,)),
        replace(manifest, max_batch=1),
    ]
    folders = {engine_folder(each) for each in (manifest, *others)}
    assert len(folders) == 5
    assert engine_folder(read_manifest(folder)) == engine_folder(replace(manifest, precision="fp32"))
    caches = {options_of(manifest, place)["TensorrtExecutionProvider"]["trt_engine_cache_path"] for place in (1, 2, 3)}
    assert len(caches) == 3  # the layers have the same names
    assert {Path(cache).parent for cache in caches} == {engine_folder(manifest)}
    assert engine_folder(manifest).parent == tmp_path / "onnxruntime"


def test_optimization_profile_covers_all_lengths_and_rows(folder: Path) -> None:
    manifest = replace(read_manifest(folder), precision="fp16")
    options = options_of(manifest, place=0)["TensorrtExecutionProvider"]
    names = [tensor.name for tensor in manifest.segments[0].inputs]
    for bound, shape in (("min", "1x8"), ("opt", "1x32"), ("max", "8x32")):
        assert options[f"trt_profile_{bound}_shapes"] == ",".join(f"{name}:{shape}" for name in names)
    layer = options_of(manifest)["TensorrtExecutionProvider"]["trt_profile_max_shapes"]
    assert layer == "hidden_in:8x32x32,attention_bias:8x1x1x32,token_weights:8x1x32"


def test_open_reports_unwritable_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: AVAILABLE)
    with pytest.raises(BerxitError, match="Set BERXIT_CACHE to a folder with room"):
        open_backend(folder, read_manifest(folder), None)


def test_open_without_gpu_provider_names_install_command(folder: Path) -> None:
    if set(onnxruntime.get_available_providers()) & {"CUDAExecutionProvider", "TensorrtExecutionProvider"}:
        pytest.skip("this onnxruntime has a GPU provider")
    with pytest.raises(BerxitError, match=r"needs tensorrt, or an onnxruntime with .*\[onnxruntime-gpu\]"):
        open_named(folder, read_manifest(folder), backend="onnxruntime-gpu")


def test_inputs_stay_padded_to_engine_lengths(folder: Path) -> None:
    manifest = read_manifest(folder)
    backend = OnnxRuntimeGpuBackend(folder, manifest, 1, lambda segment: ("CPUExecutionProvider",))
    golden = read_golden(folder, manifest)
    assert max(differences(backend, golden, 0)) <= 1e-5
    batch = golden.batch(0)
    state = backend.embed(batch)
    assert 8 < batch.input_ids.shape[1] < 32
    assert [part.tensors["hidden"].shape for part in state] == [(8, 32, 32)] * 4
    kept = backend.keep(state, np.arange(len(batch)) == int(batch.lengths.argmin()))
    assert [part.tensors["hidden"].shape for part in kept] == [(1, 32, 32)]


def test_large_batch_is_split_to_engine_limit(folder: Path) -> None:
    manifest = read_manifest(folder)
    golden = read_golden(folder, manifest)
    batch = golden.batch(0)
    whole, parts = (
        OnnxRuntimeGpuBackend(folder, replace(manifest, max_batch=rows), 1, lambda segment: ("CPUExecutionProvider",))
        for rows in (len(batch), 1 + len(batch) // 2)
    )
    states = [backend.embed(batch) for backend in (whole, parts)]
    assert [len(state) for state in states] == [1, 2]
    stay = np.arange(len(batch)) != 1
    for layer in manifest.exits:
        found = [backend.layer(layer, state) for backend, state in zip((whole, parts), states, strict=True)]
        for one, other in zip(found[0][1:], found[1][1:], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        states = [backend.keep(each[0], stay) for backend, each in zip((whole, parts), found, strict=True)]
        stay = np.arange(sum(stay)) != 0
