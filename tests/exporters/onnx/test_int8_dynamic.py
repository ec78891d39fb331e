"""Int8 segments: what is stored, what is multiplied, and how near the answers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import shared
from onnx import TensorProto, helper, numpy_helper

from berxit.exporters.export import export
from berxit.exporters.onnx import int8_dynamic
from berxit.exporters.onnx.activations import Activations, _session, _values, product_inputs
from berxit.exporters.onnx.graph import GraphWriter, OnnxSegment, embeddings_graph, layer_graph
from berxit.exporters.onnx.int8_dynamic import (
    LOWEST,
    PRODUCTS,
    TokenQuantization,
    _int8_columns,
    even_factors,
    quantized,
)
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments, split_segments
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import files_of, read_manifest
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.loop import every_exit
from berxit.runtime.tokenization import TokenBatch
from berxit.train.fine_tuning import TrainingOptions, fine_tune
from berxit.train.modeling import MultiExitModel
from berxit.train.tasks import custom_task

FOUR = {"qkv.weight", "output.weight", "up.weight", "down.weight"}
SIGNED = TokenQuantization.of("qkv.weight")


@pytest.fixture
def segments(backbone_folders: dict[str, Path]) -> Segments:
    return split_segments(MultiExitModel.from_backbone(backbone_folders["bert"], lte=True))


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_a_layers_four_products_are_int8_and_its_exit_is_not(segments: Segments) -> None:
    plain = layer_graph(segments, segments.layers[0])
    model = quantized(plain).model
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMulInteger") == 4
    assert kinds.count("QuantizeLinear") == 4
    assert "DynamicQuantizeLinear" not in kinds  # its scale depends on the whole batch
    weights = initializers(model)
    assert {name for name, value in weights.items() if value.dtype == np.int8} == FOUR
    assert weights["classifier.weight"].dtype == weights["lte.weight"].dtype == np.float32


def test_a_pooler_is_int8_what_answers_is_not(backbone_folders: dict[str, Path]) -> None:
    pooling = split_segments(MultiExitModel.from_backbone(backbone_folders["bert"], lte=True, exit_head="pooler"))
    weights = initializers(quantized(layer_graph(pooling, pooling.layers[0])).model)
    assert {name for name, value in weights.items() if value.dtype == np.int8} == {*FOUR, "pooler.weight"}
    shared_body = split_segments(MultiExitModel.from_backbone(backbone_folders["albert"], lte=True, exit_head="pooler"))
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
    return float(np.sqrt(np.square(SIGNED.dequantized(rows / factors) @ (values * scale) - rows @ weight).mean()))


def test_large_channels_are_evened_out_where_that_brings_the_product_nearer() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    rows = rng.normal(size=(200, 64)).astype(np.float32)
    rows[:, 5] *= 30
    factors = even_factors(weight, Activations(np.abs(rows).max(axis=0), rows), SIGNED)
    assert factors[5] > 2
    assert (np.delete(factors, 5) < 1.5).all()
    assert product_error(weight, rows, factors) < 0.5 * product_error(weight, rows, np.ones(64, np.float32))
    rows[:, 5] /= 30  # nothing to even out: no operator for little
    assert (even_factors(weight, Activations(np.abs(rows).max(axis=0), rows), SIGNED) == 1).all()


def test_even_factors_counts_each_token_relative_to_its_own_product() -> None:
    """One token of very large values, at which smoothing helps, must not decide for 199 tokens at which it harms."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    rows = rng.normal(size=(200, 64)).astype(np.float32)
    rows[0] *= 1000
    rows[0, 5] *= 30
    assert (even_factors(weight, Activations(np.abs(rows).max(axis=0), rows), SIGNED) == 1).all()


