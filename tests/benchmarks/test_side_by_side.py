"""The comparison runs, compares the same thing, and tells bars that hold from those that do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from bars import Found, bars
from contenders import Case, Schedule, Shape, Spec
from whole_graph import write_whole_graph

from runtime import EarlyExitRunner, ExitPolicy

ROOT = Path(__file__).resolve().parents[2]
BASE = ExitPolicy.full_depth(3)


def schedule(*depths: int) -> Schedule:
    return Schedule(BASE.criterion, BASE.thresholds, BASE.temperatures, depths=depths)


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed: pip install 'berxit[openvino]'")
def test_the_quick_run_writes_what_it_measured(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/side_by_side.py", "--quick", "--quiet", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "side_by_side.json").read_text(encoding="utf-8"))
    assert found["rounds"] == 3
    assert all(len(series) == 3 and min(series) > 0 for series in found["times"].values())
    assert {"8 tokens | early | ours, ONNX Runtime fp32", "8 tokens | full | PyTorch eager"} <= set(found["times"])
    assert found["average_exit_layer"]["8 tokens | PyTorch eager"] == 2
    assert found["differs"]["one graph, OpenVINO fp32"] < 1e-5
    assert "bars hold" in (tmp_path / "side_by_side.md").read_text(encoding="utf-8")


def test_checkpoint_without_data_is_misuse(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/side_by_side.py", "--checkpoint", "ckpt", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--checkpoint and --data go together" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_joined_graph_answers_as_the_last_exit(bundle: Path, tmp_path: Path) -> None:
    write_whole_graph(bundle, tmp_path / "whole.onnx")
    session = ort.InferenceSession(str(tmp_path / "whole.onnx"), providers=["CPUExecutionProvider"])
    assert len(session.get_outputs()) == 1
    runner = EarlyExitRunner.load(bundle, threads=1)
    batch = runner.tokenizer(["the cat sat on the mat", "a dog"])
    state = runner.backend.embed(batch)
    for layer in (1, 2, 3):
        state, logits, _ = runner.backend.layer(layer, state)
    found = session.run(None, {i.name: getattr(batch, i.name) for i in session.get_inputs()})[0]
    np.testing.assert_allclose(found, logits, atol=1e-5)


def test_rows_leave_when_the_schedule_says() -> None:
    policy = schedule(3, 1, 2, 1)
    assert policy.exits(1, np.zeros(4)).tolist() == [False, True, False, True]
    assert policy.exits(2, np.zeros(2)).tolist() == [False, True]
    assert policy.exits(3, np.zeros(1)).tolist() == [True]


def test_flops_are_those_of_the_matrix_products() -> None:
    """One layer of d = 2, wide 8, 3 tokens: qkv and output 4 d^2, up and down 2 x 16, twice 3^2 x 2 of attention."""
    assert Shape(layers=1, hidden=2, wide=8, heads=1).flops(3) == 2 * 3 * (4 * 4 + 2 * 16) + 2 * 2 * 9 * 2


def test_bars_tell_what_holds() -> None:
    ours = Spec("segments", "ours, ONNX Runtime fp32", Path(), "fp32", True, ours=True)
    specs = [
        ours,
        *(
            Spec(kind, name, Path(), "fp32", name == "PyTorch eager")
            for kind, name in (
                ("onnxruntime", "one graph, ONNX Runtime fp32"),
                ("onnxruntime", "one graph, ONNX Runtime int8"),
                ("openvino", "one graph, OpenVINO fp32"),
                ("eager", "PyTorch eager"),
            )
        ),
    ]
    full = {ours.name: 10.5, specs[1].name: 10.0, specs[2].name: 6.0, specs[3].name: 9.0, "PyTorch eager": 30.0}
    times = {f"4 tokens | full | {name}": [ms, 2 * ms, ms] for name, ms in full.items()}
    times |= {
        f"4 tokens | early | {ours.name}": [7.0, 14.0, 7.0],
        "4 tokens | early | PyTorch eager": [21.0, 42.0, 21.0],
    }
    case = Case("4 tokens", ((1, 2, 3, 4),) * 3, ((0,) * 4,) * 3, schedule(1, 2, 3), 0, 1)
    memory = {ours.name: 120.0, specs[1].name: 100.0}
    made = bars(
        Found(3, times, memory, {}, {f"4 tokens | {ours.name}": 2.0}, {}),
        specs,
        {"4 tokens": case},
        Shape(3, 64, 256, 1),
    )
    told = {bar.what: (round(bar.found, 3), bar.holds) for bar in made}
    assert told == {
        "all segments / one graph, fp32": (1.05, True),
        "wall-clock speed-up / layer speed-up, fp32": (1.0, True),
        "eager early exit / ours, fp32": (3.0, True),
        "one int8 graph / ours, ONNX Runtime fp32, early exit": (0.857, False),
        "one graph, OpenVINO fp32 / ours, ONNX Runtime fp32, early exit": (1.286, False),
        "resident memory / one graph's, fp32": (1.2, False),
    }


def test_what_loses_score_claims_nothing() -> None:
    """The one contender of ours keeps 90%: it is four times as fast as any graph, and no bar holds by that."""
    ours = Spec("segments", "ours, ONNX Runtime fp32", Path(), "fp32", True, ours=True)
    graph = Spec("onnxruntime", "one graph, ONNX Runtime fp32", Path(), "fp32", False)
    int8 = Spec("onnxruntime", "one graph, ONNX Runtime int8", Path(), "int8", False)
    rival = Spec("openvino", "one graph, OpenVINO fp32", Path(), "fp32", False)
    times = {f"inputs | full | {spec.name}": [4.0] for spec in (ours, graph, int8, rival)}
    times[f"inputs | early | {ours.name}"] = [1.0]
    case = Case("inputs", ((1,),), ((0,),), BASE, 0, 1)
    scores = {f"{ours.name} | full": 0.8, f"{ours.name} | early": 0.72}
    found = Found(1, times, {ours.name: 1.0, graph.name: 1.0}, {}, {f"inputs | {ours.name}": 2.0}, scores)
    told = {
        bar.what: bar.holds for bar in bars(found, [ours, graph, int8, rival], {"inputs": case}, Shape(3, 64, 256, 1))
    }
    assert told["score kept, ours, ONNX Runtime fp32"] is False
    assert told["one int8 graph / ours, ONNX Runtime fp32, early exit (99% of the score not kept)"] is False
    assert told["one graph, OpenVINO fp32 / ours, ONNX Runtime fp32, early exit (99% of the score not kept)"] is False
