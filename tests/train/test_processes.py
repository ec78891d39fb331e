"""Training in several processes: torchrun over gloo, two of them on this machine's CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def berxit_train(*arguments: str, processes: int = 1) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "toolkit", "train", *arguments, "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("checkpoint: ") == 1  # one of the processes speaks


def losses(logs: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.value for event in EventAccumulator(str(logs)).Reload().Scalars("train/loss")]


def test_two_processes_learn_what_one_does(still: str, data_folder: Path, tmp_path: Path) -> None:
    """Alternating with LTE: odd steps do not reach the other exits, and the processes must not wait for them."""
    from safetensors.torch import load_file

    common = ["--model", still, "--task", "custom", "--data", str(data_folder), "--max-length", "16", "--epochs", "2"]
    for name, processes, batch in (("one", 1, "16"), ("two", 2, "8")):
        places = ["--output", str(tmp_path / name), "--tensorboard", str(tmp_path / f"{name}-logs")]
        berxit_train(*common, *places, "--learning-rate", "1e-3", "--batch-size", batch, processes=processes)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-4
    curves = [losses(tmp_path / f"{name}-logs") for name in ("one", "two")]
    assert len(curves[0]) == 12
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) <= 1e-4
    records = [json.loads((tmp_path / name / "training.json").read_text(encoding="utf-8")) for name in ("one", "two")]
    assert records[0]["steps"] == records[1]["steps"] == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one-logs", "two", "two-logs"]
