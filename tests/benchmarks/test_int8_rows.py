"""Comparison of int8 bundles, shortened: no prediction depends on its batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions

ROOT = Path(__file__).resolve().parents[2]


def test_int8_rows_reports_agreement_score_and_speed(
    checkpoint: Path, bundle: Path, data_folder: Path, tmp_path: Path
) -> None:
    export(checkpoint, "onnxruntime", tmp_path / "int8", options=ExportOptions(precision="int8"))
    arguments = [tmp_path / "int8", bundle, "--data", data_folder, "--threads", 1, "--rounds", 1, "--quiet"]
    done = subprocess.run(
        [sys.executable, "benchmarks/int8_rows.py", *map(str, arguments), "--output", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "int8-rows.json").read_text(encoding="utf-8"))
    assert [each["batch"] for each in found["agreement"]] == [1, 2, 8, 32, 408] * 2
    assert not any(each["exits_differ"] or each["labels_differ"] for each in found["agreement"])
    assert all(each["rows"] == 48 and each["margin"] > 1e-6 for each in found["agreement"])
    assert len(found["scores"]) == 2
    assert {each["case"] for each in found["speed"]} >= {"full depth, 16 tokens", "policy, one by one"}
    assert "first / last" in done.stdout
