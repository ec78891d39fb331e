"""Variants of CoreML bundles (--target-options): every exit is as close to the checkpoint as without them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="coremltools is not installed here: pip install -e '.[coreml]'")

import torch
from conftest import MakeCheckpoint
from coreml_checkpoints import LIMITS, hidden_gap

from berxit.exporters import loading
from berxit.exporters.coreml import weights as mil_weights
from berxit.exporters.coreml.executor import open_package, ops_of
from berxit.exporters.coreml.int8_activations import Int8Activation
from berxit.exporters.coreml.layouts import TokensFirst
from berxit.exporters.coreml.package import new_function, write_package
from berxit.exporters.coreml.silenced_coremltools import ct, mb, types
from berxit.exporters.coreml.target import checking_backend
from berxit.exporters.coreml.weights import Weights
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments, split_segments
from berxit.exporters.targets import COREML
from berxit.runtime.bundle import Manifest, read_manifest
from berxit.runtime.errors import InputError
from berxit.runtime.golden import differences, read_golden
from berxit.train.backbones.weights import Linear
from berxit.train.modeling import MultiExitModel


def exported(checkpoint: Path, bundle: Path, *names: str, precision: str | None = None, **options: object) -> Manifest:
    """Exports with these target options and reads the manifest back."""
    export(checkpoint, "coreml", bundle, options=ExportOptions(precision, target_options=names, **options))  # type: ignore[arg-type]
    return read_manifest(bundle)


def ops(bundle: Path, manifest: Manifest, function: str) -> list[str]:
    return ops_of(bundle / manifest.segments[0].file)[function]


@pytest.mark.parametrize(
    ("family", "precision", "layout"),
    [("bert", "fp32", "tokens"), ("mpnet", "fp16", "ane"), ("albert", "fp16", "tokens")],
)
def test_fixed_shapes_equal_pytorch_at_every_length(
    family: str,
    precision: str,
    layout: str,
    made: MakeCheckpoint,
    tmp_path: Path,
) -> None:
    checkpoint = made(family, pooling="mean" if layout == "ane" else "first")
    manifest = exported(
        checkpoint, tmp_path / "bundle", "fixed-shapes", precision=precision, layout=layout, lengths=(8, 16, 32)
    )
    states, exits = hidden_gap(checkpoint, tmp_path / "bundle")  # rows of 6, 3 and 17 tokens
    assert max(states, exits) <= LIMITS[precision]
    assert manifest.segments[1].functions == ("layer_01_s8", "layer_01_s16", "layer_01_s32")
    assert {segment.function for segment in manifest.segments} == {None}


def test_fixed_shapes_have_one_shape_per_function(made: MakeCheckpoint, tmp_path: Path) -> None:
    manifest = exported(made("bert"), tmp_path / "bundle", "fixed-shapes", lengths=(8, 16))
    functions = open_package(tmp_path / "bundle" / manifest.segments[0].file)
    for segment in manifest.segments:
        for length, name in zip((8, 16), segment.functions, strict=True):
            for declared in functions[name].inputs.values():
                assert declared.WhichOneof("ShapeFlexibility") is None
                assert set(declared.shape) & {8, 16} <= {length}
            assert "shape" not in ops(tmp_path / "bundle", manifest, name)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_fixed_shapes_add_no_weights(family: str, made: MakeCheckpoint, tmp_path: Path) -> None:
    """One length and three: the position tables and relative biases of the lengths are parts of one table."""
    stored = []
    for lengths in ((32,), (8, 16, 32)):
        bundle = tmp_path / str(len(lengths))
        exported(made(family), bundle, "fixed-shapes", lengths=lengths)
        stored.append(next(bundle.rglob("weight.bin")).stat().st_size)
    assert stored[1] <= 1.02 * stored[0]


def test_fixed_shapes_need_lengths(made: MakeCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fixed-shapes needs lengths: add --lengths 32,64,128"):
        exported(made("bert"), tmp_path / "bundle", "fixed-shapes")


@pytest.mark.parametrize(
    ("family", "layout", "names"),
    [("bert", "tokens", ("full-depth",)), ("mpnet", "ane", ("full-depth", "fixed-shapes", "float16-exits"))],
)
def test_full_depth_as_one_graph_equals_the_last_exit(
    family: str,
    layout: str,
    names: tuple[str, ...],
    made: MakeCheckpoint,
    tmp_path: Path,
) -> None:
    lines: list[str] = []
    checkpoint, bundle = made(family, pooling="mean" if layout == "ane" else "first"), tmp_path / "bundle"
    options = ExportOptions(layout=layout, lengths=(8, 32), target_options=names)
    export(checkpoint, "coreml", bundle, options=options, report=lines.append)
    assert any(line.startswith("-[✓] one graph (without exits): ") for line in lines)
    manifest = read_manifest(bundle)
    segments = checking_backend(bundle, manifest, None)
    one_graph = segments.one_graph()
    assert one_graph is not None
    golden = read_golden(bundle, manifest)
    *_, last = differences(segments, golden, manifest.model.pad_token_id)
    assert differences(one_graph, golden, manifest.model.pad_token_id) == [pytest.approx(last, abs=1e-6)]
    name = "full_s8" if "fixed-shapes" in names else "full"
    assert ops(bundle, manifest, name).count("softmax") == 3  # one per layer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "precision", "layout", "name", "lengths"),
    [
        ("bert", "fp16", "ane", "fixed-shapes", (16, 32)),
        ("albert", "fp16", "tokens", "shared-body", ()),
        ("albert", "fp32", "ane", "shared-body", (32,)),
        ("modernbert", "fp16", "ane", "float16-exits", ()),
    ],
)
def test_labels_of_words_stay_within_the_tolerance(
    family: str,
    precision: str,
    layout: str,
    name: str,
    lengths: tuple[int, ...],
    made: MakeCheckpoint,
    tmp_path: Path,
) -> None:
    from small_models import TOKENS

    checkpoint = made(family, **TOKENS)
    manifest = exported(checkpoint, tmp_path / "bundle", name, precision=precision, layout=layout, lengths=lengths)
    assert max(manifest.parity.max_diff) <= {"fp16": 2e-3, "fp32": 1e-5}[precision]
    assert manifest.segments[1].outputs[1].shape == (
        1,
        lengths[0] if len(lengths) == 1 else "length",
        len(manifest.model.labels),
    )


def test_export_without_full_depth_has_no_one_graph(made: MakeCheckpoint, tmp_path: Path) -> None:
    manifest = exported(made("bert"), tmp_path / "bundle")
    assert manifest.full is None
    assert checking_backend(tmp_path / "bundle", manifest, None).one_graph() is None


@pytest.mark.parametrize(("family", "layout"), [("bert", "ane"), ("albert", "tokens")])
def test_float16_exits_end_without_float32_and_sigmoid(
    family: str,
    layout: str,
    made: MakeCheckpoint,
    tmp_path: Path,
) -> None:
    manifest = exported(made(family), tmp_path / "bundle", "float16-exits", layout=layout)
    outputs = {output.role: (output.dtype, output.shape) for output in manifest.segments[1].outputs}
    assert outputs["logits"] == ("float16", (1, 2))
    assert outputs["lte_logit"] == ("float16", (1,))
    written = ops(tmp_path / "bundle", manifest, "layer_01")
    assert "sigmoid" not in written
    if layout == "ane":
        assert "cast" not in written
    assert hidden_gap(made(family), tmp_path / "bundle")[1] <= LIMITS["fp16"]


def test_float16_exits_reject_outputs_beyond_float16(
    made: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def large(model: MultiExitModel) -> Segments:
        segments = split_segments(model)
        head = segments.layers[1].exit
        classifier = replace(head.classifier, bias=head.classifier.bias + 1e5)
        changed = replace(segments.layers[1], exit=replace(head, classifier=classifier))
        return replace(segments, layers=(segments.layers[0], changed, segments.layers[2]))

    monkeypatch.setattr(loading, "split_segments", large)
    with pytest.raises(InputError, match="float16-exits: the classifier of layer 2 may exceed the range of float16"):
        exported(made("bert"), tmp_path / "bundle", "float16-exits")


@pytest.mark.parametrize(
    ("version", "layout", "head", "names"),
    [
        ("ios18", "tokens", "linear", ("shared-body",)),
        ("ios16", "ane", "pooler", ("shared-body", "float16-exits")),
        ("ios18", "ane", "pooler", ("shared-body", "fixed-shapes", "full-depth")),
    ],
)
def test_shared_body_is_one_function_for_all_layers(
    version: str,
    layout: str,
    head: str,
    names: tuple[str, ...],
    made: MakeCheckpoint,
    tmp_path: Path,
) -> None:
    checkpoint = made("albert", exit_head=head)
    lengths = (8, 32) if "fixed-shapes" in names else ()
    manifest = exported(checkpoint, tmp_path / "bundle", *names, target_version=version, layout=layout, lengths=lengths)
    assert len({(segment.file, segment.function, segment.functions) for segment in manifest.segments[1:]}) == 1
    first, second = manifest.segments[1:3]
    assert first.constants.keys() == second.constants.keys() >= {"classifier_weight", "lte_weight"}
    assert first.constants["classifier_weight"].sha256 != second.constants["classifier_weight"].sha256
    assert ("pooler_weight" in first.constants) == (head == "pooler")
    states, exits = hidden_gap(checkpoint, tmp_path / "bundle")
    assert max(states, exits) <= LIMITS["fp16"]


def test_shared_body_scales_outputs_beyond_float16(
    made: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def large(model: MultiExitModel) -> Segments:
        with torch.no_grad():
            for exit_ in model.heads:
                exit_.classifier.weight *= 1e5
        return split_segments(model)

    monkeypatch.setattr(loading, "split_segments", large)
    manifest = exported(made("albert"), tmp_path / "bundle", "shared-body")
    assert manifest.parity.scale > 10
    assert max(manifest.parity.max_diff) <= manifest.parity.atol


def test_shared_body_rejects_a_model_without_shared_layers(made: MakeCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no two segments of this model share their weights"):
        exported(made("bert"), tmp_path / "bundle", "shared-body")


def test_compiled_needs_a_mac(made: MakeCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"compiled needs a Mac, and this is Linux: .*xcrun coremlcompiler compile"):
        exported(made("bert"), tmp_path / "bundle", "compiled")


def test_grouped_palettes_are_more_accurate_than_one_per_matrix(tmp_path: Path) -> None:
    """Two groups of channels of different size: one table for both has few values for the smaller one."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(64, 64)).astype(np.float32)
    weight[32:] *= 50
    errors = {}
    for name in ("palette4", "palette4-grouped"):
        shape, target = (1, 64), ct.target.iOS18
        with new_function({"x": mb.placeholder(shape=shape, dtype=types.fp16)}, target) as function:
            stored = Weights(COREML.precision(name)).matrix(weight)
            product = mb.linear(x=function.inputs["x"], weight=stored, bias=np.zeros(64, np.float16))
            function.set_outputs([mb.identity(x=product, name="y")])
        write_package({"main": function}, tmp_path / f"{name}.mlpackage", target)
        multiply = open_package(tmp_path / f"{name}.mlpackage")["main"]
        rows = [multiply({"x": row[None]})["y"] for row in np.eye(64, dtype=np.float16)]
        errors[name] = np.abs(np.concatenate(rows).T[:32] - weight[:32]).mean()
    assert errors["palette4-grouped"] < 0.2 * errors["palette4"]


