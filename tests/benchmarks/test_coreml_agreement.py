"""The agreement of a CoreML bundle with PyTorch: what is compared, what is counted, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("coremltools", reason="coremltools is not installed here: pip install 'berxit[coreml]'")

import numpy as np
from click.testing import CliRunner
from coreml_agreement import Gaps, command

from berxit.exporters import export as export_module
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime.errors import BerxitError


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("agreement")
    options = {"fp32": ExportOptions("fp32"), "ane": ExportOptions(layout="ane", exits=(2,), lengths=(16, 32))}
    for name, each in options.items():
        export(checkpoint, "coreml", folder / name, options=each)
    return {name: folder / name for name in options}


def test_bundles_are_held_against_pytorch_in_float64(
    bundles: dict[str, Path], checkpoint: Path, data_folder: Path, tmp_path: Path
) -> None:
    arguments = [
        checkpoint,
        bundles["fp32"],
        "--data",
        data_folder,
        "--limit",
        "12",
        "--output",
        tmp_path / "found.json",
    ]
    result = CliRunner().invoke(command, [str(each) for each in arguments], catch_exceptions=False)
    assert "12 of 12 rows agree (100.00%)" in result.output
    (found,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert (found["rows"], found["same"], found["precision"], found["differ"]) == (12, 12, "fp32", [])
    assert [gap["layer"] for gap in found["layers"]] == [0, 1, 2, 3]
    for gap, torch in zip(found["layers"], found["pytorch_float32"], strict=True):
        assert 0 < gap["hidden_mean"] < gap["hidden_max"] <= 1e-5
        assert 0 < torch["hidden_max"] <= 1e-5
        assert gap["hidden_relative"] <= gap["hidden_max"]
    assert found["average_exit_layer"] == found["expected_average_exit_layer"]


def test_a_bundle_with_fewer_exits_is_compared_at_those(
    bundles: dict[str, Path], checkpoint: Path, data_folder: Path, tmp_path: Path
) -> None:
    arguments = [checkpoint, bundles["ane"], "--data", data_folder, "--limit", "4", "--output", tmp_path / "found.json"]
    CliRunner().invoke(command, [str(each) for each in arguments], catch_exceptions=False)
    (found,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [gap["layer"] for gap in found["layers"]] == [0, 2, 3]
    assert all(1e-4 < gap["hidden_max"] <= 2e-2 for gap in found["layers"])
    assert found["average_exit_layer"] >= 2


def test_rows_that_answer_otherwise_are_named_and_fail(
    checkpoint: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from berxit.exporters.coreml import target as coreml
    from berxit.exporters.segments import Segments, cut
    from berxit.train.modeling import MultiExitModel

    def reversed_classes(model: MultiExitModel) -> Segments:
        segments = cut(model)
        for segment in segments.layers:
            weights = segment.exit.classifier.weight
            weights[:] = weights[:, ::-1].copy()
            segment.exit.classifier.bias[:] = segment.exit.classifier.bias[::-1].copy()
        return segments

    monkeypatch.setattr(export_module, "cut", reversed_classes)
    monkeypatch.setitem(coreml.PRECISIONS, "fp32", 100.0)
    monkeypatch.setitem(coreml.LEAST_PSNR, "fp32", -100.0)
    export(checkpoint, "coreml", tmp_path / "wrong", options=ExportOptions("fp32"))
    arguments = [checkpoint, tmp_path / "wrong", "--data", data_folder, "--limit", "4", "--output", tmp_path / "found"]
    result = CliRunner().invoke(command, [str(each) for each in arguments])
    assert isinstance(result.exception, BerxitError)
    assert "only 0.00% of the rows agree" in str(result.exception)
    assert "row 3: another answer; a certainty was" in result.output
    (found,) = json.loads((tmp_path / "found").read_text(encoding="utf-8"))
    assert [each["row"] for each in found["differ"]] == [0, 1, 2, 3]


def test_gaps_are_the_largest_and_the_mean_over_rows() -> None:
    gaps = Gaps((0, 2))
    zero, four = np.zeros((2, 3)), np.full((2, 3), 4.0)
    gaps.add([zero, four + 0.4], [zero, four], [0.0, 0.25])
    gaps.add([zero + 0.1, four], [zero, four], [0.0, 0.5])
    first, second = gaps.summary()
    assert (first.layer, second.layer) == (0, 2)
    assert (first.hidden_max, first.hidden_mean) == pytest.approx((0.1, 0.05))
    assert (second.hidden_max, second.hidden_mean, second.hidden_relative) == pytest.approx((0.4, 0.2, 0.1))
    assert (second.hidden_largest_value, second.heads_max) == (4.0, 0.5)
