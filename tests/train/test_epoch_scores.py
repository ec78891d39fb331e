"""Scores after every epoch, early stopping, and both across an interruption."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest import MonkeyPatch
from safetensors.torch import load_file
from test_fine_tuning import interrupt

from berxit.train.checkpoint import load_checkpoint
from berxit.train.epoch_scores import EpochScore, EpochScores
from berxit.train.evaluation import layer_scores, predict
from berxit.train.fine_tuning import TrainingOptions, fine_tune
from berxit.train.tasks import Task, custom_task


@pytest.fixture
def task(data_folder: Path) -> Task:
    return custom_task(data_folder, ("text",), "label")


@pytest.fixture
def options(still: str) -> TrainingOptions:
    return TrainingOptions(
        still, epochs=6, batch_size=16, learning_rate=1e-3, max_length=16, limit_train=32, early_stopping=2
    )


def record_of(output: Path) -> dict:
    return json.loads((output / "training.json").read_text(encoding="utf-8"))


@pytest.fixture
def weights(monkeypatch: MonkeyPatch) -> dict[int, dict[str, torch.Tensor]]:
    """Step -> weights at the end of an epoch, whose mean scores are 0.5, 0.7, 0.6, 0.65, 0.7, 0.9."""
    found: dict[int, dict[str, torch.Tensor]] = {}

    def score(self: EpochScores, step: int) -> EpochScore:
        found[step] = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        mean = (0.5, 0.7, 0.6, 0.65, 0.7, 0.9)[step // 2 - 1]
        return EpochScore(step, step / 2, (mean, mean, mean), mean)

    monkeypatch.setattr(EpochScores, "_score", score)
    return found


def test_early_stopping_keeps_the_weights_of_the_best_epoch(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, weights: dict
) -> None:
    lines: list[str] = []
    output = fine_tune(task, data_folder, options, tmp_path / "output", report=lines.append)
    assert list(weights) == [2, 4, 6, 8]
    trained = load_file(output / "model.safetensors")
    assert all(torch.equal(tensor, weights[4][name]) for name, tensor in trained.items())
    assert not all(torch.equal(tensor, weights[8][name]) for name, tensor in trained.items())
    assert lines[-1] == "no better score in 2 epochs: the weights of epoch 2 are kept, accuracy 0.7000"
    record = record_of(output)
    assert (record["train_examples"], record["stopping_examples"], record["steps"]) == (29, 3, 8)
    assert [each["mean"] for each in record["scores"][0]] == [0.5, 0.7, 0.6, 0.65]


@pytest.mark.parametrize("step", [3, 5, 8])
def test_early_stopping_continues_after_an_interruption(
    step: int,
    task: Task,
    options: TrainingOptions,
    data_folder: Path,
    tmp_path: Path,
    weights: dict,
    monkeypatch: MonkeyPatch,
) -> None:
    output = tmp_path / "output"
    interrupt(monkeypatch, task, data_folder, options, output, step=step)
    before = {name: tensor for name, tensor in weights.items() if name < step}
    lines: list[str] = []
    fine_tune(task, data_folder, options, output, report=lines.append)
    resumed = (step - 1) // 2 * 2
    assert [line for line in lines if re.match(rf"resuming at step {resumed}, after \d+ s of training", line)]
    expected = {**weights, **before}[4]
    trained = load_file(output / "model.safetensors")
    assert max((trained[name] - expected[name]).abs().max().item() for name in trained) <= 1e-6
    assert [each["mean"] for each in record_of(output)["scores"][0]] == [0.5, 0.7, 0.6, 0.65]


def test_scores_are_those_of_an_evaluation_and_do_not_change_the_training(
    backbone_folders: dict[str, Path], task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    """With dropout: scoring must draw no random number."""
    options = replace(options, model=str(backbone_folders["bert"]), early_stopping=None, epochs=2)
    lines: list[str] = []
    scored = fine_tune(task, data_folder, options, tmp_path / "scored", report=lines.append)
    options = replace(options, dev_fraction=0)
    plain = fine_tune(task, data_folder / "train.tsv", options, tmp_path / "plain")
    one, other = (load_file(output / "model.safetensors") for output in (scored, plain))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    model, tokenizer = load_checkpoint(scored)
    expected = layer_scores(predict(model, tokenizer, task.read(data_folder, "dev")))
    last = record_of(scored)["scores"][0][-1]
    assert last["exits"] == pytest.approx(expected)
    assert last["mean"] == pytest.approx(sum(expected) / 3)
    full, mean = f"{expected[-1]:.4f}", f"{last['mean']:.4f}"
    assert lines[-1] == f"epoch 2 of 2: accuracy on dev {full} at full depth, {mean} on average over exits 1 to 3"
    assert record_of(plain)["scores"] == [[]]


@pytest.mark.parametrize(
    ("strategy", "stages"), [("raw", ["at full depth"]), ("two-stage", ["at full depth", "over exits 1 to 2"])]
)
def test_score_of_a_stage_is_that_of_the_exits_that_it_trains(
    strategy: str, stages: list[str], task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    options = replace(options, strategy=strategy, early_stopping=None, epochs=1)
    lines: list[str] = []
    output = fine_tune(task, data_folder, options, tmp_path / "output", report=lines.append)
    shown = [line for line in lines if line.startswith("epoch 1 of 1")]
    assert [line.endswith(end) for line, end in zip(shown, stages, strict=True)] == [True] * len(stages)
    first = record_of(output)["scores"][0][0]
    assert first["mean"] == first["exits"][-1]
    if len(stages) > 1:
        second = record_of(output)["scores"][1][0]
        assert second["mean"] == pytest.approx(sum(second["exits"][:-1]) / 2)