@pytest.mark.parametrize("version", ["iOS16", "iOS18"])
@pytest.mark.filterwarnings("error")
def test_int8_row_of_zeros_has_a_scale(version: str, tmp_path: Path) -> None:
    """The embedding of padding is a row of zeros in many checkpoints."""
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    weight[3] = 0
    target = getattr(ct.target, version)
    with new_function({"x": mb.placeholder(shape=(1, 64), dtype=types.fp16)}, target) as function:
        stored = Weights(COREML.precision("int8")).matrix(weight)
        product = mb.linear(x=function.inputs["x"], weight=stored, bias=np.zeros(64, np.float16))
        function.set_outputs([mb.identity(x=product, name="y")])
    assert np.all(stored.op.scale.val != 0)
    write_package({"main": function}, tmp_path / "a.mlpackage", target)
    multiply = open_package(tmp_path / "a.mlpackage")["main"]
    found = np.concatenate([multiply({"x": row[None]})["y"] for row in np.eye(64, dtype=np.float16)]).T
    assert np.all(found[3] == 0)
    np.testing.assert_allclose(found, weight, atol=np.abs(weight).max() / 127)


@pytest.mark.parametrize(("family", "layout"), [("bert", "ane"), ("albert", "tokens")])
def test_int8_activations_quantize_the_inputs_of_all_large_matmuls(
    family: str,
    layout: str,
    made: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mil_weights, "SMALLEST", 1000)
    manifest = exported(made(family), tmp_path / "bundle", precision="int8-activations", layout=layout)
    written = ops(tmp_path / "bundle", manifest, "layer_02")
    matmul = "conv" if layout == "ane" else "linear"
    assert (written.count("quantize"), written.count("dequantize"), written.count(matmul)) == (4, 4, 6)
    assert written.count("constexpr_blockwise_shift_scale") == 4
    computed = [op for op in written if op != "const" and not op.startswith("constexpr_")]
    assert all(after == "dequantize" for op, after in pairwise(computed) if op == "quantize")
    assert all(after == matmul for op, after in pairwise(computed) if op == "dequantize")
    assert 1e-6 < max(manifest.parity.max_diff) <= 0.05


