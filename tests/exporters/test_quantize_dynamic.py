"""Int8 segments: what is stored, what is multiplied, and how near the answers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import shared
from onnx import numpy_helper

from exporters.export import export
from exporters.onnx_graph import embeddings_graph, layer_graph
from exporters.options import ExportOptions
from exporters.quantize_dynamic import PRODUCTS, STEPS, quantized
from exporters.segments import Segments, cut
from runtime import EarlyExitRunner
from runtime.bundle import read_manifest
from train.modeling import MultiExitModel


@pytest.fixture
def segments(backbone_folders: dict[str, Path]) -> Segments:
    return cut(MultiExitModel.from_backbone(backbone_folders["bert"], lte=True))


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_a_layers_four_products_are_int8_and_its_exit_is_not(segments: Segments) -> None:
    plain = layer_graph(segments, segments.layers[0])
    model = quantized(plain).model
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMulInteger") == 4
    assert kinds.count("DynamicQuantizeLinear") == 4
    weights = initializers(model)
    assert {name for name, value in weights.items() if value.dtype == np.int8} == set(PRODUCTS) - {"projection.weight"}
    assert weights["classifier.weight"].dtype == weights["lte.weight"].dtype == np.float32


def test_a_weight_is_no_further_off_than_half_a_step_of_its_column(segments: Segments) -> None:
    before = initializers(layer_graph(segments, segments.layers[0]).model)
    after = initializers(quantized(layer_graph(segments, segments.layers[0])).model)
    for name in set(PRODUCTS) & set(before):
        step = np.abs(before[name]).max(axis=0) / STEPS
        assert np.allclose(after[f"{name}.scale"], step)
        assert (np.abs(after[name].astype(float) * step - before[name]) <= step / 2 + 1e-7).all()
        assert np.abs(after[name].astype(int)).max() == STEPS  # two products of a byte and this fit into 16 bits


def test_words_are_stored_in_int8_row_by_row(segments: Segments) -> None:
    before = initializers(embeddings_graph(segments).model)["words"]
    after = initializers(quantized(embeddings_graph(segments)).model)
    assert after["words"].dtype == np.int8
    assert np.abs(after["words"] * after["words.scale"] - before).max() <= np.abs(before).max() / 254 + 1e-7
    assert after["positions"].dtype == np.float32


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_what_goes_in_and_out_stays_the_same(family: str, backbone_folders: dict[str, Path]) -> None:
    segments = cut(MultiExitModel.from_backbone(backbone_folders[family], lte=True))
    plain = layer_graph(segments, segments.layers[0])
    small = quantized(plain)
    assert (small.inputs, small.outputs, small.constants) == (plain.inputs, plain.outputs, plain.constants)
    assert small.model.graph.input == plain.model.graph.input
    assert small.model.graph.output == plain.model.graph.output


def test_an_int8_bundle_answers_as_the_float_one(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    manifest = export(checkpoint, "onnxruntime", tmp_path / "int8", options=ExportOptions(precision="int8"))
    assert manifest.precision == "int8"
    assert 1e-4 < max(manifest.parity.max_diff) < 0.5
    texts = ["the cat sat", "a dog ran", "big red tree", "the small cat"]
    small, plain = EarlyExitRunner.load(tmp_path / "int8"), EarlyExitRunner.load(bundle)
    assert [a.label for a in small.predict_batch(texts)] == [a.label for a in plain.predict_batch(texts)]


def test_real_weights_shrink_to_a_quarter(tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    from train.checkpoint import TrainingRecord, save_checkpoint

    folder = shared("models", "bge-small-en")
    (tmp_path / "ckpt").mkdir()
    model = MultiExitModel.from_backbone(folder, layers=2, lte=True)
    record = TrainingRecord({}, "", "", 0, 0, 0.0, 0.0, "cpu", {})
    save_checkpoint(tmp_path / "ckpt", model, AutoTokenizer.from_pretrained(folder), record, ["Yes.", "No, not that."])
    sizes = {}
    for precision in ("fp32", "int8"):
        export(tmp_path / "ckpt", "onnxruntime", tmp_path / precision, options=ExportOptions(precision=precision))
        files = {segment.file for segment in read_manifest(tmp_path / precision).segments}
        sizes[precision] = sum((tmp_path / precision / file).stat().st_size for file in files)
        shutil.rmtree(tmp_path / precision)
    assert sizes["int8"] < 0.27 * sizes["fp32"]
