"""Int8 segments: what is stored, what is multiplied, and how near the answers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import shared
from onnx import numpy_helper

from berxit.exporters.export import export
from berxit.exporters.onnx.activations import Activations, _session, _values, product_inputs
from berxit.exporters.onnx.graph import OnnxSegment, embeddings_graph, layer_graph
from berxit.exporters.onnx.int8_dynamic import PRODUCTS, _bytes, _int8_columns, even_factors, quantized
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments, cut
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import files_of, read_manifest
from berxit.runtime.tokenization import TokenBatch
from berxit.train.modeling import MultiExitModel

FOUR = {"qkv.weight", "output.weight", "up.weight", "down.weight"}


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
    assert {name for name, value in weights.items() if value.dtype == np.int8} == FOUR
    assert weights["classifier.weight"].dtype == weights["lte.weight"].dtype == np.float32


def test_a_pooler_is_int8_what_answers_is_not(backbone_folders: dict[str, Path]) -> None:
    pooling = cut(MultiExitModel.from_backbone(backbone_folders["bert"], lte=True, exit_head="pooler"))
    weights = initializers(quantized(layer_graph(pooling, pooling.layers[0])).model)
    assert {name for name, value in weights.items() if value.dtype == np.int8} == {*FOUR, "pooler.weight"}
    shared_body = cut(MultiExitModel.from_backbone(backbone_folders["albert"], lte=True, exit_head="pooler"))
    fed = quantized(layer_graph(shared_body, shared_body.layers[0]))
    assert fed.constants["pooler.weight"].dtype == np.float32  # fed at every layer, since they share the file


def test_a_weight_is_no_further_off_than_half_a_step_of_its_column(segments: Segments) -> None:
    before = initializers(layer_graph(segments, segments.layers[0]).model)
    after = initializers(quantized(layer_graph(segments, segments.layers[0])).model)
    for name in FOUR:
        step = after[f"{name}.scale"]
        assert (np.abs(after[name] * step - before[name]) <= step / 2 + 1e-7).all()
        assert np.abs(after[name].astype(int)).max(axis=0).mean() > 80  # most of the 127 steps are used


def test_no_two_neighbours_overflow_16_bits(segments: Segments) -> None:
    weights = initializers(quantized(layer_graph(segments, segments.layers[0])).model)
    for name in FOUR:
        pairs = weights[name].astype(int).reshape(-1, 2, weights[name].shape[1])
        assert 255 * np.maximum(pairs, 0).sum(axis=1).max() <= 32767
        assert 255 * np.minimum(pairs, 0).sum(axis=1).min() >= -32768
    odd = np.array([[1.0], [0.5], [0.7]], np.float32)
    assert _int8_columns(odd)[0].tolist() == [[85], [42], [59]]


def product_error(weight: np.ndarray, rows: np.ndarray, factors: np.ndarray) -> float:
    """Root mean square, of the product as ONNX Runtime computes it."""
    values, scale = _int8_columns(weight * factors[:, None])
    return float(np.sqrt(np.square(_bytes(rows / factors) @ (values * scale) - rows @ weight).mean()))


def test_large_channels_are_evened_out_where_that_brings_the_product_nearer() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    rows = rng.normal(size=(200, 64)).astype(np.float32)
    rows[:, 5] *= 30
    factors = even_factors(weight, Activations(np.abs(rows).max(axis=0), rows))
    assert factors[5] > 3
    assert (np.delete(factors, 5) < 1.5).all()
    assert product_error(weight, rows, factors) < 0.6 * product_error(weight, rows, np.ones(64, np.float32))
    rows[:, 5] /= 30  # nothing to even out: no operator for little
    assert (even_factors(weight, Activations(np.abs(rows).max(axis=0), rows)) == 1).all()


def test_a_layer_with_large_channels_is_nearer_when_they_are_evened_out(backbone_folders: dict[str, Path]) -> None:
    model = MultiExitModel.from_backbone(backbone_folders["bert"], lte=True)
    with torch.no_grad():
        model.backbone.encoder.layer[0].attention.output.LayerNorm.weight[3] *= 40
    segments = cut(model)
    plain = layer_graph(segments, segments.layers[0])
    rng = np.random.default_rng(0)
    feeds = {
        "hidden_in": rng.normal(size=(1, 20, 32)).astype(np.float32),
        "attention_bias": np.zeros((1, 1, 1, 20), np.float32),
    }
    samples = [TokenBatch.pad([rng.integers(5, 27, 12).tolist()], [[0] * 12], 0) for _ in range(8)]
    pairs = [(segment, layer_graph(segments, segment)) for segment in segments.layers]
    inputs = product_inputs(embeddings_graph(segments), pairs, samples, PRODUCTS)
    found = inputs[segments.layers[0].body]
    assert set(found) == FOUR
    assert found["up.weight"].largest.argmax() == 3
    graphs = (plain, quantized(plain), quantized(plain, found))
    exact, coarse, even = (_values(_session(graph.model), graph, _roles(plain, feeds))["hidden"] for graph in graphs)
    assert np.abs(even - exact).mean() < 0.6 * np.abs(coarse - exact).mean()
    assert "Mul" not in {node.op_type for node in quantized(plain).model.graph.node if "evened" in node.name}


def _roles(graph: OnnxSegment, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {info.role: feeds[info.name] for info in graph.inputs}


def test_layers_that_share_a_file_are_quantised_alike(backbone_folders: dict[str, Path]) -> None:
    segments = cut(MultiExitModel.from_backbone(backbone_folders["albert"], lte=True))
    samples = [TokenBatch.pad([[2, 7, 9, 11, 3]], [[0] * 5], 0)]
    pairs = [(segment, layer_graph(segments, segment)) for segment in segments.layers]
    inputs = product_inputs(embeddings_graph(segments), pairs, samples, PRODUCTS)
    (found,) = inputs.values()
    assert len(found["up.weight"].rows) == 3 * 5
    assert len({quantized(graph, found).model.SerializeToString() for _, graph in pairs}) == 1


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
    assert manifest.parity.atol == 2 * max(manifest.parity.max_diff)  # for a device: 2.0 would let anything pass
    texts = ["the cat sat", "a dog ran", "big red tree", "the small cat"]
    small, plain = EarlyExitRunner.load(tmp_path / "int8"), EarlyExitRunner.load(bundle)
    assert [a.label for a in small.predict_batch(texts)] == [a.label for a in plain.predict_batch(texts)]


def test_real_weights_shrink_to_a_quarter(tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    from berxit.train.checkpoint import TrainingRecord, save_checkpoint

    folder = shared("models", "bge-small-en")
    (tmp_path / "ckpt").mkdir()
    model = MultiExitModel.from_backbone(folder, layers=2, lte=True)
    record = TrainingRecord({}, "", "", 0, 0, 0.0, 0.0, "cpu", {})
    save_checkpoint(tmp_path / "ckpt", model, AutoTokenizer.from_pretrained(folder), record, ["Yes.", "No, not that."])
    sizes = {}
    for precision in ("fp32", "int8"):
        export(tmp_path / "ckpt", "onnxruntime", tmp_path / precision, options=ExportOptions(precision=precision))
        files = [file for file in files_of(read_manifest(tmp_path / precision)) if file.startswith("segments/")]
        sizes[precision] = sum((tmp_path / precision / file).stat().st_size for file in files)
        shutil.rmtree(tmp_path / precision)
    assert sizes["int8"] < 0.27 * sizes["fp32"]
