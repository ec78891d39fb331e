"""A new encoder family is one adapter and one entry in ADAPTERS: training, export and the runner accept it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import tiny_config
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from berxit.exporters.export import export
from berxit.runtime import EarlyExitRunner
from berxit.train.backbones import ADAPTERS
from berxit.train.backbones.bert import BertAdapter
from berxit.train.calibration import calibrate
from berxit.train.checkpoint import load_checkpoint
from berxit.train.encoding import as_tensors
from berxit.train.fine_tuning import TrainingOptions, fine_tune
from berxit.train.rules import Keep
from berxit.train.tasks import custom_task


class ToyConfig(BertConfig):
    model_type = "toy-bert"


class ToyModel(BertModel):
    config_class = ToyConfig


class ToyAdapter(BertAdapter):
    """BERT's parameters under another model type, with the relu activation only."""

    implemented: ClassVar = {**BertAdapter.implemented, "hidden_act": ("relu",)}

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config
        self.hidden_size, self.layers = config.hidden_size, config.num_hidden_layers


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tokenizer_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The new family, registered; the folder of a random model of it."""
    monkeypatch.setitem(ADAPTERS, ToyConfig.model_type, ToyAdapter)
    AutoConfig.register(ToyConfig.model_type, ToyConfig)
    AutoModel.register(ToyConfig, ToyModel)
    torch.manual_seed(0)
    config = ToyConfig(
        **{**tiny_config("bert").to_diff_dict(), "model_type": ToyConfig.model_type, "hidden_act": "relu"}
    )
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "toy"))
    AutoModel.from_config(config).save_pretrained(folder)
    yield folder
    CONFIG_MAPPING._extra_content.pop(ToyConfig.model_type)
    MODEL_MAPPING._extra_content.pop(ToyConfig)


def test_new_family_is_trained_exported_and_run(toy: Path, data_folder: Path, tmp_path: Path) -> None:
    options = TrainingOptions(str(toy), max_steps=3, batch_size=16, max_length=32, pooling="mean")
    task = custom_task(data_folder, ("text",), "label")
    checkpoint = fine_tune(task, data_folder, options, tmp_path / "checkpoint")
    calibrate(checkpoint, data_folder, rule=Keep(0.9, optimistic=True))
    model, tokenizer = load_checkpoint(checkpoint)
    with torch.no_grad():
        expected = torch.softmax(model(**as_tensors(tokenizer(["the cat sat"]))).exit_logits[0], dim=-1).numpy()
    for target in ("onnxruntime", "tensorrt"):
        manifest = export(checkpoint, target, tmp_path / target)
        assert manifest.model.family == "toy-bert"
    steps = list(EarlyExitRunner.load(tmp_path / "onnxruntime", threads=1).stream("the cat sat"))
    found = np.array([list(step.scores.values()) for step in steps])
    assert np.abs(found - expected).max() <= 1e-5
