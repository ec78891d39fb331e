"""Scores of an int8 bundle on the calibration data, in the manifest, and the threshold chosen from its outputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from berxit.exporters.bundle_scores import describe_scores
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import Manifest, Scores, read_manifest
from berxit.runtime.errors import InputError
from berxit.runtime.json_data import read_json, write_json
from berxit.runtime.metrics import METRICS
from berxit.train.calibration import PASS_FILE, TEXTS_FILE, calibrate, read_policy
from berxit.train.checkpoint import load_checkpoint
from berxit.train.evaluation import Predictions, layer_scores
from berxit.train.families import PolicySpec
from berxit.train.rules import Keep
from berxit.train.tasks import task_of

INT8 = ExportOptions(precision="int8")


@pytest.fixture
def calibrated(checkpoint: Path, data_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of a checkpoint and of its calibration data."""
    data = Path(shutil.copytree(data_folder, tmp_path / "data"))
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    calibrate(copy, data, spec=PolicySpec("confidence"), rule=Keep(0.9, optimistic=True))
    return copy, data


def exported(checkpoint: Path, options: ExportOptions = INT8, **more: Any) -> tuple[Manifest, list[str]]:
    lines: list[str] = []
    bundle = checkpoint.with_name("bundle")
    export(checkpoint, "onnxruntime", bundle, options=options, force=True, report=lines.append, **more)
    return read_manifest(bundle), lines


@pytest.mark.parametrize("exits", [(), (2,)])
def test_scores_equal_those_of_the_checkpoint_and_of_the_running_bundle(
    calibrated: tuple[Path, Path], exits: tuple[int, ...]
) -> None:
    checkpoint, data = calibrated
    manifest, lines = exported(checkpoint, ExportOptions(precision="int8", exits=exits))
    layers = (exits and (2, 3)) or (1, 2, 3)
    assert manifest.exits == layers
    expected = layer_scores(Predictions.load(checkpoint / PASS_FILE).select_exits(layers))
    scores = manifest.scores
    assert scores is not None
    assert scores.checkpoint == pytest.approx(expected)
    model, _ = load_checkpoint(checkpoint)
    examples = task_of(model.config).read(data, "dev")
    runner = EarlyExitRunner.load(checkpoint.with_name("bundle"), threads=1)
    for layer, score in zip(layers, scores.bundle, strict=True):
        answers = [runner.answer([text], runner.policy.at_depth(layer))[0] for text in examples.texts]
        labels = np.array([model.config.labels.index(str(answer.label)) for answer in answers])
        assert METRICS["accuracy"](labels, examples.labels) == pytest.approx(score)
    policy_layers = [runner.predict(str(text)).exit_layer for text in examples.texts]
    assert manifest.calibration is not None
    assert np.bincount(policy_layers, minlength=4)[1:].tolist() == list(manifest.calibration.histogram)
    assert any(line.startswith("int8 costs ") for line in lines)
    assert any(line.startswith("calibrated on the bundle's own outputs: confidence threshold") for line in lines)


def test_fp32_has_no_scores(calibrated: tuple[Path, Path]) -> None:
    manifest, lines = exported(calibrated[0], ExportOptions(precision="fp32"))
    assert manifest.scores is None
    assert not any("cost" in line for line in lines)


def _no_texts(checkpoint: Path, data: Path) -> None:
    (checkpoint / TEXTS_FILE).unlink()


def _texts_of_other_data(checkpoint: Path, data: Path) -> None:
    write_json({"data_sha256": "0", "texts": ["the cat"]}, checkpoint / TEXTS_FILE)


def _too_few_texts(checkpoint: Path, data: Path) -> None:
    stored = read_json(checkpoint / TEXTS_FILE)
    write_json({**stored, "texts": stored["texts"][1:]}, checkpoint / TEXTS_FILE)