def quantized_by_operators(quantization: TokenQuantization, x: np.ndarray) -> np.ndarray:
    constants: dict[str, np.ndarray] = {}
    nodes, outputs = quantization.nodes("x", constants)
    graph = helper.make_graph(
        nodes,
        "quantization",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", x.shape[1]])],
        [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in zip(outputs[:2], (TensorProto.UINT8, TensorProto.FLOAT), strict=True)
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values, scale = _session(model).run(None, {"x": x})
    return (values.astype(np.float32) - quantization.zero_point) * scale


@pytest.mark.parametrize("weight", ["qkv.weight", "1/down.weight"])
def test_token_quantization_matches_its_operators_and_stays_within_half_a_step(weight: str) -> None:
    quantization = TokenQuantization.of(weight)
    x = (
        np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
        * np.logspace(-3, 3, 50, dtype=np.float32)[:, None]
    )
    x[7] = 0
    x = x if quantization.signed else np.maximum(x, -LOWEST)
    found = quantized_by_operators(quantization, x)
    np.testing.assert_allclose(found, quantization.dequantized(x), rtol=1e-6)
    largest = (np.abs(x) if quantization.signed else x).max(axis=1, keepdims=True)
    step = np.maximum(largest / quantization.steps, quantization.smallest_scale)
    assert (np.abs(found - x) <= step * 0.5001).all()
    assert not found[7].any()


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_no_activation_goes_below_the_lowest_value(name: str) -> None:
    writer = GraphWriter()
    output = writer.activation(name, "x")
    values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n"]) for each in ("x", output)]
    weights = [numpy_helper.from_array(value, key) for key, value in writer.weights.items()]
    graph = helper.make_graph(writer.nodes, name, values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (found,) = _session(model).run(None, {"x": np.linspace(-20, 20, 400_001, dtype=np.float32)})
    assert found.min() >= -LOWEST


def test_a_layer_with_large_channels_is_nearer_when_they_are_evened_out(backbone_folders: dict[str, Path]) -> None:
    model = MultiExitModel.from_backbone(backbone_folders["bert"], lte=True)
    with torch.no_grad():
        model.backbone.encoder.layer[0].attention.output.LayerNorm.weight[3] *= 40
    segments = split_segments(model)
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
    assert np.abs(even - exact).mean() < 0.7 * np.abs(coarse - exact).mean()
    assert "Mul" not in {node.op_type for node in quantized(plain).model.graph.node if "evened" in node.name}


def _roles(graph: OnnxSegment, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {info.role: feeds[info.name] for info in graph.inputs}


def test_layers_that_share_a_file_are_quantised_alike(backbone_folders: dict[str, Path]) -> None:
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders["albert"], lte=True))
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
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders[family], lte=True))
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


