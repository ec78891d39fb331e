"""Parity relative to the size of the values: regression on prices, years and concentrations, and large logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from berxit.exporters import loading
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments, split_segments
from berxit.runtime import EarlyExitRunner
from berxit.runtime.benchmark import bench
from berxit.runtime.bundle import read_manifest, sha256
from berxit.runtime.errors import BerxitError
from berxit.runtime.golden import read_golden
from berxit.runtime.tuning import tune
from berxit.train.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from berxit.train.encoding import as_tensors
from berxit.train.modeling import MultiExitModel

TEXTS = ["the cat", "a dog sat on the mat", "play music", "not a big red tree and a small blue dog"]
VALUES = {"prices": (3e5, 2e4), "years": (1990.0, 3.0), "concentrations": (4e-6, 1e-6), "z-scores": (0.0, 0.5)}
"""Name -> mean and spread of a regression's values."""


def regression(model: Path, folder: Path, mean: float, spread: float) -> Path:
    """A checkpoint whose exits return values of about that mean and spread."""
    labels = {"id2label": {0: "value"}, "label2id": {"value": 0}, "problem_type": "regression", "metric": "spearman"}
    return saved(model, folder, spread, mean, **labels)


def saved(model: Path, folder: Path, factor: float, bias: float, **options: object) -> Path:
    torch.manual_seed(0)
    multi_exit = MultiExitModel.from_backbone(model, **{"lte": True, "max_length": 32, "pooling": "mean", **options})
    with torch.no_grad():
        for head in multi_exit.heads:
            head.classifier.weight.copy_(torch.randn_like(head.classifier.weight) * factor)
            head.classifier.bias.fill_(bias)
    folder.mkdir()
    record = TrainingRecord({}, "train.tsv", "0", 0, 0, 0.0, 0.0, "cpu", {})
    save_checkpoint(folder, multi_exit, AutoTokenizer.from_pretrained(model), record, list(TEXTS))
    return folder


@pytest.mark.parametrize(
    ("values", "target", "precision"),
    [
        *((values, "onnxruntime", "fp32") for values in VALUES),
        ("prices", "onnxruntime", "int8"),
        ("concentrations", "onnxruntime", "fp16"),
        ("prices", "tensorrt", "fp16"),
        ("concentrations", "tensorrt", "fp16"),
        ("years", "tensorrt", "bf16"),
        ("prices", "tensorrt", "int8"),
    ],
)
def test_export_accepts_regression_values_of_any_size(
    values: str, target: str, precision: str, backbone_folders: dict, tmp_path: Path
) -> None:
    checkpoint = regression(backbone_folders["bert"], tmp_path / "checkpoint", *VALUES[values])
    manifest = export(checkpoint, target, tmp_path / "bundle", options=ExportOptions(precision=precision))
    largest = np.abs(np.array(read_golden(tmp_path / "bundle", manifest).logits)).max()
    assert manifest.parity.scale == pytest.approx(largest / 5)
    assert max(manifest.parity.max_diff) <= manifest.parity.atol


@pytest.mark.parametrize(
    ("values", "precision", "layout"),
    [
        ("prices", "fp16", "tokens"),
        ("years", "fp16", "tokens"),
        ("concentrations", "fp16", "tokens"),
        ("prices", "fp16", "ane"),
        ("concentrations", "fp32", "ane"),
        ("years", "int8", "ane"),
        ("prices", "palette6", "tokens"),
    ],
)
def test_coreml_represents_values_beyond_the_range_of_float16(
    values: str, precision: str, layout: str, backbone_folders: dict, tmp_path: Path
) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed here")
    checkpoint = regression(backbone_folders["bert"], tmp_path / "checkpoint", *VALUES[values])
    options = ExportOptions(precision=precision, layout=layout, lengths=(16, 32) if layout == "ane" else ())
    manifest = export(checkpoint, "coreml", tmp_path / "bundle", options=options)
    assert max(manifest.parity.max_diff) <= manifest.parity.atol


def test_classifiers_with_large_logits_are_exported(backbone_folders: dict, tmp_path: Path) -> None:
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    checkpoint = saved(backbone_folders["bert"], tmp_path / "checkpoint", 1e4, 0.0, **labels)
    manifest = export(checkpoint, "onnxruntime", tmp_path / "bundle")
    assert manifest.parity.scale > 1000


def test_classifiers_with_usual_logits_keep_the_absolute_tolerance(bundle: Path) -> None:
    assert read_manifest(bundle).parity.scale == 1
    assert "scale" not in json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["parity"]


def with_bias(change: float) -> Callable[[MultiExitModel], Segments]:
    """``split_segments`` with an error in the last exit."""

    def wrong(model: MultiExitModel) -> Segments:
        segments = split_segments(model)
        last = segments.layers[-1]
        classifier = last.exit.classifier
        worse = replace(last.exit, classifier=replace(classifier, bias=classifier.bias + np.float32(change)))
        return replace(segments, layers=(*segments.layers[:-1], replace(last, exit=worse)))

    return wrong


@pytest.mark.parametrize("values", ["prices", "years", "concentrations"])
def test_export_rejects_a_wrong_exit_for_values_of_any_size(
    values: str, backbone_folders: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean, spread = VALUES[values]
    checkpoint = regression(backbone_folders["bert"], tmp_path / "checkpoint", mean, spread)
    monkeypatch.setattr(loading, "split_segments", with_bias(mean / 1000))
    with pytest.raises(BerxitError, match=r"1 of 3 exits differ .*layer 03.*relative to .*Nothing was written"):
        export(checkpoint, "onnxruntime", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_bench_and_tune_check_relative_to_the_size_of_the_values(
    backbone_folders: dict, tmp_path: Path, quiet_machine: None
) -> None:
    checkpoint = regression(backbone_folders["bert"], tmp_path / "checkpoint", *VALUES["prices"])
    manifest = export(checkpoint, "onnxruntime", tmp_path / "bundle")
    result = bench(tmp_path / "bundle", threads=1, queries=1, seconds=0, thresholds=2)
    assert result.self_check <= manifest.parity.atol
    assert tune(tmp_path / "bundle", manifest, backend="onnxruntime", threads=1, seconds=0.01, accept_noise=True)
    golden = json.loads((tmp_path / "bundle" / "golden.json").read_text(encoding="utf-8"))
    golden["logits"][0][0][0] *= 1.001
    (tmp_path / "bundle" / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    written = json.loads((tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    written["golden"]["sha256"] = sha256(tmp_path / "bundle" / "golden.json")
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(BerxitError, match=r"on this device an exit differs from the checkpoint by"):
        bench(tmp_path / "bundle", threads=1, queries=1, seconds=0, thresholds=2)


def test_golden_outputs_keep_every_bit(backbone_folders: dict, tmp_path: Path) -> None:
    checkpoint = regression(backbone_folders["bert"], tmp_path / "checkpoint", *VALUES["concentrations"])
    manifest = export(checkpoint, "onnxruntime", tmp_path / "bundle")
    model, tokenizer = load_checkpoint(checkpoint)
    with torch.no_grad():
        expected = model(**as_tensors(tokenizer([TEXTS[0]]))).exit_logits[0].numpy()
    golden = np.array(read_golden(tmp_path / "bundle", manifest).logits[0])
    assert np.abs(golden).max() < 1e-4
    assert golden == pytest.approx(expected.astype(np.float64), rel=1e-4)
    assert EarlyExitRunner.load(tmp_path / "bundle").predict(TEXTS[0]).label == pytest.approx(expected[-1, 0], rel=1e-3)