def _no_pass(checkpoint: Path, data: Path) -> None:
    (checkpoint / PASS_FILE).unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_no_texts, "of dev.tsv: give that file with --data, or run berxit-calibrate again"),
        (_texts_of_other_data, "of dev.tsv: give that file with --data, or run berxit-calibrate again"),
        (_too_few_texts, "does not fit calibration_pass.npz: run berxit-calibrate again"),
        (_no_pass, "calibration_pass.npz is missing: rerun berxit-calibrate"),
    ],
)
def test_missing_calibration_data_gives_one_warning(
    calibrated: tuple[Path, Path], spoil: Callable[[Path, Path], None], reason: str
) -> None:
    spoil(*calibrated)
    manifest, lines = exported(calibrated[0])
    before = read_policy(calibrated[0])
    assert before is not None
    assert manifest.scores is None
    assert manifest.policy == before.policy
    (line,) = [line for line in lines if "not measured" in line]
    assert line.startswith("the cost of int8 was not measured, the thresholds are the checkpoint's: ")
    assert line.endswith(reason)


@pytest.mark.parametrize("folder", [True, False])
def test_export_reads_the_given_calibration_data(calibrated: tuple[Path, Path], folder: bool) -> None:
    checkpoint, data = calibrated
    stored, _ = exported(checkpoint)
    (checkpoint / TEXTS_FILE).unlink()
    named, lines = exported(checkpoint, data=data if folder else data / "dev.tsv")
    assert named.scores == stored.scores is not None
    assert not any("not measured" in line for line in lines)


def test_export_rejects_other_calibration_data(calibrated: tuple[Path, Path]) -> None:
    checkpoint, data = calibrated
    (data / "dev.tsv").write_text("text\tlabel\nthe cat\tcat\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"dev\.tsv is not the data that .* was calibrated on \(another sha"):
        exported(checkpoint, data=data)
    (data / "dev.tsv").unlink()
    with pytest.raises(InputError, match=r"no file .*dev\.tsv: --data is dev\.tsv, which .* was calibrated on"):
        exported(checkpoint, data=data)
    assert not checkpoint.with_name("bundle").exists()
    exported(checkpoint, data=data, scores=False)


def test_export_from_another_folder_measures_scores(
    calibrated: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, data = calibrated
    shutil.rmtree(data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    manifest, _ = exported(checkpoint)
    assert manifest.scores is not None
    assert manifest.scores.data == "dev.tsv"


def test_policy_of_older_version_names_its_data_without_folder(calibrated: tuple[Path, Path]) -> None:
    checkpoint, data = calibrated
    record = read_json(checkpoint / "exit_policy.json")
    record["calibration"]["data"] = str(data / "dev.tsv")
    write_json(record, checkpoint / "exit_policy.json")
    manifest, _ = exported(checkpoint, ExportOptions(precision="fp32"))
    assert manifest.calibration is not None
    assert manifest.calibration.data == "dev.tsv"


def test_no_scores_skips_the_measurement(calibrated: tuple[Path, Path]) -> None:
    manifest, lines = exported(calibrated[0], scores=False)
    assert manifest.scores is None
    assert not any("cost" in line for line in lines)


def test_describe_scores_counts_only_exits_that_the_policy_uses() -> None:
    scores = Scores("dev.tsv", 1000, "f1", (0.80, 0.85, 0.90), (0.70, 0.846, 0.91))
    assert scores.losses == pytest.approx((0.10, 0.004, -0.01))
    lines = describe_scores(scores, (1, 2, 3), (0, 7, 3), "int8")
    assert lines == (
        "int8 costs at most 0.40 points of f1 at an exit that the policy uses (layer 2), on the"
        " 1000 examples of dev.tsv"
    )
    assert describe_scores(scores, (1, 2, 3), (0, 0, 10), "int8").startswith(
        "int8 costs no f1 at any exit that the policy"
    )
    assert describe_scores(scores, (1, 2, 3), (1, 7, 2), "int8").endswith(
        ": more than 0.5, compare with another precision"
    )
