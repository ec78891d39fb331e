"""Training that continues from a checkpoint of this project."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_export import checkpoint_of

from berxit.runtime.errors import InputError
from berxit.train.calibration import calibrate
from berxit.train.checkpoint import load_checkpoint
from berxit.train.fine_tuning import fine_tune, start_model
from berxit.train.modeling import MultiExitModel
from berxit.train.options import TrainingOptions
from berxit.train.tasks import Task, custom_task

TOKENS = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


@pytest.fixture
def options(checkpoint: Path) -> TrainingOptions:
    """Options that keep everything of ``checkpoint``."""
    return TrainingOptions(str(checkpoint), pooling="mean", max_length=32)


@pytest.fixture
def task(data_folder: Path) -> Task:
    return custom_task(data_folder, ("text",), "label")


@pytest.fixture
def before(checkpoint: Path) -> MultiExitModel:
    return load_checkpoint(checkpoint)[0]


def started(task: Task, options: TrainingOptions, mean_label: float | None = None) -> tuple[MultiExitModel, str]:
    lines: list[str] = []
    return start_model(task, options, lines.append, mean_label)[0].eval(), lines[0]


def equal_encoders(one: MultiExitModel, other: MultiExitModel, layers: int = 3) -> bool:
    weights = one.backbone.state_dict()
    kept = {name: value for name, value in other.backbone.state_dict().items() if f"layer.{layers}." not in name}
    return all(torch.equal(value, weights[name]) for name, value in kept.items())


@torch.no_grad()
def test_start_model_keeps_encoder_heads_and_lte_of_a_checkpoint(
    task: Task, options: TrainingOptions, before: MultiExitModel
) -> None:
    model, line = started(task, options)
    expected, found = before(**TOKENS), model(**TOKENS)
    assert torch.allclose(found.exit_logits, expected.exit_logits, atol=1e-6)  # the last bits depend on alignment
    assert torch.allclose(found.certainties, expected.certainties, atol=1e-6)
    assert line == "continues from checkpoint: encoder, 3 exit heads, LTE"


@torch.no_grad()
def test_start_model_reorders_the_heads_of_a_checkpoint_by_label(
    task: Task, options: TrainingOptions, before: MultiExitModel
) -> None:
    model, _ = started(replace(task, labels=task.labels[::-1]), options)
    assert model.config.labels == before.config.labels[::-1]
    assert torch.allclose(model(**TOKENS).exit_logits, before(**TOKENS).exit_logits.flip(-1), atol=1e-6)


def test_start_model_keeps_the_pooling_and_the_norms_of_a_pre_norm_encoder(
    task: Task, options: TrainingOptions, backbone_folders: dict, tmp_path: Path
) -> None:
    before = load_checkpoint(checkpoint_of(backbone_folders["modernbert"], tmp_path / "before"))[0]
    model, line = started(task, replace(options, model=str(tmp_path / "before"), pooling=None))
    assert model.config.pooling == before.config.pooling == "mean"
    assert "new exit heads" in line
    for old, new in zip(before.heads, model.heads, strict=True):
        assert torch.equal(old.norm.weight, new.norm.weight)


@pytest.mark.parametrize(
    ("changes", "labels", "reason"),
    [
        ({}, ("cat", "dog", "other"), "its labels are cat, other"),
        ({}, (), "its kind is classification"),
        ({"pooling": "first"}, None, "its --pooling is mean"),
        ({"exit_head": "pooler"}, None, "its --exit-head is linear"),
    ],
    ids=["labels", "regression", "pooling", "head"],
)
def test_start_model_has_new_heads_if_those_of_the_checkpoint_do_not_fit(
    changes: dict[str, str],
    labels: tuple[str, ...] | None,
    reason: str,
    task: Task,
    options: TrainingOptions,
    before: MultiExitModel,
) -> None:
    if labels is not None:
        kind = "classification" if labels else "regression"
        task = replace(task, labels=labels, metric="accuracy" if labels else "spearman", kind=kind)
    model, line = started(task, replace(options, **changes), None if labels != () else 3.5)
    assert equal_encoders(model, before)
    assert line == f"continues from checkpoint: encoder; new exit heads, because {reason}"
    assert model.lte is not None and before.lte is not None
    assert not torch.equal(model.lte.weight, before.lte.weight)
    if labels == ():
        assert [head.classifier.bias.item() for head in model.heads] == [3.5] * 3


def test_start_model_uses_the_first_layers_of_a_checkpoint(
    task: Task, options: TrainingOptions, before: MultiExitModel
) -> None:
    model, line = started(task, replace(options, layers=2, lte=False))
    assert (model.layers, model.lte) == (2, None)
    assert equal_encoders(model, before.first_layers(2), layers=2)
    assert line == "continues from checkpoint: encoder, 2 exit heads"
    with pytest.raises(InputError, match="--layers 4 is more than the 3 of"):
        started(task, replace(options, layers=4))


def test_fine_tune_continues_from_a_checkpoint_for_another_task(
    checkpoint: Path, data_folder: Path, task: Task, options: TrainingOptions, tmp_path: Path
) -> None:
    """A calibration of the first checkpoint does not change the run that continues from it."""
    first, second = Path(shutil.copytree(checkpoint, tmp_path / "first")), tmp_path / "second"
    brief = replace(options, model=str(first), max_steps=2)

    def train() -> list[str]:
        lines: list[str] = []
        fine_tune(task, data_folder, brief, second, report=lines.append)
        return lines

    assert train()[0].startswith("continues from first: encoder, 3 exit heads")
    (first / "exit_policy.json").unlink()
    calibrate(first, data_folder)
    assert any("is finished" in line for line in train())


def test_pooler_heads_of_a_checkpoint_keep_their_dense_layers_for_other_labels(
    still: str, task: Task, data_folder: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    options = TrainingOptions(still, exit_head="pooler", max_steps=1, max_length=32)
    fine_tune(task, data_folder, options, first)
    model, _ = started(replace(task, labels=("a", "b", "c")), replace(options, model=str(first)))
    for old, new in zip(load_checkpoint(first)[0].heads, model.heads, strict=True):
        assert torch.equal(old.pooler.weight, new.pooler.weight)
