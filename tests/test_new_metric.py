"""A new metric is one entry in METRICS: training, evaluation, calibration, export and the bench accept it."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from berxit.runtime.bundle import read_manifest
from berxit.runtime.metrics import METRICS, Metric
from berxit.toolkit.cli import load


def balanced_accuracy(predictions: npt.NDArray, labels: npt.NDArray) -> npt.NDArray:
    """Mean recall of the classes."""
    return np.mean([(predictions[:, labels == label] == label).mean(axis=1) for label in np.unique(labels)], axis=0)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metric]:
    metric = Metric("balanced-accuracy", "mean recall of the classes", balanced_accuracy, second="accuracy")
    command = importlib.import_module("berxit.toolkit.commands.train")
    with monkeypatch.context() as patched:
        patched.setitem(METRICS, metric.name, metric)
        importlib.reload(command)  # Its help lists the registry.
        yield metric
    importlib.reload(command)


@pytest.fixture
def scored(checkpoint: Path, toy: Metric, tmp_path: Path) -> Path:
    """The checkpoint, as if it had been trained with ``--metric balanced-accuracy``."""
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "metric": toy.name}), encoding="utf-8")
    return copy


def invoke(command: str, *arguments: str | Path) -> Result:
    done = CliRunner().invoke(load(command), [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_commands_accept_a_new_metric(scored: Path, data_folder: Path, toy: Metric, tmp_path: Path) -> None:
    assert toy.name in "".join(invoke("train", "--help").output.split())  # lines may break at the hyphen
    evaluated = invoke("eval", scored, "--data", data_folder, "--quiet").output
    assert toy.name in evaluated
    assert "accuracy" in evaluated.replace(toy.name, "")
    assert toy.name in invoke("calibrate", scored, "--data", data_folder, "--quiet").output
    invoke("export", scored, "--target", "onnxruntime", "--output", tmp_path / "bundle", "--quiet")
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.calibration is not None
    assert (manifest.model.metric, manifest.calibration.metric, manifest.model.positive) == (toy.name, toy.name, None)
    short = ["--queries", "1", "--seconds", "0", "--thresholds", "1", "--output", tmp_path / "bench", "--quiet"]
    assert toy.name in invoke("bench", tmp_path / "bundle", "--data", data_folder, *short).output
