"""Exports for TensorRT: outputs of the files in ONNX Runtime, and engines of every file, built with TensorRT-RTX, which
builds without a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from conftest import ENCODERS, quick_and_slow, tiny_backbone
from tensorrt_parser import Parser, UndefinedError
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from berxit.exporters.export import export
from berxit.exporters.onnx.graph import OnnxSegment
from berxit.exporters.onnx.int8_qdq import QDQ_WEIGHTS, _smoothing
from berxit.exporters.onnx.tensorrt import graphs_of
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments, split_segments
from berxit.exporters.targets import TENSORRT, TensorRTVersion
from berxit.runtime.backends.tensorrt.cuda import Gpu
from berxit.runtime.backends.tensorrt.engines import EngineCache, prepare_engines
from berxit.runtime.backends.tensorrt.versions import READERS, load
from berxit.runtime.bundle import FLOAT32_NODES, DataFile, read_manifest, sha256
from berxit.runtime.bundle_files import BundleFile, BundleFolder
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.tokenization import TokenBatch
from berxit.train.modeling import MultiExitModel

PRECISIONS = ("fp32", "fp16", "bf16", "int8")


WRITTEN = [
    *((precision, "jetpack6.1") for precision in PRECISIONS),
    *((precision, "jetpack5") for precision in ("fp16", "int8")),
    ("int8", "jetpack6.0"),
]


DEBERTA = {"relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": True, "position_buckets": 256}


def multi_exit(backbone: torch.nn.Module, folder: Path, **options: object) -> MultiExitModel:
    backbone.save_pretrained(folder)
    torch.manual_seed(1)
    return MultiExitModel.from_backbone(
        folder, **{"num_labels": 3, "lte": True, "pooling": "mean", "max_length": 32, **options}
    ).eval()


def base_backbone(family: str, layers: int) -> torch.nn.Module:
    """Layers of base size with random weights, and a small vocabulary."""
    torch.manual_seed(0)
    words = {"vocab_size": 500, "pad_token_id": 0}
    wide = {"hidden_size": 768, "num_hidden_layers": layers, "num_attention_heads": 12, "intermediate_size": 3072}
    config = {
        "bert": lambda: BertConfig(**words, **wide),
        "roberta": lambda: RobertaConfig(**words, **wide, type_vocab_size=1),
        "albert": lambda: AlbertConfig(**words, **wide, embedding_size=128),
        "mpnet": lambda: MPNetConfig(**{**words, "pad_token_id": 1}, **wide),
        "distilbert": lambda: DistilBertConfig(**words, n_layers=layers),
        "electra": lambda: ElectraConfig(**words, **wide),
        "modernbert": lambda: ModernBertConfig(**words, **{**wide, "intermediate_size": 1152}),
        "deberta-v2": lambda: DebertaV2Config(**words, **wide, **DEBERTA),
    }[family]()
    return AutoModel.from_config(config)


def samples(rows: int = 4, vocabulary: int = 27) -> TokenBatch:
    rng = np.random.default_rng(rows)
    ids = [rng.integers(5, vocabulary, length).tolist() for length in rng.integers(3, 30, rows)]
    return TokenBatch.pad(ids, [[0] * len(row) for row in ids], 0)


def written(segments: Segments, options: ExportOptions) -> Iterator[OnnxSegment]:
    """The graphs, calibrated on random inputs."""
    batch = samples()
    ids = [row[:length].tolist() for row, length in zip(batch.input_ids, batch.lengths, strict=True)]
    inputs = [TokenBatch.pad([row], [[0] * len(row)], 0) for row in ids]
    return graphs_of(segments, TENSORRT.settings(options).for_model(segments.max_length), inputs)


@pytest.fixture(scope="module")
def rtx():  # type: ignore[no-untyped-def]
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed: pip install -e '.[tensorrt-rtx]'"
    )
    return load("tensorrt-rtx")


def saved(graph: OnnxSegment, folder: Path) -> BundleFile:
    """The graph's file, open."""
    onnx.save(graph.model, folder / "segment.onnx")
    return BundleFolder(folder).file(DataFile("segment.onnx", sha256(folder / "segment.onnx")))


