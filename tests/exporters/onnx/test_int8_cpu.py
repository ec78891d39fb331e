"""Int8 segments for the CPU: stored types, scales, and distance from the float32 segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import quick_and_slow, shared
from onnx import TensorProto, helper, numpy_helper

from berxit.exporters.export import export
from berxit.exporters.onnx import int8_cpu
from berxit.exporters.onnx.activations import EMBEDDINGS, Activations, _session, _values, matmul_inputs
from berxit.exporters.onnx.graph import GraphWriter, OnnxSegment, embeddings_graph, layer_graph
from berxit.exporters.onnx.int8_cpu import (
    LOWEST,
    QUANTIZED_WEIGHTS,
    Quantization,
    QuantizedMatmul,
    _int8_columns,
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


@pytest.fixture
def segments(backbone_folders: dict[str, Path]) -> Segments:
    return split_segments(MultiExitModel.from_backbone(backbone_folders["bert"], lte=True, pooling="first"))


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def observed(segments: Segments) -> dict[tuple[int, ...], dict[str, Activations]]:
    """Activations of all matmuls on random tokens."""
    rng = np.random.default_rng(0)
    samples = [TokenBatch.pad([rng.integers(5, 27, 12).tolist()], [[0] * 12], 0) for _ in range(8)]
    pairs = [(segment, layer_graph(segments, segment)) for segment in segments.layers]
    return matmul_inputs(embeddings_graph(segments), pairs, samples, QUANTIZED_WEIGHTS)


def first_layer_int8(segments: Segments) -> OnnxSegment:
    segment = segments.layers[0]
    return quantized(layer_graph(segments, segment), observed(segments)[segment.body])


def test_quantized_layer_has_four_int8_matmuls_and_a_float32_exit(segments: Segments) -> None:
    model = first_layer_int8(segments).model
    weights = initializers(model)
    assert {name for name, value in weights.items() if value.dtype == np.int8 and value.ndim == 2} == FOUR
    assert weights["classifier.weight"].dtype == weights["lte.weight"].dtype == np.float32
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 4
    assert kinds.count("DequantizeLinear") == 8
    assert "DynamicQuantizeLinear" not in kinds  # its scale depends on the whole batch
    assert all(weights[f"{name}.input_scale"].ndim == 0 for name in FOUR)


def test_quantized_layer_becomes_int8_matmuls_in_onnxruntime(segments: Segments, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    model = first_layer_int8(segments).model.SerializeToString()
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 4
    assert "DequantizeLinear" not in kinds


def test_quantized_keeps_a_weight_without_activations_in_float32(segments: Segments) -> None:
    segment = segments.layers[0]
    inputs = observed(segments)[segment.body]
    del inputs["up.weight"]
    weights = initializers(quantized(layer_graph(segments, segment), inputs).model)
    assert weights["up.weight"].dtype == np.float32
    assert weights["down.weight"].dtype == np.int8


def test_quantized_pooler_is_int8_unless_it_is_an_input(backbone_folders: dict[str, Path]) -> None:
    pooling = split_segments(
        MultiExitModel.from_backbone(backbone_folders["bert"], lte=True, pooling="first", exit_head="pooler")
    )
    weights = initializers(first_layer_int8(pooling).model)
    int8 = {name for name, value in weights.items() if value.dtype == np.int8 and value.ndim == 2}
    assert int8 == {*FOUR, "pooler.weight"}
    shared_body = split_segments(
        MultiExitModel.from_backbone(backbone_folders["albert"], lte=True, pooling="first", exit_head="pooler")
    )
    assert first_layer_int8(shared_body).constants["pooler.weight"].dtype == np.float32  # each layer has its own


def test_quantized_albert_projection_is_int8(backbone_folders: dict[str, Path]) -> None:
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders["albert"], lte=True, pooling="first"))
    model = quantized(embeddings_graph(segments), observed(segments)[EMBEDDINGS]).model
    assert initializers(model)["projection.weight"].dtype == np.int8


def test_int8_columns_stay_within_half_a_step(segments: Segments) -> None:
    before = initializers(layer_graph(segments, segments.layers[0]).model)
    for name in FOUR:
        values, step = _int8_columns(before[name])
        assert (np.abs(values * step - before[name]) <= step / 2 + 1e-7).all()
        assert np.abs(values.astype(int)).max(axis=0).mean() > 80  # most of the 127 steps are used


def test_int8_columns_of_adjacent_rows_do_not_overflow_16_bits(segments: Segments) -> None:
    weights = initializers(first_layer_int8(segments).model)
    for name in FOUR:
        pairs = weights[name].astype(int).reshape(-1, 2, weights[name].shape[1])
        assert 255 * np.maximum(pairs, 0).sum(axis=1).max() <= 32767
        assert 255 * np.minimum(pairs, 0).sum(axis=1).min() >= -32768
    odd = np.array([[1.0], [0.5], [0.7]], np.float32)
    assert _int8_columns(odd)[0].tolist() == [[85], [42], [59]]


def chosen(weight: np.ndarray, rows: np.ndarray, *, after_activation: bool = False) -> QuantizedMatmul:
    inputs = Activations(np.abs(rows).max(axis=0), rows)
    return QuantizedMatmul.choose(weight, inputs, after_activation=after_activation)


def test_choose_smooths_outlier_channels_only_if_the_error_falls() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    rows = rng.normal(size=(200, 64)).astype(np.float32)
    assert (chosen(weight, rows).smoothing == 1).all()
    rows[:, 5] *= 30
    found = chosen(weight, rows)
    assert found.smoothing[5] > 2 * np.delete(found.smoothing, 5).max()
    inputs = Activations(np.abs(rows).max(axis=0), rows)
    plain = QuantizedMatmul.of(weight, inputs, np.ones(64, np.float32))
    assert found.error(rows, rows @ weight) < 0.5 * plain.error(rows, rows @ weight)


def test_choose_divides_tokens_only_if_their_sizes_differ() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    rows = np.maximum(rng.normal(size=(200, 64)), -LOWEST).astype(np.float32)
    assert chosen(weight, rows, after_activation=True).activation.smallest_divisor is None
    rows[::20] = np.maximum(rows[::20] * 30, -LOWEST)
    assert chosen(weight, rows, after_activation=True).activation.smallest_divisor is not None
    assert chosen(weight, rows).activation.smallest_divisor is None  # only the feed-forward activation is divided


@pytest.mark.parametrize(("lowest", "largest"), [(-1.0, 1.0), (-LOWEST, 24.0), (-LOWEST, 0.01)])
def test_of_range_covers_both_ends_within_half_a_step(lowest: float, largest: float) -> None:
    found = Quantization.of_range(lowest, largest)
    x = np.linspace(lowest, largest, 1001, dtype=np.float32)[:, None]
    assert np.abs(found.rounded(x) - x).max() <= found.scale * 0.5001


def rounded_by_operators(quantization: Quantization, x: np.ndarray, smoothing: np.ndarray) -> np.ndarray:
    """The matmul with a unit matrix: what quantization leaves of ``x``."""
    unit = np.eye(x.shape[1], dtype=np.float32)
    matmul = QuantizedMatmul(smoothing, quantization, *_int8_columns(unit))
    node = helper.make_node("MatMul", ["x", "unit"], ["y"], name="y")
    constants: dict[str, np.ndarray] = {"unit": unit}
    nodes = list(int8_cpu._matmul(node, matmul, constants, set()))
    graph = helper.make_graph(
        nodes,
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", x.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (found,) = _session(model).run(None, {"x": x})
    return found


@pytest.mark.parametrize("quantization", [Quantization.of_range(-4, 4), Quantization.per_token(-LOWEST)])
def test_quantization_matches_its_operators(quantization: Quantization) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 64)).astype(np.float32) * np.logspace(-3, 1, 50, dtype=np.float32)[:, None]
    x[7] = 0
    if quantization.smallest_divisor is not None:
        x = np.maximum(x, -LOWEST)
    smoothing = np.exp2(np.arange(64) % 3).astype(np.float32)  # powers of two: dividing by them is exact
    expected = quantization.rounded(x / smoothing)
    found = rounded_by_operators(quantization, x, smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not expected[7].any()


def test_per_token_quantization_stays_within_half_a_step_of_the_token() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 64)).astype(np.float32) * np.logspace(-3, 3, 50, dtype=np.float32)[:, None]
    x = np.maximum(x, -LOWEST)
    quantization = Quantization.per_token(-LOWEST)
    step = np.maximum(x.max(axis=1, keepdims=True), quantization.smallest_divisor) * quantization.scale
    assert (np.abs(quantization.rounded(x) - x) <= step * 0.5001).all()


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_activations_have_no_value_below_lowest(name: str) -> None:
    writer = GraphWriter()
    output = writer.activation(name, "x")
    values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n"]) for each in ("x", output)]
    weights = [numpy_helper.from_array(value, key) for key, value in writer.weights.items()]
    graph = helper.make_graph(writer.nodes, name, values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (found,) = _session(model).run(None, {"x": np.linspace(-20, 20, 400_001, dtype=np.float32)})
    assert found.min() >= -LOWEST


def test_quantized_layer_with_an_outlier_channel_stays_near_float32(backbone_folders: dict[str, Path]) -> None:
    model = MultiExitModel.from_backbone(backbone_folders["bert"], lte=True, pooling="first")
    with torch.no_grad():
        model.backbone.encoder.layer[0].attention.output.LayerNorm.weight[3] *= 40
    segments = split_segments(model)
    plain, inputs = layer_graph(segments, segments.layers[0]), observed(segments)[segments.layers[0].body]
    assert inputs["up.weight"].largest.argmax() == 3
    rng = np.random.default_rng(0)
    feeds = {
        "hidden_in": rng.normal(size=(1, 20, 32)).astype(np.float32),
        "attention_bias": np.zeros((1, 1, 1, 20), np.float32),
    }

    def hidden(graph: OnnxSegment) -> np.ndarray:
        return _values(_session(graph.model), graph, _roles(plain, feeds))["hidden"]

    smoothed = quantized(plain, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_cpu, "smoothing_candidates", lambda weight, _: [np.ones(len(weight), np.float32)])
        coarse = quantized(plain, inputs)
    exact = hidden(plain)
    assert np.abs(hidden(smoothed) - exact).mean() < 0.7 * np.abs(hidden(coarse) - exact).mean()
    assert "up.weight.smoothing" in initializers(smoothed.model)


@pytest.mark.parametrize("family", ["bert", "albert"])  # albert: the layers of a segment share their weights
def test_smoothing_of_the_values_needs_no_operator(family: str, backbone_folders: dict[str, Path]) -> None:
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders[family], pooling="mean")).with_exits([3])
    (segment,) = segments.layers
    plain = layer_graph(segments, segment, masked_keys=True)
    size, name = segments.hidden_size, "output.weight"
    inputs = observed(segments)[segment.body]
    smoothing = np.linspace(0.5, 2, size, dtype=np.float32)
    rng = np.random.default_rng(0)
    feeds = {
        "hidden_in": rng.normal(size=(1, 20, size)).astype(np.float32),
        "attention_bias": np.zeros((1, 1, 1, 20), np.float32),
        "token_weights": np.full((1, 1, 20), 1 / 20, np.float32),
    }

    def hidden(graph: OnnxSegment) -> np.ndarray:
        return _values(_session(graph.model), graph, _roles(plain, feeds))["hidden"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_cpu, "smoothing_candidates", lambda weight, _: [smoothing[: len(weight)]])
        patch.setattr(int8_cpu, "WORTHWHILE", 1e6)  # the last candidate
        folded = quantized(plain, {name: inputs[name], "qkv.weight": inputs["qkv.weight"]})
        patch.setattr(int8_cpu, "_smooth_values", lambda *_: False)
        multiplied = quantized(plain, {name: inputs[name], "qkv.weight": inputs["qkv.weight"]})
    assert f"{name}.smoothing" not in initializers(folded.model)
    assert f"{name}.smoothing" in initializers(multiplied.model)
    assert np.allclose(hidden(folded), hidden(multiplied), atol=1e-2)  # a rounded value may move by one step
    assert np.abs(hidden(folded) - hidden(multiplied)).mean() < 1e-4


def _roles(graph: OnnxSegment, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {info.role: feeds[info.name] for info in graph.inputs}


def test_quantized_layers_that_share_a_file_are_identical(backbone_folders: dict[str, Path]) -> None:
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders["albert"], lte=True, pooling="first"))
    samples = [TokenBatch.pad([[2, 7, 9, 11, 3]], [[0] * 5], 0)]
    pairs = [(segment, layer_graph(segments, segment)) for segment in segments.layers]
    found = matmul_inputs(embeddings_graph(segments), pairs, samples, QUANTIZED_WEIGHTS)
    (body,) = set(found) - {EMBEDDINGS}
    assert len(found[body]["up.weight"].rows) == 3 * 5
    assert len({quantized(graph, found[body]).model.SerializeToString() for _, graph in pairs}) == 1


def test_quantized_word_embeddings_have_one_scale_per_row(segments: Segments) -> None:
    before = initializers(embeddings_graph(segments).model)["words"]
    after = initializers(quantized(embeddings_graph(segments), {}).model)
    assert after["words"].dtype == np.int8
    assert np.abs(after["words"] * after["words.scale"] - before).max() <= np.abs(before).max() / 254 + 1e-7
    assert after["positions"].dtype == np.float32


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_quantized_keeps_inputs_and_outputs(family: str, backbone_folders: dict[str, Path]) -> None:
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders[family], lte=True, pooling="first"))
    plain = layer_graph(segments, segments.layers[0])
    small = first_layer_int8(segments)
    assert (small.inputs, small.outputs, small.constants) == (plain.inputs, plain.outputs, plain.constants)
    assert small.model.graph.input == plain.model.graph.input
    assert small.model.graph.output == plain.model.graph.output


def test_int8_bundle_predicts_the_labels_of_the_float32_bundle(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
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
            family, exits = name.removesuffix("-exits"), name.endswith("-exits")
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
            fine_tune(custom_task(data_folder, ("text",), "label"), data_folder, options, folder / "ckpt")
            export_options = ExportOptions(precision="int8", exits=(1, 3) if exits else ())
            export(folder / "ckpt", "onnxruntime", folder / "bundle", options=export_options)
            made[name] = folder / "bundle"
        return made[name]

    return make


BUNDLES = quick_and_slow(
    [
        (name,)
        for name in ("bert", "albert", "mpnet", "distilbert", "modernbert", "deberta-v2", "bert-exits", "albert-exits")
    ],
    quick=[("bert",), ("albert-exits",), ("mpnet",), ("modernbert",)],
)


def all_exits(runner: EarlyExitRunner, texts: list[str]) -> np.ndarray:
    """(rows, exits, C) the logits of a batch."""
    return np.stack([output.logits for output in every_exit(runner.backend, runner.tokenizer(texts))], axis=1)


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name",), BUNDLES)
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


@pytest.mark.parametrize(("name",), BUNDLES)
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


def test_int8_row_does_not_depend_on_the_size_of_other_rows(segments: Segments) -> None:
    session = _session(first_layer_int8(segments).model)
    hidden = np.random.default_rng(0).normal(size=(2, 6, 32)).astype(np.float32)
    bias = np.zeros((2, 1, 1, 6), np.float32)
    plain = session.run(["hidden_out"], {"hidden_in": hidden, "attention_bias": bias})[0]
    hidden[1] *= 1000
    beside_large = session.run(["hidden_out"], {"hidden_in": hidden, "attention_bias": bias})[0]
    np.testing.assert_allclose(beside_large[0], plain[0], atol=1e-5)


def batch_scaled_matmul(node, matmul, weights, done):  # type: ignore[no-untyped-def]
    """The matmul as older bundles contain it: DynamicQuantizeLinear, one scale for the whole batch."""
    (x, name), output = node.input, node.output[0]
    weights[name], weights[f"{name}.scale"] = matmul.weight, matmul.weight_scale
    parts = [f"{output}.bytes", f"{output}.input_scale", f"{output}.zero"]
    smoothed = f"{output}.smoothed"
    weights[f"{name}.smoothing"] = 1 / matmul.smoothing
    yield helper.make_node("Mul", [x, f"{name}.smoothing"], [smoothed])
    yield helper.make_node("DynamicQuantizeLinear", [smoothed], parts)
    yield helper.make_node("MatMulInteger", [parts[0], name, parts[2]], [f"{output}.int32"])
    yield helper.make_node("Cast", [f"{output}.int32"], [f"{output}.steps"], to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [parts[1], f"{name}.scale"], [f"{output}.step"])
    yield helper.make_node("Mul", [f"{output}.steps", f"{output}.step"], [output])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_bundle_with_one_scale_per_batch_still_runs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed here: pip install 'berxit[openvino]'")
    monkeypatch.setattr(int8_cpu, "_matmul", batch_scaled_matmul)
    manifest = export(checkpoint, "onnxruntime", tmp_path / "old", options=ExportOptions(precision="int8"))
    monkeypatch.undo()
    file = tmp_path / "old" / manifest.segments[1].file
    assert "DynamicQuantizeLinear" in {node.op_type for node in onnx.load(file).graph.node}
    runner = EarlyExitRunner.load(tmp_path / "old", backend=backend, threads=1)
    golden = read_golden(tmp_path / "old", manifest)
    assert max(differences(runner.backend, golden, manifest.model.pad_token_id)) <= manifest.parity.atol
    assert len(runner.predict_batch(["the cat sat", "a dog", "big red tree"])) == 3


def test_int8_real_weights_take_a_quarter_of_float32(tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    from berxit.train.checkpoint import TrainingRecord, save_checkpoint

    folder = shared("models", "bge-small-en")
    (tmp_path / "ckpt").mkdir()
    model = MultiExitModel.from_backbone(folder, layers=2, lte=True, pooling="first")
    record = TrainingRecord({}, "", "", 0, 0, 0.0, 0.0, "cpu", {})
    save_checkpoint(tmp_path / "ckpt", model, AutoTokenizer.from_pretrained(folder), record, ["Yes.", "No, not that."])
    sizes = {}
    for precision in ("fp32", "int8"):
        export(tmp_path / "ckpt", "onnxruntime", tmp_path / precision, options=ExportOptions(precision=precision))
        files = [file for file in files_of(read_manifest(tmp_path / precision)) if file.startswith("segments/")]
        sizes[precision] = sum((tmp_path / precision / file).stat().st_size for file in files)
        shutil.rmtree(tmp_path / precision)
    assert sizes["int8"] < 0.27 * sizes["fp32"]