def test_int8_input_is_smoothed_and_rounded_to_its_step(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, weight = random.normal(size=(8, 64)), random.normal(size=(64, 64)).astype(np.float32)
    x[:, 3] *= 30  # an outlier channel
    int8 = Int8Activation.choose(np.abs(x).max(axis=0), weight)
    weights, target = Weights(COREML.precision("int8-activations")), ct.target.iOS18
    with new_function({"x": mb.placeholder(shape=(1, 8, 64), dtype=types.fp16)}, target) as function:
        layout = TokensFirst(weights, {"up": int8})
        product = layout.linear("up", function.inputs["x"], Linear(weight, np.zeros(64, np.float32)))
        function.set_outputs([mb.identity(x=product, name="y")])
    write_package({"main": function}, tmp_path / "a.mlpackage", target)
    found = open_package(tmp_path / "a.mlpackage")["main"]({"x": x[None].astype(np.float16)})["y"][0]
    smoothed = weight * int8.smoothing[:, None]
    scale = np.abs(smoothed).max(axis=0) / 127
    steps = np.clip(np.round(x / int8.smoothing / int8.step), -128, 127)
    expected = (steps * int8.step) @ (np.round(smoothed / scale) * scale)
    size = np.abs(expected).max()
    assert np.abs(found - expected).max() / size < 0.01  # float16, and steps at the border between two
    assert np.abs(found - x @ weight).max() / size < 0.05
    assert int8.step * 127 < np.abs(x).max()  # smoothing reduced the range


def test_int8_activations_store_shared_weights_once(made: MakeCheckpoint, tmp_path: Path) -> None:
    stored = []
    for exits in ((3,), (1, 2, 3)):
        bundle = tmp_path / str(len(exits))
        exported(made("albert"), bundle, precision="int8-activations", exits=exits)
        stored.append(next(bundle.rglob("weight.bin")).stat().st_size)
    assert stored[1] <= 1.1 * stored[0]  # two more exits, no more bodies
