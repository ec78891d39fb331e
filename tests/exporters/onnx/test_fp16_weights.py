"""Weights stored in float16: half the bytes, the same predictions, float32 everywhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from berxit.exporters.export import export
from berxit.exporters.onnx.fp16_weights import FLOAT32_WEIGHTS, store_weights_fp16
from berxit.exporters.onnx.graph import embeddings_graph, layer_graph
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments, split_segments
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import files_of
from berxit.runtime.errors import BerxitError
from berxit.train.modeling import MultiExitModel


@pytest.fixture(params=["bert", "albert", "mpnet"])
def segments(request: pytest.FixtureRequest, backbone_folders: dict[str, Path]) -> Segments:
    return split_segments(MultiExitModel.from_backbone(backbone_folders[request.param], lte=True))


def test_store_weights_fp16_changes_only_matrices(segments: Segments) -> None:
    for plain in (embeddings_graph(segments), layer_graph(segments, segments.layers[0])):
        small = store_weights_fp16(plain)
        assert (small.inputs, small.outputs, small.constants) == (plain.inputs, plain.outputs, plain.constants)
        before = {tensor.name: numpy_helper.to_array(tensor) for tensor in plain.model.graph.initializer}
        after = {tensor.name: numpy_helper.to_array(tensor) for tensor in small.model.graph.initializer}
        for name, value in before.items():
            if value.dtype == np.float32 and value.ndim > 1 and name.rpartition("/")[2] not in FLOAT32_WEIGHTS:
                stored = after[name if name in after else f"{name}.half"]
                assert stored.dtype == np.float16
                assert np.allclose(stored, value, rtol=1e-3, atol=1e-6)
            else:
                assert np.array_equal(after[name], value)


def test_store_weights_fp16_casts_only_looked_up_rows(segments: Segments) -> None:
    graph = store_weights_fp16(embeddings_graph(segments)).model.graph
    (lookup,) = [node for node in graph.node if "words" in node.input]
    assert lookup.op_type == "Gather"
    (cast,) = [node for node in graph.node if lookup.output[0] in node.input]
    assert cast.op_type == "Cast"


def test_store_weights_fp16_names_a_weight_beyond_float16(segments: Segments) -> None:
    first = segments.layers[0]
    up = replace(first.encoder.up, weight=first.encoder.up.weight * 1e7)
    large = replace(first, encoder=replace(first.encoder, up=up))
    with pytest.raises(BerxitError, match=r"weight up\.weight has values that float16 cannot hold: export in fp32"):
        store_weights_fp16(layer_graph(replace(segments, layers=(large, *segments.layers[1:])), large))


def test_fp16_bundle_predicts_as_fp32(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    manifest = export(checkpoint, "onnxruntime", tmp_path / "half", options=ExportOptions(precision="fp16"))
    assert manifest.precision == "fp16"
    assert manifest.scores is None
    assert 0 < max(manifest.parity.max_diff) < 1e-2
    assert "segments/layer_03.onnx" in files_of(manifest)
    texts = ["the cat sat", "a dog ran", "big red tree", "the small cat"]
    half, plain = EarlyExitRunner.load(tmp_path / "half"), EarlyExitRunner.load(bundle)
    for found, expected in zip(half.predict_batch(texts), plain.predict_batch(texts), strict=True):
        assert (found.label, found.exit_layer) == (expected.label, expected.exit_layer)
        assert found.scores == pytest.approx(expected.scores, abs=5e-3)
