"""Training in two processes on the CPU (gloo), started by torchrun and by accelerate launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from berxit.runtime.console import status_of
from berxit.toolkit.cli import load

ROOT = Path(__file__).parents[2]


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"],
}
"""Launcher -> command line that starts two processes, on the CPU if there is no GPU."""


def train_in_two(launcher: str, *arguments: str) -> None:
    command = [sys.executable, *LAUNCHERS[launcher], "-m", "berxit.toolkit", "train", *arguments, "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("checkpoint: ") == 1  # Only one of the processes prints.


def losses(logs: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.value for event in EventAccumulator(str(logs)).Reload().Scalars("train/loss")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "launcher", "stages"), [("alternating", "torchrun", [""]), ("two-stage", "accelerate", ["1", "2"])]
)
def test_two_processes_train_the_same_weights_as_one(
    strategy: str, launcher: str, stages: list[str], still: str, data_folder: Path, tmp_path: Path
) -> None:
    """With LTE. Odd steps of alternating, and both stages of two-stage, train only some exits; the processes must
    not wait for gradients of the others."""
    from safetensors.torch import load_file

    common = ["--model", still, "--task", "custom", "--data", str(data_folder), "--max-length", "16", "--epochs", "2"]
    common += ["--learning-rate", "1e-3", "--strategy", strategy]

    def outputs(name: str, batch: str) -> list[str]:
        folders = ["--output", str(tmp_path / name), "--tensorboard", str(tmp_path / f"{name}-logs")]
        return [*folders, "--batch-size", batch]

    assert status_of(load("train"), [*common, *outputs("one", "16"), "--quiet"]) == 0
    train_in_two(launcher, *common, *outputs("two", "8"))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-4
    for stage in stages:
        folder = f"stage-{stage}" if stage else ""
        curves = [losses(tmp_path / f"{name}-logs" / folder) for name in ("one", "two")]
        assert len(curves[0]) == 12
        assert max(abs(a - b) for a, b in zip(*curves, strict=True)) <= 1e-4
    records = [json.loads((tmp_path / name / "training.json").read_text(encoding="utf-8")) for name in ("one", "two")]
    assert records[0]["steps"] == records[1]["steps"] == 12 * len(stages)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one-logs", "two", "two-logs"]
