"""CoreML packages, executed in numpy from disk and compared with PyTorch at every exit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="coremltools is not installed here: pip install -e '.[coreml]'")

from conftest import ENCODERS, SAMPLES, MakeCheckpoint, quick_and_slow, shared
from coreml_checkpoints import LIMITS, hidden_gap, size
from test_export import change_precision, checkpoint_of

from berxit.devices import find
from berxit.exporters import exit_placement, loading
from berxit.exporters.coreml import weights as mil_weights
from berxit.exporters.coreml.executor import open_package, ops_of, types_of
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments, split_segments
from berxit.exporters.targets import COREML
from berxit.runtime.bundle import Manifest, files_of, read_manifest, sha256
from berxit.runtime.errors import BerxitError, InputError
from berxit.train.calibration import read_policy
from berxit.train.checkpoint import load_checkpoint
from berxit.train.modeling import MultiExitModel

TOKENS = [(family, "fp32", "ios18", "tokens", ()) for family in ENCODERS]
ANE = [(family, "fp16", "ios18", "ane", (8, 32)) for family in ("bert", "albert", "mpnet", "modernbert", "deberta-v2")]
OLDER = [(family, "fp32", "ios16", "ane", (24,)) for family in ("roberta", "distilbert")]
CASES = [*TOKENS, *ANE, *OLDER]
SLOW = {("electra", "tokens"), ("deberta-v2", "tokens"), ("modernbert", "ane")}


@pytest.mark.parametrize(
    ("family", "precision", "version", "layout", "lengths"),
    quick_and_slow(CASES, quick=[case for case in CASES if (case[0], case[3]) not in SLOW]),
)
def test_every_layer_equals_pytorch(
    family: str,
    precision: str,
    version: str,
    layout: str,
    lengths: tuple[int, ...],
    made: MakeCheckpoint,
    tmp_path: Path,
) -> None:
    pooling, head = ("mean", "pooler") if layout == "ane" else ("first", "linear")
    checkpoint = made(family, pooling=pooling, exit_head=head)
    options = ExportOptions(precision, lengths, target_version=version, layout=layout)
    manifest = export(checkpoint, "coreml", tmp_path / "bundle", options=options)
    states, exits = hidden_gap(checkpoint, tmp_path / "bundle")
    assert states <= LIMITS[precision]
    assert exits <= LIMITS[precision]
    assert (manifest.target, manifest.precision, manifest.lengths, manifest.max_batch) == (
        "coreml", precision, lengths, 1,
    )  # fmt: skip


def test_export_writes_one_fp16_package_by_default(made: MakeCheckpoint, tmp_path: Path) -> None:
    lines: list[str] = []
    export(made("bert"), "coreml", tmp_path / "bundle", report=lines.append)
    manifest = read_manifest(tmp_path / "bundle")  # every checksum, that of the package's folder too
    assert manifest.precision == "fp16"
    assert {segment.file for segment in manifest.segments} == {"segments/model.mlpackage"}
    names = ["embeddings", "layer_01", "layer_02", "layer_03"]
    assert [segment.function for segment in manifest.segments] == names
    assert set(open_package(tmp_path / "bundle/segments/model.mlpackage")) == set(names)
    hidden = next(o for o in manifest.segments[0].outputs if o.role == "hidden")
    assert (hidden.dtype, hidden.shape) == ("float32", (1, "length", 32))
    outputs = {o.role: (o.dtype, o.shape) for o in manifest.segments[1].outputs}
    assert outputs["logits"] == ("float32", (1, 2))
    assert outputs["lte"] == ("float32", (1,))
    assert "coremltools" in manifest.made_with
    assert [line[:15] for line in lines[:3]] == ["-[✓] layer 01: ", "-[✓] layer 02: ", "-[✓] layer 03: "]
    assert "PSNR" in lines[0]
    assert "Apple's runtime was not run" in lines[3]


def test_ios_16_has_one_package_per_segment(made: MakeCheckpoint, tmp_path: Path) -> None:
    options = ExportOptions(target_version="ios16")
    manifest = export(made("bert"), "coreml", tmp_path / "bundle", options=options)
    assert [segment.file for segment in manifest.segments] == [
        f"segments/{name}.mlpackage" for name in ("embeddings", "layer_01", "layer_02", "layer_03")
    ]
    assert {segment.function for segment in manifest.segments} == {None}
    assert hidden_gap(made("bert"), tmp_path / "bundle")[0] <= LIMITS["fp16"]


def test_ane_layout_has_convolutions_and_no_transpositions(made: MakeCheckpoint, tmp_path: Path) -> None:
    options = ExportOptions(layout="ane", lengths=(8, 16))
    manifest = export(made("bert"), "coreml", tmp_path / "bundle", options=options)
    ops = ops_of(tmp_path / "bundle/segments/model.mlpackage")["layer_01"]
    assert ops.count("conv") == 6  # qkv, output, up, down, classifier, lte
    assert not {"linear", "transpose"} & set(ops)
    assert (manifest.segments[1].inputs[0].dtype, manifest.segments[1].inputs[0].shape) == (
        "float16", (1, 32, 1, "length"),
    )  # fmt: skip


def test_only_the_ane_layout_has_hidden_states_in_fp16(made: MakeCheckpoint, tmp_path: Path) -> None:
    gaps = {}
    for layout in ("tokens", "ane"):
        export(made("bert"), "coreml", tmp_path / layout, options=ExportOptions(layout=layout))
        types = types_of(tmp_path / layout / "segments/model.mlpackage")["layer_02"]
        assert {types[f"layer_02_{norm}"] for norm in ("attention_norm", "output_norm")} == {
            np.float32 if layout == "tokens" else np.float16
        }
        assert {types[f"layer_02_{product}"] for product in ("qkv", "output", "up", "down")} == {np.float16}
        gaps[layout] = hidden_gap(made("bert"), tmp_path / layout)[0]
    assert gaps["tokens"] < 0.8 * gaps["ane"]


@pytest.mark.parametrize(("version", "layout"), [("ios18", "tokens"), ("ios16", "ane")])
def test_layers_without_an_exit_run_in_the_next_ones_segment(
    version: str, layout: str, made: MakeCheckpoint, tmp_path: Path
) -> None:
    checkpoint = made("bert")
    options = ExportOptions("fp32", target_version=version, layout=layout, exits=(2,))
    manifest = export(checkpoint, "coreml", tmp_path / "bundle", options=options)
    assert manifest.exits == (2, 3)
    states, exits = hidden_gap(checkpoint, tmp_path / "bundle")
    assert states <= LIMITS["fp32"]
    assert exits <= LIMITS["fp32"]


def test_auto_rejects_a_machine_without_coreml(
    made: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_placement, "recognise", lambda machine: find("cpu"))
    with pytest.raises(InputError, match="--exits auto measures here, and a cpu does not run coreml: name them"):
        export(made("bert"), "coreml", tmp_path / "bundle", options=ExportOptions(exits="auto"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("version", ["ios18", "ios16"])
def test_export_of_several_albert_layers_contains_one_body(version: str, made: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint, stored = made("albert"), {}
    for exits in ((1, 2, 3), (3,)):
        bundle = tmp_path / f"{len(exits)} exits"
        manifest = export(checkpoint, "coreml", bundle, options=ExportOptions(target_version=version, exits=exits))
        stored[manifest.exits] = sum(file.stat().st_size for file in bundle.rglob("weight.bin"))
        assert hidden_gap(checkpoint, bundle)[0] <= LIMITS["fp16"]
    if version == "ios18":
        assert stored[3,] <= stored[1, 2, 3]
    else:  # one package with a body, beside the embeddings, instead of three
        assert stored[3,] < 0.6 * stored[1, 2, 3]


@pytest.mark.parametrize(
    ("precision", "layout"),
    quick_and_slow([("fp32", "tokens"), ("fp16", "tokens"), ("fp16", "ane")], quick=[("fp16", "tokens")]),
)
def test_export_stores_albert_body_once(precision: str, layout: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(
        shared("models", "rxnmapper-albert"), tmp_path / "albert", tokenizer=tokenizer_folder, layers=6
    )
    options = ExportOptions(precision, layout=layout)
    manifest = export(checkpoint, "coreml", tmp_path / "bundle", options=options)
    model, _ = load_checkpoint(checkpoint)
    parameters = sum(parameter.numel() for parameter in model.parameters())  # one body, all heads, embeddings
    once = np.dtype(np.float32 if precision == "fp32" else np.float16).itemsize * parameters
    assert size(tmp_path / "bundle" / manifest.segments[0].file) <= 1.1 * once
    states, exits = hidden_gap(checkpoint, tmp_path / "bundle")
    assert states <= LIMITS[precision] * (2 if layout == "ane" else 1)  # float16 throughout: 1.03e-2 on some CPUs
    assert exits <= LIMITS[precision]


def test_export_stores_albert_body_once_in_int8(backbone_folders: dict, tmp_path: Path) -> None:
    sizes = []
    for layers in (1, 3):
        checkpoint = checkpoint_of(backbone_folders["albert"], tmp_path / f"checkpoint-{layers}", layers=layers)
        (checkpoint / "samples.json").write_text(json.dumps(SAMPLES), encoding="utf-8")
        export(checkpoint, "coreml", tmp_path / f"bundle-{layers}", options=ExportOptions("int8"))
        sizes.append(
            (tmp_path / f"bundle-{layers}/segments/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin")
            .stat()
            .st_size
        )
    assert sizes[1] <= 1.1 * sizes[0]


def test_int8_takes_half_of_fp16_on_real_weights(tokenizer_folder: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(
        shared("models", "rxnmapper-albert"), tmp_path / "checkpoint", tokenizer=tokenizer_folder, layers=2
    )
    (checkpoint / "samples.json").write_text(json.dumps(SAMPLES), encoding="utf-8")
    manifest = export(checkpoint, "coreml", tmp_path / "bundle", options=ExportOptions("int8"))
    model, _ = load_checkpoint(checkpoint)
    half = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert next((tmp_path / "bundle").rglob("weight.bin")).stat().st_size <= 0.55 * half
    assert max(manifest.parity.max_diff) <= manifest.parity.atol


@pytest.mark.parametrize(
    ("family", "precision", "version", "layout", "op"),
    [
        ("roberta", "int8", "ios16", "ane", "constexpr_affine_dequantize"),
        ("distilbert", "palette6", "ios18", "ane", "constexpr_lut_to_dense"),
        ("albert", "palette4", "ios16", "tokens", "constexpr_lut_to_dense"),
    ],
)
def test_compressed_weights_have_the_op_of_their_form(
    family: str,
    precision: str,
    version: str,
    layout: str,
    op: str,
    made: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mil_weights, "SMALLEST", 1000)  # the tiny models' matrices have 1024 elements and more
    options = ExportOptions(precision, target_version=version, layout=layout)
    manifest = export(made(family), "coreml", tmp_path / "bundle", options=options)
    for segment in manifest.segments[1:]:
        ops = ops_of(tmp_path / "bundle" / segment.file)[segment.function or "main"]
        assert ops.count(op) == 4  # qkv, output, up, down; exits stay as they are
        assert ops.count("conv" if layout == "ane" else "linear") == 6


def test_compressed_weights_get_their_own_threshold(checkpoint: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    manifest = export(checkpoint, "coreml", tmp_path / "bundle", options=ExportOptions("palette4"), report=lines.append)
    calibrated = read_policy(checkpoint)
    assert calibrated is not None
    assert manifest.scores is not None
    assert (manifest.scores.examples, manifest.scores.data) == (48, "dev.tsv")
    assert len(manifest.scores.bundle) == 3
    assert manifest.policy.thresholds != calibrated.policy.thresholds
    assert lines[-2].startswith("calibrated on the bundle's own outputs: ")
    assert lines[-1].startswith("flips: ")
    stored = read_manifest(tmp_path / "bundle")
    assert (stored.policy, stored.scores) == (manifest.policy, manifest.scores)


def test_palettes_are_smaller_and_within_tolerance(made: MakeCheckpoint, tmp_path: Path) -> None:
    sizes = {}
    for precision in ("fp16", "palette6", "palette4"):
        manifest = export(made("bert"), "coreml", tmp_path / precision, options=ExportOptions(precision))
        sizes[precision] = next((tmp_path / precision).rglob("weight.bin")).stat().st_size
        ops = ops_of(tmp_path / precision / manifest.segments[0].file)["layer_01"]
        assert ("constexpr_lut_to_dense" in ops) == (precision != "fp16")
        assert max(manifest.parity.max_diff) <= manifest.parity.atol
    assert max(sizes["palette6"], sizes["palette4"]) < 0.85 * sizes["fp16"]


def test_export_rejects_exits_that_differ(
    made: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: MultiExitModel) -> Segments:
        segments = split_segments(model)
        last = segments.layers[-1]
        up = replace(last.encoder.up, bias=last.encoder.up.bias + 5)
        return replace(segments, layers=(*segments.layers[:-1], replace(last, encoder=replace(last.encoder, up=up))))

    checkpoint = made("bert")
    monkeypatch.setattr(loading, "split_segments", wrong)
    change_precision(monkeypatch, "coreml", "fp16", atol=1e-3)  # exits of an untrained model hardly differ
    with pytest.raises(BerxitError, match=r"1 of 3 exits differ .*layer 03.*Nothing was written"):
        export(checkpoint, "coreml", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_export_rejects_exits_below_the_psnr(
    made: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_precision(monkeypatch, "coreml", "fp16", least_psnr=120.0)  # as if float32
    with pytest.raises(BerxitError, match=r"3 of 3 exits differ .*PSNR \d+ dB \(at least: 120\)\. Nothing was written"):
        export(made("bert"), "coreml", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_every_coreml_precision_has_a_least_psnr() -> None:
    assert all(np.isfinite(precision.least_psnr) for precision in COREML.precisions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(target_version="ios12"), "no --target-version 'ios12': choose ios18, macos15, ios16"),
        (ExportOptions(layout="sideways"), "no --layout 'sideways': choose tokens or ane"),
        (ExportOptions(target_version="ios16", lengths=(8, 16)), "ios16 takes one of --lengths"),
        (ExportOptions(max_batch=4), "--max-batch 4: the largest batch of target coreml is 1"),
        (ExportOptions("fp7"), "no precision 'fp7': choose fp16, fp32"),
    ],
)
def test_export_rejects_unknown_options(
    options: ExportOptions, message: str, made: MakeCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export(made("bert"), "coreml", tmp_path / "bundle", options=options)
    assert not (tmp_path / "bundle").exists()


def test_lengths_are_limited_to_the_model(made: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = made("bert")  # up to 32 tokens
    manifest = export(checkpoint, "coreml", tmp_path / "long", options=ExportOptions(lengths=(128, 16, 64)))
    assert (manifest.lengths, manifest.model.max_length) == ((16, 32), 32)
    manifest = export(checkpoint, "coreml", tmp_path / "short", options=ExportOptions(lengths=(8,)))
    assert (manifest.lengths, manifest.model.max_length) == ((8,), 8)
    golden = json.loads((tmp_path / "short" / "golden.json").read_text(encoding="utf-8"))
    assert max(len(ids) for ids in golden["input_ids"]) <= 8
    golden = json.loads((tmp_path / "long" / "golden.json").read_text(encoding="utf-8"))
    counts = [len(ids) for ids in golden["input_ids"]]  # what the export checked, and a device will: every length
    assert any(16 < count <= 32 for count in counts)
    assert any(count <= 16 for count in counts)


def test_package_accepts_only_its_lengths(made: MakeCheckpoint, tmp_path: Path) -> None:
    manifest = export(made("bert"), "coreml", tmp_path / "bundle", options=ExportOptions(lengths=(8, 16)))
    embeddings = open_package(tmp_path / "bundle" / manifest.segments[0].file)["embeddings"]
    feeds = {name: np.ones((1, 8), np.int32) for name in ("input_ids", "token_type_ids", "attention_mask")}
    assert embeddings(feeds)["hidden"].shape == (1, 8, 32)
    with pytest.raises(BerxitError, match="not one that the package declares"):
        embeddings({name: np.ones((1, 9), np.int32) for name in feeds})
    with pytest.raises(BerxitError, match="the function takes input_ids"):
        embeddings({"input_ids": feeds["input_ids"]})


def test_read_manifest_rejects_a_changed_weight_file(made: MakeCheckpoint, tmp_path: Path) -> None:
    manifest: Manifest = export(made("bert"), "coreml", tmp_path / "bundle")
    package = tmp_path / "bundle" / manifest.segments[0].file
    assert files_of(manifest)[manifest.segments[0].file] == sha256(package)
    weights = next(package.rglob("weight.bin"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BerxitError, match="checksum differs"):
        read_manifest(tmp_path / "bundle")