def build(  # type: ignore[no-untyped-def]
    rtx,
    graph: OnnxSegment,
    folder: Path,
    precision: str = "fp16",
    lengths: tuple[int, ...] = (16,),
    note: Callable[[str], None] = lambda text: None,
) -> int:
    """Size of the engine that ``berxit-build`` builds for inputs of these lengths, 1 to 4 rows."""
    from types import SimpleNamespace

    from berxit.runtime.backends.tensorrt.engines import _build_one
    from berxit.runtime.bundle import Segment

    file = saved(graph, folder)
    manifest = SimpleNamespace(precision=precision, lengths=lengths, max_batch=4)
    segment = Segment(0, file.path.name, sha256(file.path), graph.inputs, graph.outputs)
    builder = rtx.make_builder()
    gpu, cache = Gpu("SM 86", (8, 6)), EngineCache(folder)
    return len(_build_one(file, manifest, segment, rtx, builder, gpu, cache, 256, note))


def different(graphs: Iterator[OnnxSegment]) -> list[OnnxSegment]:
    """Each file once: layers that share their weights share a file."""
    return list({graph.model.SerializeToString(): graph for graph in graphs}.values())


def weight_bytes(graph: OnnxSegment) -> int:
    return sum(len(tensor.raw_data) for tensor in graph.model.graph.initializer)


FAMILIES_AND_PRECISIONS = [(family, precision) for family in ENCODERS for precision in PRECISIONS]
EACH_ONCE = [
    ("bert", "int8"),
    ("roberta", "fp32"),
    ("albert", "int8"),
    ("distilbert", "bf16"),
    ("mpnet", "fp16"),
]
"""Every precision and five families once; the rules of the parser cover all families."""


@pytest.mark.parametrize(
    ("family", "precision", "version"),
    [
        *quick_and_slow(
            [(*case, "jetpack6.1") for case in FAMILIES_AND_PRECISIONS],
            quick=[(*case, "jetpack6.1") for case in EACH_ONCE],
        ),
        ("bert", "int8", "jetpack5"),
        ("albert", "int8", "jetpack6.0"),
    ],
)
def test_tensorrt_builds_every_segment_of_a_tiny_model(  # type: ignore[no-untyped-def]
    family: str, precision: str, version: str, rtx, tmp_path: Path
) -> None:
    segments = split_segments(multi_exit(tiny_backbone(family), tmp_path))
    graphs = different(written(segments, ExportOptions(precision, target_version=version)))
    assert len(graphs) == (2 if family == "albert" else 4)
    for place, graph in enumerate(graphs):
        lengths = (8, 32) if place < 2 else (32,)  # a profile costs as much as a segment, and the layers are alike
        assert build(rtx, graph, tmp_path, precision, lengths) > weight_bytes(graph)
        network = rtx.network(rtx.make_builder())
        rtx.parse(network, saved(graph, tmp_path))
        assert [network.get_output(i).name for i in range(network.num_outputs)] == [o.name for o in graph.outputs]


@pytest.mark.parametrize(
    ("family", "precision"),
    quick_and_slow(
        [(family, precision) for family in ("bert", "albert") for precision in ("fp16", "int8")],
        quick=[("bert", "fp16"), ("albert", "int8")],
    ),
)
def test_tensorrt_builds_segments_of_several_layers(  # type: ignore[no-untyped-def]
    family: str, precision: str, rtx, tmp_path: Path
) -> None:
    exits = (1, 3) if family == "bert" else (3,)
    segments = split_segments(multi_exit(tiny_backbone(family), tmp_path)).with_exits(exits)
    sizes = [build(rtx, graph, tmp_path, precision) for graph in written(segments, ExportOptions(precision))]
    assert len(sizes) == 1 + len(exits)
    if family == "bert":
        assert sizes[1] < sizes[2]


