"""Command of the side-by-side benchmark: results, scores, errors and the imports of a contender's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.side_by_side.command import command
from benchmarks.side_by_side.contenders import Spec
from berxit.runtime.bundle import Manifest

ROOT = Path(__file__).resolve().parents[3]
GRAPHS = ("ONNX Runtime fp32", "ONNX Runtime int8", "OpenVINO int8")

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install -e '.[openvino]'"
)


def side_by_side(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.side_by_side", "--quiet", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def result(output: Path) -> dict[str, Any]:
    assert {path.name for path in output.iterdir()} == {f"side_by_side.{kind}" for kind in ("json", "md", "png")}
    return json.loads((output / "side_by_side.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@needs_openvino
def test_quick_run_writes_results(tmp_path: Path) -> None:
    done = side_by_side("--quick", "--threads", "1", "--no-memory", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = result(tmp_path / "out")
    [run] = found["runs"]
    assert run["rounds"] == 3
    assert all(len(series) == 3 and min(series) > 0 for series in run["times"].values())
    assert {"8 tokens | early | ours, ONNX Runtime fp32", "8 tokens | full | PyTorch eager"} <= set(run["times"])
    assert run["average_exit_layer"]["8 tokens | PyTorch eager"] == 2
    assert run["ways"]["8 tokens | matrix products alone, int8"]
    assert found["differs"]["one graph, OpenVINO fp32"] < 1e-5
    assert 0 < found["differs"]["one graph, OpenVINO int8"] < 1
    assert "bars hold" in (tmp_path / "out" / "side_by_side.md").read_text(encoding="utf-8")


@needs_openvino
@pytest.mark.slow
def test_run_with_data_scores_all_rows(
    checkpoint: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs only one contender of each kind, because each needs a process."""
    from benchmarks.side_by_side import prepare

    some = ("ours, ONNX Runtime fp32", "ours, ONNX Runtime int8", *(f"one graph, {each}" for each in GRAPHS))
    everything = prepare.prepare

    def prepare_some(*arguments: Any) -> tuple[Manifest, list[Spec]]:
        manifest, specs = everything(*arguments)
        return manifest, [spec for spec in specs if spec.name in some]

    monkeypatch.setattr(prepare, "prepare", prepare_some)
    header, *lines = (data_folder / "dev.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [lines[i] for start in range(0, len(lines), 4) for i in (start, start + 2, start + 1, start + 3)]
    data = tmp_path / "data"  # both halves of the rows must contain both classes
    data.mkdir()
    (data / "dev.tsv").write_text("\n".join([header, *pairs]) + "\n", encoding="utf-8")
    arguments = ["--checkpoint", checkpoint, "--data", data, "--threads", 1, "--seconds", 0, "--quiet"]
    command.main([*map(str, arguments), "--output", str(tmp_path / "out")], standalone_mode=False)
    found = result(tmp_path / "out")
    ours = found["scores"][some[0]]
    assert sum(ours["leaving"]) == 48
    assert ours["by_exit"][-1] == ours["full"] == found["scores"]["one graph, ONNX Runtime fp32"]["full"]
    assert found["scores"]["one graph, ONNX Runtime fp32"]["early"] is None
    assert {bar["what"] for bar in found["bars"]} >= {
        "points that int8 loses at an exit in use",
        "score kept, on rows that calibration has not seen",
    }
    held = found["memory_mib"][some[0]]
    assert list(held) == ["loaded", "after inputs of 8 to 32 tokens", "after batches of 32, 8 to 32 tokens"]
    assert all(mib > 10 for mib in held.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "ckpt"), "scores need both --checkpoint and --data"),
        (("--threads", "two"), "--threads two: give comma-separated numbers"),
        (("--hidden", "100"), "--hidden 100: it must be a multiple of 64"),
    ],
)
def test_wrong_options_are_rejected_without_output(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = side_by_side(*arguments, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_contender_process_imports_only_its_library() -> None:
    code = "import benchmarks.side_by_side.__main__, sys; print([m for m in ('torch', 'onnx', 'onnxruntime',"
    code += " 'openvino', 'transformers', 'matplotlib') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
