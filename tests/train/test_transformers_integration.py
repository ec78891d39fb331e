"""A checkpoint works with transformers' pipeline, Auto classes and Trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from berxit.runtime import EarlyExitRunner
from berxit.train import MultiExitModel
from berxit.train.checkpoint import load_checkpoint
from berxit.train.encoding import as_tensors


def test_pipeline_predicts_what_the_runner_predicts_at_full_depth(checkpoint: Path, bundle: Path) -> None:
    classify = pipeline("text-classification", model=str(checkpoint), tokenizer=str(checkpoint))
    runner = EarlyExitRunner.load(bundle)
    for text in ("the cat sat", "a red dog ran", "play music"):
        (found,) = classify(text)
        expected = runner.predict(text, threshold=1.0)
        assert found["label"] == expected.label
        assert found["score"] == pytest.approx(expected.scores[str(expected.label)], abs=1e-5)


def test_auto_class_loads_the_multi_exit_model(checkpoint: Path) -> None:
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(str(checkpoint)), MultiExitModel)


def test_forward_with_labels_returns_the_joint_loss(checkpoint: Path) -> None:
    model, tokenizer = load_checkpoint(checkpoint)
    batch = as_tensors(tokenizer(["the cat sat", "a dog"]))
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        outputs = model(**batch, labels=labels)
    cross_entropy = sum(
        torch.nn.functional.cross_entropy(outputs.exit_logits[:, layer], labels) for layer in range(model.layers)
    )
    hits = (outputs.exit_logits.argmax(dim=-1) == labels[:, None]).float()
    lte = ((outputs.certainties - hits) ** 2).mean(dim=0).sum()
    assert outputs.loss.item() == pytest.approx((cross_entropy + lte).item(), rel=1e-5)
    assert torch.equal(outputs.logits, outputs.exit_logits[:, -1])


def test_forward_rejects_unknown_arguments(checkpoint: Path) -> None:
    model, _ = load_checkpoint(checkpoint)
    with pytest.raises(TypeError, match="inputs_embedding"):
        model(torch.tensor([[2, 3]]), inputs_embedding=None)
    with pytest.raises(ValueError, match="return_dict=False is not supported"):
        model(torch.tensor([[2, 3]]), return_dict=False)


def test_trainer_of_transformers_trains_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    model, _ = load_checkpoint(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
    rows = [{**tokenizer(text), "labels": label} for text, label in (("the cat sat", 0), ("a dog ran", 1)) * 4]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=8, per_device_train_batch_size=4, learning_rate=1e-3, report_to=[], use_cpu=True,
        save_strategy="no", logging_steps=1, seed=0,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