@pytest.mark.parametrize(
    ("family", "precision"),
    quick_and_slow(FAMILIES_AND_PRECISIONS, quick=[("bert", "fp16")]),
)
def test_tensorrt_builds_base_size(  # type: ignore[no-untyped-def]
    family: str, precision: str, rtx, tmp_path: Path
) -> None:
    segments = split_segments(multi_exit(base_backbone(family, 2), tmp_path, pooling="first", max_length=128))
    embeddings, *layers = different(written(segments, ExportOptions(precision)))
    assert build(rtx, embeddings, tmp_path, precision, (16, 128)) > 500 * 128  # positions beyond 128 may be left out
    assert len(layers) == (1 if family == "albert" else 2)
    for place, layer in enumerate(layers):
        assert build(rtx, layer, tmp_path, precision, (128,) if place else (16, 128)) > 0.9 * weight_bytes(layer)


@pytest.fixture(scope="module", params=["bert", "roberta", "albert", "distilbert"])
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int, Segments]:
    """A family at base size with all layers: twelve, for DistilBERT six."""
    family, layers = request.param, 6 if request.param == "distilbert" else 12
    model = multi_exit(base_backbone(family, layers), tmp_path_factory.mktemp("deep"), pooling="first")
    return family, layers, split_segments(model)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_builds_every_layer_of_base_size(  # type: ignore[no-untyped-def]
    deep: tuple[str, int, Segments], precision: str, rtx, tmp_path: Path
) -> None:
    family, layers, segments = deep
    graphs = different(written(segments, ExportOptions(precision)))
    sizes = [build(rtx, graph, tmp_path, precision, (128,)) for graph in graphs]
    assert len(sizes) == 1 + (1 if family == "albert" else layers)
    assert min(sizes[1:]) > 12 * 768 * 768 * {"fp32": 4, "fp16": 2, "int8": 1}[precision] * 0.9


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Segments]:
    """Family -> segments of a tiny model with all exits; ALBERT's with one segment of two layers."""
    made = {
        family: split_segments(multi_exit(tiny_backbone(family), tmp_path_factory.mktemp(family), exit_head="pooler"))
        for family in ENCODERS
    }
    return made | {"albert": made["albert"].with_exits((1, 3))}


JETPACKS = ("jetpack5", "jetpack6.0", "jetpack6.1")
"""Versions whose files differ."""
ACCEPTED = [
    (version, family, precision)
    for version in JETPACKS
    for family in ENCODERS
    for precision in (PRECISIONS if family == "bert" else ("fp16", "int8"))
    if (version, precision) not in (("jetpack5", "bf16"), ("jetpack6.0", "bf16"))
]


@pytest.mark.parametrize(("version", "family", "precision"), ACCEPTED)
def test_parser_of_the_version_accepts_every_segment(
    version: str, family: str, precision: str, tiny: dict[str, Segments]
) -> None:
    rules = cast(TensorRTVersion, TENSORRT.version(version)).tensorrt
    for graph in written(tiny[family], ExportOptions(precision, target_version=version)):
        assert Parser(rules, graph.model).errors() == []


def test_versions_name_the_tensorrt_that_reads_them() -> None:
    """The registry of the exports and the table of the backend agree, and the advice of the backend can be followed."""
    versions = cast(tuple[TensorRTVersion, ...], TENSORRT.versions)
    files = {(version.opset, version.int8_dtype, version.int8_weights, version.without) for version in versions}
    assert len(files) == len(JETPACKS)
    for version in versions:
        readers = READERS["tensorrt-rtx" if version.name == "tensorrt-rtx" else "tensorrt"]
        reader = [reader for reader in readers if reader.since <= version.tensorrt][-1]
        assert version.opset <= reader.opset
        advised = cast(TensorRTVersion, TENSORRT.version(reader.target_version))
        assert (advised.opset, advised.int8_dtype) == (version.opset, version.int8_dtype)


def node_of(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def replace_weight(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor)), name))


