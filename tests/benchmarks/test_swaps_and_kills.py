"""Stress tests of swaps and kills, shortened: no mixed predictions, lost artifacts or remaining scratch files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def campaign(*arguments: object) -> dict:
    output = Path(str(arguments[-1]))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict = json.loads(next(output.glob("*.json")).read_text(encoding="utf-8"))
    return found


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime:shared-pool", "openvino"])
def test_swaps_mixes_no_prediction(bundle: Path, tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed here: pip install 'berxit[openvino]'")
    short = ["--swaps", 15, "--minutes", 0.5, "--backend", backend, "--quiet", "--output", tmp_path]
    ways = ["--way", "link", "--way", "force"]
    found = campaign("benchmarks/swaps.py", bundle, *ways, *short)
    assert len(found["cases"]) == 4
    assert all(case["swaps"] >= 15 and case["predictions"] and not case["mixed"] for case in found["cases"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_kills_lose_nothing(backbone_folders: dict[str, Path], data_folder: Path, tmp_path: Path) -> None:
    short = ["--kills", 10, "--minutes", 2, "--quiet", "--output", tmp_path]
    found = campaign("benchmarks/kills.py", backbone_folders["bert"], data_folder, *short)
    assert sum(case["kills"] for case in found["cases"]) >= 5
    assert all(case["finished"] == case["kills"] for case in found["cases"])