@pytest.fixture(scope="module")
def family_bundle(tmp_path_factory: pytest.TempPathFactory, backbone_folders: dict[str, Path], data_folder: Path):  # type: ignore[no-untyped-def]
    """Name -> an int8 bundle, trained a little so that exits differ: a family, with "-exits" only exits 1 and 3."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            family, _, exits = name.partition("-")
            folder = tmp_path_factory.mktemp(name)
            options = TrainingOptions(
                str(backbone_folders[family]),
                max_steps=8,
                batch_size=8,
                max_length=32,
                learning_rate=3e-3,
                pooling="first" if family == "bert" else "mean",
                exit_head="pooler" if family in ("bert", "albert") else "linear",
            )
            fine_tune(custom_task(data_folder, ("text",), "label"), data_folder, options, folder / "ckpt", quiet=True)
            export_options = ExportOptions(precision="int8", exits=(1, 3) if exits else ())
            export(folder / "ckpt", "onnxruntime", folder / "bundle", options=export_options)
            made[name] = folder / "bundle"
        return made[name]

    return make


BUNDLES = ("bert", "albert", "mpnet", "distilbert", "bert-exits", "albert-exits")


def all_exits(runner: EarlyExitRunner, texts: list[str]) -> np.ndarray:
    """(rows, exits, C) the logits of a batch."""
    return np.stack([output.logits for output in every_exit(runner.backend, runner.tokenizer(texts))], axis=1)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", BUNDLES)
def test_int8_row_does_not_depend_on_neighbours_or_padding(family_bundle, name: str, backend: str) -> None:  # type: ignore[no-untyped-def]
    """Float32 sums may differ in the last bits, by the order of summation; a scale per batch differed by 1e-2."""
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed here: pip install 'berxit[openvino]'")
    runner = EarlyExitRunner.load(family_bundle(name), backend=backend, threads=1)
    texts = [
        "the cat",
        "a dog ran under the big red tree and it was not a cat",
        "stop",
        "turn the light on",
        "music is",
    ]
    alone = np.concatenate([all_exits(runner, [text]) for text in texts])
    for batch in (texts, texts[::-1], texts[:2], texts[2:], [texts[1]] * 7 + texts):
        rows = [texts.index(text) for text in batch]
        np.testing.assert_allclose(all_exits(runner, batch), alone[rows], atol=2e-5)


@pytest.mark.parametrize("name", BUNDLES)
def test_int8_batches_of_every_size_give_what_single_texts_give(family_bundle, data_folder: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    runner = EarlyExitRunner.load(family_bundle(name), threads=1)
    lines = (data_folder / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    texts = [line.split("\t")[0] for line in lines]
    certainties = np.sort([next(runner.stream(text)).certainty for text in texts])
    threshold = float(certainties[23:25].mean())  # half of the rows exit at layer 1
    alone = [runner.predict(text, threshold=threshold) for text in texts]
    assert len({prediction.exit_layer for prediction in alone}) > 1
    for size in (2, 8, 32, len(texts)):
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        found = [p for batch in batches for p in runner.predict_batch(batch, threshold=threshold)]
        assert [(p.label, p.exit_layer) for p in found] == [(p.label, p.exit_layer) for p in alone]


def test_int8_token_does_not_depend_on_the_size_of_other_tokens(segments: Segments) -> None:
    """Without attention, which mixes tokens: a row whose neighbour has hidden states 1,000 times as large."""
    graph = quantized(layer_graph(segments, segments.layers[0]))
    session = _session(graph.model)
    hidden = np.random.default_rng(0).normal(size=(2, 6, 32)).astype(np.float32)
    bias = np.zeros((2, 1, 1, 6), np.float32)
    plain = session.run(["hidden_out"], {"hidden_in": hidden, "attention_bias": bias})[0]
    hidden[1] *= 1000
    beside_large = session.run(["hidden_out"], {"hidden_in": hidden, "attention_bias": bias})[0]
    np.testing.assert_allclose(beside_large[0], plain[0], atol=1e-5)


def batch_scaled_product(node, weights, quantized_inputs, inputs):  # type: ignore[no-untyped-def]
    """The matmul as older bundles contain it: DynamicQuantizeLinear, one scale for the whole batch."""
    (x, name), output = node.input, node.output[0]
    if f"{name}.scale" not in weights:
        weights[name], weights[f"{name}.scale"] = _int8_columns(weights[name])
    if x not in quantized_inputs:
        quantized_inputs[x] = (f"{x}.bytes", f"{x}.scale", f"{x}.zero")
        yield helper.make_node("DynamicQuantizeLinear", [x], list(quantized_inputs[x]))
    values, scale, zero = quantized_inputs[x]
    yield helper.make_node("MatMulInteger", [values, name, zero], [f"{output}.int32"])
    yield helper.make_node("Cast", [f"{output}.int32"], [f"{output}.steps"], to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [scale, f"{name}.scale"], [f"{output}.step"])
    yield helper.make_node("Mul", [f"{output}.steps", f"{output}.step"], [output])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_bundle_with_one_scale_per_batch_still_runs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed here: pip install 'berxit[openvino]'")
    monkeypatch.setattr(int8_dynamic, "_product", batch_scaled_product)
    manifest = export(checkpoint, "onnxruntime", tmp_path / "old", options=ExportOptions(precision="int8"))
    monkeypatch.undo()
    file = tmp_path / "old" / manifest.segments[1].file
    assert "DynamicQuantizeLinear" in {node.op_type for node in onnx.load(file).graph.node}
    runner = EarlyExitRunner.load(tmp_path / "old", backend=backend, threads=1)
    golden = read_golden(tmp_path / "old", manifest)
    assert max(differences(runner.backend, golden, manifest.model.pad_token_id)) <= manifest.parity.atol
    assert len(runner.predict_batch(["the cat sat", "a dog", "big red tree"])) == 3


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