def erf_ports(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    node = node_of(model, "Erf")
    return [*node.input], [*node.output]


DEFECTS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "unknown operator": lambda m: setattr(node_of(m, "Erf"), "op_type", "NoSuchOp"),
    "operator of another domain": lambda m: [  # type: ignore[dict-item]
        m.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1)),
        node_of(m, "Erf").CopyFrom(onnx.helper.make_node("FastGelu", *erf_ports(m), domain="com.microsoft")),
    ],
    "zero point": lambda m: replace_weight(m, "qkv.weight.input_zero", lambda zero: zero + 3),
    "zero points of a weight": lambda m: replace_weight(m, "up.weight.zero", lambda zero: zero + 1),
    "negative scale": lambda m: replace_weight(m, "qkv.weight.input_scale", lambda scale: -scale),
    "number of scales": lambda m: [  # type: ignore[dict-item,func-returns-value]
        replace_weight(m, f"up.weight.{name}", lambda array: array[:-1]) for name in ("scale", "zero")
    ],
}


@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_rules_of_the_parser_agree_with_the_real_parser(  # type: ignore[no-untyped-def]
    defect: str | None, rtx, tiny: dict[str, Segments], tmp_path: Path
) -> None:
    _, layer, *_ = written(tiny["bert"], ExportOptions("int8"))
    if defect:
        DEFECTS[defect](layer.model)
    expected = Parser((10, 0), layer.model).errors()
    assert bool(expected) == bool(defect)
    network = rtx.network(rtx.make_builder())
    if defect:
        with pytest.raises(BerxitError, match=r"cannot parse .*segment\.onnx.*Export again") as caught:
            rtx.parse(network, saved(layer, tmp_path))
        assert len(str(caught.value).splitlines()) == 1
    else:
        rtx.parse(network, saved(layer, tmp_path))


@pytest.mark.parametrize("rules", [(8, 5), (8, 6)])
def test_float16_scales_and_bfloat16_are_not_for_tensorrt_8(rules: tuple[int, int], tiny: dict[str, Segments]) -> None:
    _, int8, *_ = written(tiny["distilbert"], ExportOptions("int8"))
    with pytest.raises(UndefinedError, match=r"reads the scale of .* as float32, past the end of its buffer"):
        Parser(rules, int8.model).errors()
    _, bf16, *_ = written(tiny["distilbert"], ExportOptions("bf16"))
    assert any("Failed to import initializer" in error for error in Parser(rules, bf16.model).errors())


def test_layer_normalization_is_not_for_tensorrt_8_5(tiny: dict[str, Segments]) -> None:
    _, layer, *_ = written(tiny["bert"], ExportOptions("fp16", target_version="jetpack6.0"))
    assert Parser((8, 6), layer.model).errors() == []
    assert any("Plugin not found for LayerNormalization" in error for error in Parser((8, 5), layer.model).errors())


def test_real_bindings_refuse_as_the_standin_does(rtx) -> None:  # type: ignore[no-untyped-def]
    builder = rtx.make_builder()
    profile = rtx.make_profile(builder)
    with pytest.raises(RuntimeError, match="Shape provided for min is inconsistent with other shapes"):
        profile.set_shape("x", (-1, 2), (1, 2), (1, 2))
    with pytest.raises(
        BerxitError, match=r"rejected the shapes \(-1, 2\) to \(1, 2\) of input x: Shape provided for min"
    ):
        rtx.set_shape(profile, "x", (-1, 2), (1, 2))
    rtx.set_shape(profile, "x", (4, 2), (3, 2))  # inverted: refused below, by -1
    with pytest.raises(BerxitError, match=r"rejected an optimization profile: .*MIN<=OPT<=MAX"):
        rtx.add_profile(rtx.config(builder), profile)
    with pytest.raises(BerxitError, match="cannot load the engine of x: "):
        rtx.engine(rtx.make_runtime(), b"damaged", "x")


def test_real_build_reports_its_steps_and_can_be_interrupted(  # type: ignore[no-untyped-def]
    rtx, tiny: dict[str, Segments], tmp_path: Path
) -> None:
    graph = next(written(tiny["bert"], ExportOptions("fp32")))
    notes: list[str] = []
    build(rtx, graph, tmp_path, note=notes.append)
    assert notes
    assert all(re.fullmatch(r".+ \d+/\d+", note) for note in notes)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(rtx, graph, tmp_path, note=interrupt)


