"""GPU check without a GPU: its error message, and its parts on the CPU, with function calls instead of CUDA graphs."""

from __future__ import annotations

import json
from pathlib import Path

import gpu_check
import pytest
from conftest import tiny_backbone
from cuda_graph_loop import WARM_UP, Work, exit_loop_cost
from gpu_check import NOTHING_HERE, Part, attempted, export_in, gpu_name, measured, random_encoder, train

from berxit.runtime.backends import BACKENDS
from berxit.runtime.console import status_of
from berxit.runtime.errors import BerxitError
from berxit.train.modeling import MultiExitModel


@pytest.fixture
def model(tmp_path: Path) -> MultiExitModel:
    tiny_backbone("bert").save_pretrained(tmp_path)
    return MultiExitModel.from_backbone(tmp_path, num_labels=3, lte=False, max_length=32).eval()


def test_gpu_check_without_gpu_fails_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gpu_check, "gpu_name", lambda: "")
    assert status_of(gpu_check.command, ["--output", str(tmp_path / "found")]) == 1
    assert capsys.readouterr().err.strip() == f"error: {NOTHING_HERE}"
    assert not (tmp_path / "found").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graph_loop_outputs_equal_model(dtype: str, model: MultiExitModel) -> None:
    waits: list[None] = []

    def again(work: Work) -> Work:
        return work

    cost = exit_loop_cost(model, "cpu", dtype, 8, 3, again, lambda: waits.append(None))
    assert cost.max_diff <= (1e-5 if dtype == "float32" else 0.2)
    assert list(cost.ms_by_exit_layer) == [1, 2, 3]
    assert min(cost.ms_by_exit_layer.values()) > 0
    assert len(waits) == 3 + (WARM_UP + 3) * (1 + 2 + 3 + 1)  # once per exit, and once in the run without exits
    assert "us per layer, including" in str(cost)


def test_exit_loop_cost_rejects_wrong_outputs(model: MultiExitModel) -> None:
    with pytest.raises(BerxitError, match="differs from the model's forward pass"):
        exit_loop_cost(model, "cpu", "float32", 8, 1, lambda work: lambda: None, lambda: None)


def test_attempted_records_exceptions() -> None:
    def fails() -> tuple:
        raise RuntimeError("CUDA error: no kernel image\nmore")

    assert attempted("it", lambda: ("fine", {"a": 1})).ran
    part = attempted("it", fails)
    assert (part.ran, part.said) == (False, "RuntimeError: CUDA error: no kernel image")


def test_gpu_check_trains_exports_and_runs_every_backend(tmp_path: Path) -> None:
    if gpu_name():
        pytest.skip("there is a GPU: run benchmarks/gpu_check.py")
    encoder = random_encoder(tmp_path / "encoder", 2, 64)
    said, record = train(encoder, tmp_path / "checkpoint")
    assert said.startswith("on cpu")
    assert record["steps"] == gpu_check.STEPS
    said, _ = export_in("fp16", tmp_path / "checkpoint", tmp_path)
    assert "on ONNX Runtime on the CPU" in said
    parts = [
        attempted(chosen.label, lambda c=chosen: measured(tmp_path / "fp16", c, 1))
        for info in BACKENDS["tensorrt"]
        for chosen in info.variants()
    ]
    assert not any(part.ran for part in parts)
    assert all(part.said for part in parts)
    assert not any(part.said.startswith("RuntimeError") for part in parts)


def test_write_creates_report(tmp_path: Path) -> None:
    parts = [Part("one", True, "fine", {"ms": 1.5}, 0.1), Part("two", False, "no | TensorRT", {}, 0.0)]
    files = gpu_check.write({"gpu": "H", "model": "m", "versions": {"torch": "2"}}, parts, tmp_path / "new")
    found = json.loads(files[0].read_text(encoding="utf-8"))
    assert [part["ran"] for part in found["parts"]] == [True, False]
    assert found["parts"][0]["found"] == {"ms": 1.5}
    text = files[1].read_text(encoding="utf-8")
    assert text.startswith("H; m; torch 2")
    assert "did not run | no / TensorRT" in text
