"""Calibration on data without labels: accepted by rules that need none, and carried through to an int8 bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime import InputError
from berxit.train.calibration import calibrate, read_policy, stored_pass
from berxit.train.rules import Keep, Risk


@pytest.fixture
def texts(data_folder: Path, tmp_path: Path) -> Path:
    lines = (data_folder / "dev.tsv").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "texts.tsv"
    path.write_text("\n".join(line.split("\t")[0] for line in lines) + "\n", encoding="utf-8")
    return path


def test_risk_without_labels_chooses_the_threshold_that_it_chooses_with_them(
    copy: Path, data_folder: Path, texts: Path
) -> None:
    labelled = calibrate(copy, data_folder, rule=Risk(0.1))
    found = calibrate(copy, texts, rule=Risk(0.1))
    assert (found.threshold, found.histogram) == (labelled.threshold, labelled.histogram)
    assert found.unlabelled and not labelled.unlabelled
    assert found.full_depth_score == 1
    assert f"accuracy {found.score:.4f} with full depth's predictions as labels" in found.summary()


def test_pass_without_labels_is_read_as_it_was_written(copy: Path, texts: Path) -> None:
    calibrate(copy, texts, rule=Risk(0.1))
    calibrated = read_policy(copy)
    assert calibrated is not None and calibrated.calibration.unlabelled
    predictions = stored_pass(copy, calibrated)
    assert predictions.unlabelled and np.array_equal(predictions.labels, predictions.full_depth)


def test_int8_export_of_a_calibration_without_labels_chooses_the_threshold_again(
    copy: Path, texts: Path, tmp_path: Path
) -> None:
    calibrate(copy, texts, rule=Risk(0.1))
    manifest = export(copy, "onnxruntime", tmp_path / "bundle", options=ExportOptions(precision="int8"))
    assert manifest.calibration is not None and manifest.calibration.unlabelled
    assert manifest.scores is not None and manifest.scores.examples == 48


@pytest.mark.parametrize("rule", [Keep(0.9), Risk(0.1, of="label-error"), Risk(0.5, of="misses:cat")])
def test_rules_that_need_labels_reject_data_without_them(copy: Path, texts: Path, rule: Keep | Risk) -> None:
    before = read_policy(copy)
    with pytest.raises(InputError, match="no column 'label'"):
        calibrate(copy, texts, rule=rule)
    assert read_policy(copy) == before


def test_bad_rows_of_a_file_without_labels_are_named_or_skipped(copy: Path, texts: Path) -> None:
    rows = [{"text": text} for text in texts.read_text(encoding="utf-8").splitlines()[1:]]
    bad = texts.with_suffix(".jsonl")
    bad.write_text("\n".join(map(json.dumps, [*rows, {"text": " "}])) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"texts\.jsonl, line 49"):
        calibrate(copy, bad, rule=Risk(0.1))
    lines: list[str] = []
    calibrate(copy, bad, rule=Risk(0.1), skip_bad_rows=True, report=lines.append)
    assert len(lines) == 1 and lines[0].startswith("skipped 1 bad row")