def test_unreadable_file_raises_one_line_error(rtx, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    segments = split_segments(multi_exit(tiny_backbone("bert"), tmp_path))
    graph = next(written(segments, ExportOptions("fp32")))
    graph.model.graph.node[0].op_type = "NoSuchOp"
    with pytest.raises(BerxitError, match=r"cannot parse .*segment\.onnx.*Export again with the --target-version"):
        build(rtx, graph, tmp_path)


@pytest.mark.parametrize("version", TENSORRT.versions, ids=lambda version: version.name)
def test_graphs_have_the_opset_of_the_version(version: TensorRTVersion, tmp_path: Path) -> None:
    segments = split_segments(multi_exit(tiny_backbone("bert"), tmp_path))
    for graph in written(segments, ExportOptions("fp16", target_version=version.name)):
        kinds = {node.op_type for node in graph.model.graph.node}
        assert graph.model.opset_import[0].version == version.opset
        assert {node.domain for node in graph.model.graph.node} == {""}
        assert ("LayerNormalization" in kinds) == (version.opset >= 17)


@pytest.mark.parametrize(("precision", "version"), WRITTEN)
def test_dtypes_agree_between_segments(precision: str, version: str, tmp_path: Path) -> None:
    segments = split_segments(multi_exit(tiny_backbone("bert"), tmp_path))
    carried = {}
    for graph in written(segments, ExportOptions(precision, target_version=version)):
        names = [tensor.name for tensor in (*graph.inputs, *graph.outputs)]
        assert len(names) == len(set(names))  # an engine identifies its tensors by name
        for tensor in graph.inputs:
            assert tensor.dtype == carried.get(tensor.role, "int32")
        carried |= {tensor.role: tensor.dtype for tensor in graph.outputs}
    half = precision == "fp16" or (
        precision == "int8" and version == "jetpack6.1"
    )  # inputs and outputs of bf16 segments are float32
    assert carried["hidden"] == carried["attention_bias"] == ("float16" if half else "float32")
    assert carried["logits"] == carried["lte"] == "float32"


@pytest.mark.parametrize(("version", "pairs"), [("jetpack6.1", (4, 8)), ("jetpack6.0", (8, 8))])
def test_int8_is_symmetric_and_quantizes_only_matrices(version: str, pairs: tuple[int, int], tmp_path: Path) -> None:
    segments = split_segments(multi_exit(tiny_backbone("bert"), tmp_path))
    _, layer, *_ = written(segments, ExportOptions("int8", target_version=version))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in layer.model.graph.initializer}
    nodes = layer.model.graph.node
    count = tuple(sum(node.op_type == kind for node in nodes) for kind in ("QuantizeLinear", "DequantizeLinear"))
    assert count == pairs
    zeros = [weights[node.input[2]] for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    for name in set(QDQ_WEIGHTS) - {"gated_down.weight"}:
        assert weights[f"{name}.scale"].shape == (weights[name].shape[1],)
        assert weights[name].dtype == ("int8" if version == "jetpack6.1" else "float32")
        assert weights[f"{name}.scale"].dtype == ("float16" if version == "jetpack6.1" else "float32")
    assert all(weights[f"{name}.bias"].dtype != np.int8 for name in ("qkv", "up", "down"))


def without_rounding(graph: OnnxSegment) -> onnx.ModelProto:
    """The int8 graph with float weights, without its QuantizeLinear and DequantizeLinear nodes."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    before = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node if n.output[0] not in before]
    for node in nodes:
        for place in range(len(node.input)):
            while (name := node.input[place]) in before:
                node.input[place] = before[name]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize(
    ("family", "activation", "exits"),
    [("bert", "gelu", ()), ("bert", "relu", (3,)), ("albert", "gelu_new", (1, 3)), ("mpnet", "gelu", ())],
)
def test_smoothing_is_folded_into_existing_operators(
    family: str, activation: str, exits: tuple[int, ...], tmp_path: Path
) -> None:
    """Without rounding, an int8 layer computes the same as the float32 layer, with two Mul more per encoder layer."""
    backbone = tiny_backbone(family)
    backbone.config.hidden_act = activation
    segments = split_segments(multi_exit(backbone, tmp_path))
    segments = segments.with_exits(exits) if exits else segments
    plain, int8 = (
        list(written(segments, ExportOptions(precision, target_version="jetpack6.0")))[-1]
        for precision in ("fp32", "int8")
    )
    rng = np.random.default_rng(0)
    sizes = {"batch": 2, "length": 7}
    feeds = {
        i.name: rng.normal(size=[sizes.get(s, s) for s in i.shape]).astype("float32")  # type: ignore[arg-type]
        for i in plain.inputs
    }
    expected, found = (
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
        for model in (plain.model, without_rounding(int8))
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    factors = [n for n in int8.model.graph.node if n.op_type == "Mul" and n.input[1].endswith(".input_factor")]
    layers = sum(node.op_type == "Softmax" for node in int8.model.graph.node)
    assert [n.input[1].rpartition("/")[2] for n in factors] == [
        "qkv.weight.input_factor",
        "up.weight.input_factor",
    ] * layers


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("version", ["jetpack6.1", "jetpack5"])
def test_nodes_of_exits_and_decomposed_norms_are_named_float32(precision: str, version: str, tmp_path: Path) -> None:
    if precision == "bf16" and version == "jetpack5":
        version = "jetpack7"
    segments = split_segments(multi_exit(tiny_backbone("bert"), tmp_path, exit_head="pooler"))
    embeddings, layer, *_ = written(segments, ExportOptions(precision, target_version=version))
    named = [n for n in layer.model.graph.node if n.name.startswith(FLOAT32_NODES)]
    kinds = [node.op_type for node in named]
    assert kinds.count("ReduceMean") == (4 if version == "jetpack5" else 0)
    assert kinds.count("MatMul") == 3  # pooler, classifier, LTE
    assert {"Tanh", "Sigmoid"} <= set(kinds)
    types = {
        v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(layer.model).graph.value_info
    }
    types |= {v.name: v.type.tensor_type.elem_type for v in layer.model.graph.output}
    assert {types[node.output[0]] for node in named} == {onnx.TensorProto.FLOAT}
    assert any(n.name.startswith(FLOAT32_NODES) for n in embeddings.model.graph.node) == (version == "jetpack5")


def test_layers_that_share_weights_share_a_file(tmp_path: Path) -> None:
    segments = split_segments(multi_exit(tiny_backbone("albert"), tmp_path))
    _, *graphs = written(segments, ExportOptions("int8"))
    assert len({graph.model.SerializeToString() for graph in graphs}) == 1


def test_smoothing_reduces_the_error_and_keeps_the_matmul(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(50, 32)), rng.normal(size=(32, 8))
    x[:, 3] *= 60  # an outlier channel, as in BERT
    x[:, 5] = 0
    reach = np.abs(x).max(axis=0)
    factors, step = _smoothing(reach, weight)
    assert np.isfinite(factors.astype(np.float16)).all()
    assert np.isfinite((1 / factors).astype(np.float16)).all()
    np.testing.assert_allclose((x / factors) @ (weight * factors[:, None]), x @ weight, rtol=1e-9)

    def rounded(value: np.ndarray, scale: npt.ArrayLike) -> np.ndarray:
        return np.round(value / scale).clip(-127, 127) * scale

    def error(factors: np.ndarray, step: float) -> float:
        scaled = weight * factors[:, None]
        found = rounded(x / factors, step) @ rounded(scaled, np.abs(scaled).max(axis=0) / 127)
        return float(np.abs(found - x @ weight).mean())

    assert step == pytest.approx(np.abs(x / factors).max() / 127)
    assert error(factors, step) < 0.5 * error(np.ones(32), reach.max() / 127)


def test_smoothing_accepts_activations_of_zero(tmp_path: Path) -> None:
    factors, step = _smoothing(np.zeros(4), np.zeros((4, 2)))
    assert np.isfinite(factors).all()
    assert step > 0


@pytest.mark.parametrize(("precision", "version"), WRITTEN)
def test_bundle_is_within_tolerance_of_checkpoint(
    precision: str, version: str, checkpoint: Path, tmp_path: Path
) -> None:
    options = ExportOptions(precision, target_version=version)
    lines: list[str] = []
    manifest = export(checkpoint, "tensorrt", tmp_path / "bundle", options=options, report=lines.append)
    assert replace(read_manifest(tmp_path / "bundle"), calibration=manifest.calibration) == manifest
    assert (manifest.target, manifest.precision, manifest.max_batch) == ("tensorrt", precision, 8)
    opset = {"jetpack6.1": 19, "jetpack6.0": 17, "jetpack5": 16}[version]
    assert (manifest.target_version, manifest.opset) == (version, opset)
    assert manifest.lengths == (16, 32)
    assert [line[:4] for line in lines[:3]] == ["-[✓]"] * 3
    assert lines[3].startswith("checked: the very files, in ONNX Runtime")
    assert (manifest.scores is not None) == (precision == "int8")
    assert max(manifest.parity.max_diff) <= {"fp32": 1e-5, "fp16": 2e-2, "bf16": 0.2, "int8": 0.5}[precision]
    from berxit.exporters.onnx.tensorrt import checking_backend

    backend = checking_backend(tmp_path / "bundle", manifest, 1)
    found = differences(backend, read_golden(tmp_path / "bundle", manifest), 0)
    assert found == pytest.approx(manifest.parity.max_diff, abs=1e-5)


def test_export_rejects_unknown_options(checkpoint: Path, tmp_path: Path) -> None:
    for options, message in (
        (
            ExportOptions(target_version="jetpack4"),
            "target tensorrt has no --target-version 'jetpack4': choose jetpack6.1",
        ),
        (ExportOptions(max_batch=-1), "--max-batch -1: it must be at least 1"),
        (ExportOptions("bf17"), "target tensorrt has no precision 'bf17': choose fp16, fp32, bf16, int8"),
        (
            ExportOptions("bf16", target_version="jetpack5"),
            "--precision bf16 does not go with --target-version jetpack5: choose fp16, fp32, int8",
        ),
        (ExportOptions(exits=(4,)), "--exits .* give layers from 1 to 3"),
        (ExportOptions(layout="ane"), "--layout does not go with target tensorrt"),
    ):
        with pytest.raises(InputError, match=message):
            export(checkpoint, "tensorrt", tmp_path / "bundle", options=options)
    assert not (tmp_path / "bundle").exists()


def test_weights_beyond_float16_are_rejected_by_name(tmp_path: Path) -> None:
    model = multi_exit(tiny_backbone("bert"), tmp_path)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("layer.0.output.dense.weight")).fill_(1e6)
    with pytest.raises(BerxitError, match=r"weight down.weight has values that float16 cannot hold: export in fp32"):
        list(written(split_segments(model), ExportOptions("fp16")))


def test_bundle_is_built_ahead_of_time(rtx, checkpoint: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from click.testing import CliRunner

    from berxit.runtime.build import command

    export(checkpoint, "tensorrt", tmp_path / "bundle", options=ExportOptions("fp16", (16, 32)))
    arguments = [
        str(tmp_path / "bundle"),
        "--builder",
        "tensorrt-rtx",
        "--sm",
        "86",
        "--output",
        str(tmp_path / "cache"),
    ]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert "builds 4 of 4 engines for SM 86" in done.output
    assert len(list((tmp_path / "cache").rglob("*.engine"))) == 4
    again = CliRunner().invoke(command, arguments)
    assert "builds" not in again.output
    assert "SM 86: 4 engines" in again.output
    manifest = read_manifest(tmp_path / "bundle")
    cache = EngineCache(tmp_path / "cache")
    engines = prepare_engines(tmp_path / "bundle", manifest, rtx, Gpu("GeForce RTX 3060", (8, 6)), cache)
    assert set(engines) == {segment.file for segment in manifest.segments}


def test_build_rejects_a_bundle_of_another_target(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    from berxit.runtime.build import command
    from berxit.runtime.console import status_of

    assert status_of(command, [str(bundle)]) == 2
    assert status_of(command, [str(tmp_path / "nothing")]) == 1
