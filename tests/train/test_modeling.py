"""The multi-exit model: shapes, initialization, and saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, tiny_backbone
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from berxit.runtime.errors import InputError
from berxit.train.configuration import MultiExitConfig
from berxit.train.modeling import MultiExitModel

LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


def batch() -> dict[str, Tensor]:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    ids = torch.tensor([[2, 9, 12, 8, 7, 3], [2, 20, 3, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def build(folder: Path, **options: object) -> MultiExitModel:
    torch.manual_seed(0)
    return MultiExitModel.from_backbone(folder, **{**LABELS, **options}).eval()


@torch.no_grad()
def run(model: MultiExitModel, **changes: Tensor) -> Tensor:
    return model(**{**batch(), **changes}).exit_logits


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_returns_logits_of_every_layer_and_row(family: str, backbone_folders: dict) -> None:
    model = build(backbone_folders[family], lte=True)
    with torch.no_grad():
        outputs = model(**batch(), output_hidden_states=True)
    assert outputs.exit_logits.shape == (2, 3, 3)
    assert outputs.certainties.shape == (2, 3)
    assert ((outputs.certainties > 0) & (outputs.certainties < 1)).all()
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 6, 32)] * 4


def test_forward_without_lte_returns_no_certainties(backbone_folders: dict) -> None:
    model = build(backbone_folders["bert"])
    assert model(**batch()).certainties is None
    assert model(**batch()).hidden_states is None


def test_forward_of_regression_returns_one_output(backbone_folders: dict) -> None:
    options = {"id2label": {0: "value"}, "label2id": {"value": 0}, "problem_type": "regression"}
    model = build(backbone_folders["bert"], **options)
    assert run(model).shape == (2, 3, 1)
    assert model.config.regression
    assert model.config.labels == ()


def test_labels_are_in_the_order_of_the_logits(backbone_folders: dict) -> None:
    assert build(backbone_folders["bert"]).config.labels == ("a", "b", "c")


def test_linear_head_reads_the_first_token(backbone_folders: dict) -> None:
    model = build(backbone_folders["bert"], lte=True, pooling="first")
    with torch.no_grad():
        outputs = model(**batch(), output_hidden_states=True)
        for layer, head in enumerate(model.heads):
            state = outputs.hidden_states[layer + 1][:, 0]
            assert torch.allclose(outputs.exit_logits[:, layer], head.classifier(state), atol=1e-6)
            certainty = torch.sigmoid(state @ model.lte.weight[0] + model.lte.bias)
            assert torch.allclose(outputs.certainties[:, layer], certainty, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_from_backbone_copies_the_pretrained_pooler_to_pooler_heads(family: str, backbone_folders: dict) -> None:
    plain = AutoModel.from_pretrained(backbone_folders[family])
    dense = plain.pooler if family == "albert" else plain.pooler.dense
    model = build(backbone_folders[family], exit_head="pooler", pooling="first")
    for head in model.heads:
        assert torch.equal(head.pooler.weight, dense.weight)
        assert torch.equal(head.pooler.bias, dense.bias)
    assert model.heads[0].pooler.weight.data_ptr() != model.heads[1].pooler.weight.data_ptr()
    with torch.no_grad():
        expected = model.heads[-1].classifier(
            plain.eval()(**{k: v for k, v in batch().items() if k != "token_type_ids"}).pooler_output
        )
    assert torch.allclose(run(model)[:, -1], expected, atol=1e-6)


def test_from_backbone_does_not_copy_a_pooler_that_is_not_in_the_file(tmp_path: Path) -> None:
    backbone = tiny_backbone("bert")
    backbone.pooler = None
    backbone.save_pretrained(tmp_path)
    model = build(tmp_path, exit_head="pooler")
    weights = [head.pooler.weight for head in model.heads]
    assert not torch.equal(weights[0], weights[1])
    assert all(head.pooler.bias.abs().max() == 0 for head in model.heads)


def test_from_backbone_removes_the_pooler_of_the_backbone(backbone_folders: dict) -> None:
    for family in FAMILIES:
        model = build(backbone_folders[family])
        assert not any("pooler" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("family", [*FAMILIES, "modernbert"])
@pytest.mark.parametrize(("exit_head", "pooling"), [("linear", "mean"), ("pooler", "first")])
def test_from_pretrained_returns_the_saved_model(
    family: str, exit_head: str, pooling: str, backbone_folders: dict, tmp_path: Path
) -> None:
    model = build(backbone_folders[family], exit_head=exit_head, pooling=pooling, lte=True, task="rte", max_length=24)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert isinstance(again, MultiExitModel)
    with torch.no_grad():
        before, after = model(**batch()), again(**batch())
    assert torch.equal(before.exit_logits, after.exit_logits)
    assert torch.equal(before.certainties, after.certainties)
    assert (again.config.task, again.config.max_length, again.config.labels) == ("rte", 24, ("a", "b", "c"))
    assert (again.config.exit_head, again.config.pooling) == (exit_head, pooling)


def test_mean_pooling_ignores_padding(backbone_folders: dict) -> None:
    model = build(backbone_folders["bert"], pooling="mean")
    together = run(model)[1]
    alone = model(**{name: tensor[1:, :3] for name, tensor in batch().items()}).exit_logits[0]
    assert torch.allclose(together, alone, atol=1e-5)


def test_mean_pooling_is_the_mean_over_tokens(backbone_folders: dict) -> None:
    model = build(backbone_folders["bert"], pooling="mean")
    with torch.no_grad():
        outputs = model(**batch(), output_hidden_states=True)
        state = outputs.hidden_states[2][1, :3].mean(dim=0)
        assert torch.allclose(outputs.exit_logits[1, 1], model.heads[1].classifier(state), atol=1e-5)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_mean_pooling_without_a_mask_uses_all_tokens(pooling: str, backbone_folders: dict) -> None:
    model = build(backbone_folders["bert"], pooling=pooling)
    ids = batch()["input_ids"][:1]
    with torch.no_grad():
        assert torch.allclose(model(ids).exit_logits, model(ids, torch.ones_like(ids)).exit_logits, atol=1e-6)


def test_exits_of_a_pre_norm_encoder_start_with_its_final_norm_and_read_the_mean(backbone_folders: dict) -> None:
    backbone = AutoModel.from_pretrained(backbone_folders["modernbert"]).eval()
    model = build(backbone_folders["modernbert"])
    assert model.config.pooling == "mean"
    assert all(torch.equal(head.norm.weight, backbone.final_norm.weight) for head in model.heads)
    assert len({id(head.norm) for head in model.heads}) == 3
    inputs = {name: value for name, value in batch().items() if name != "token_type_ids"}
    with torch.no_grad():
        last = backbone(**inputs).last_hidden_state
        weights = inputs["attention_mask"][..., None] / inputs["attention_mask"].sum(dim=1)[:, None, None]
        expected = model.heads[-1]((last * weights).sum(dim=1))
    assert torch.allclose(run(model)[:, -1], expected, atol=1e-5)
    assert torch.allclose(run(model.first_layers(2)), run(model)[:, :2], atol=1e-6)


def test_lte_module_is_shared_by_all_layers(backbone_folders: dict) -> None:
    model = build(backbone_folders["bert"], lte=True)
    names = [name for name, _ in model.named_parameters() if "lte" in name]
    assert names == ["lte.weight", "lte.bias"]
    with torch.no_grad():
        model.lte.weight.zero_()
        model.lte.bias.fill_(2.0)
        certainties = model(**batch()).certainties
    assert torch.allclose(certainties, torch.full((2, 3), 0.880797), atol=1e-6)


def test_new_exit_heads_are_initialized_like_bert_classifiers(backbone_folders: dict) -> None:
    model = build(backbone_folders["bert"], lte=True)
    weights = torch.cat([head.classifier.weight.flatten() for head in model.heads])
    assert 0.015 < weights.std() < 0.025
    assert all(head.classifier.bias.abs().max() == 0 for head in model.heads)
    assert model.lte.bias == 0


def test_config_rejects_an_unknown_head_or_pooling() -> None:
    with pytest.raises(ValueError, match="exit_head is 'deep': choose one of linear, pooler"):
        MultiExitConfig(exit_head="deep")
    with pytest.raises(ValueError, match="pooling is 'max': choose one of first, mean"):
        MultiExitConfig(pooling="max")


def test_from_backbone_rejects_an_unsupported_family(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=20, n_positions=8)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'gpt2' is not supported"):
        MultiExitModel.from_backbone(tmp_path)
