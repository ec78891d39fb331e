"""Every family: its hidden states equal transformers', from the model and from the canonical weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENCODERS, FAMILIES, shared, tiny_backbone, tiny_config
from scipy.special import erf
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, GPT2Config

from berxit.runtime.errors import InputError
from berxit.train.backbones import ADAPTERS, EmbeddingWeights, LayerWeights, adapter_for
from berxit.train.backbones.weights import Array, Linear, Norm
from berxit.train.checks import check_config
from berxit.train.modeling import MultiExitModel
from berxit.train.options import TrainingOptions
from berxit.train.starting import start_model
from berxit.train.tasks import Task

LENGTHS = (7, 3, 12, 1)


def padded_batch(vocabulary: int = 27, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    """Random ids above the special ones, right-padded with 0; the second half of each row is a second text."""
    generator = torch.Generator().manual_seed(3)
    longest = max(lengths)
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, vocabulary, (len(lengths), longest), generator=generator) * mask
    types = (torch.arange(longest)[None] >= torch.tensor(lengths)[:, None] // 2).long() * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def plain_hidden_states(backbone: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    feeds = dict(batch)
    if not adapter_for(backbone.config).has_token_types:
        feeds.pop("token_type_ids")
    with torch.no_grad():
        return backbone(**feeds, output_hidden_states=True).hidden_states


def multi_exit_of(backbone: torch.nn.Module, folder: object, **options: object) -> MultiExitModel:
    backbone.save_pretrained(folder)
    return MultiExitModel.from_backbone(str(folder), **options).eval()


def apply(linear: Linear, x: Array) -> Array:
    return x @ linear.weight + (0 if linear.bias is None else linear.bias)


def normalise(norm: Norm, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + norm.epsilon) * norm.scale + (
        0 if norm.shift is None else norm.shift
    )


def activate(name: str, x: Array) -> Array:
    if name == "gelu":
        return x / 2 * (1 + erf(x / np.sqrt(2)))
    if name == "gelu_new":
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert name == "relu"
    return np.maximum(x, 0)


def embed(weights: EmbeddingWeights, ids: Array, types: Array) -> Array:
    total = weights.word_embeddings[ids]
    if weights.positions is not None:
        total = total + weights.positions[: ids.shape[1]]
    if weights.types is not None:
        total = total + weights.types[types]
    hidden = normalise(weights.norm, total.astype(np.float64))
    return hidden if weights.projection is None else apply(weights.projection, hidden)


def run_layer(layer: LayerWeights, hidden: Array, mask: Array, relative_bias: Array | None = None) -> Array:
    rows, length, size = hidden.shape
    normed = layer.attention_norm is not None
    read = normalise(layer.attention_norm, hidden) if layer.pre_norm and normed else hidden
    parts = np.split(apply(layer.qkv, read), 3, axis=-1)
    queries, keys, values = (p.reshape(rows, length, layer.heads, -1).transpose(0, 2, 1, 3) for p in parts)
    place = np.arange(length)
    distances = place[None] - place[:, None]
    if layer.rotary is not None:
        queries, keys = (rotate(x, np.outer(place, layer.rotary)) for x in (queries, keys))
    scores = queries @ keys.transpose(0, 1, 3, 2)
    if layer.relative is not None:
        near = distances + layer.relative.keys.shape[1] // 2
        scores = scores + np.einsum("bhid,hijd->bhij", queries, layer.relative.keys[:, near])
        scores = scores + np.einsum("bhjd,hijd->bhij", keys, layer.relative.queries[:, near])
    scores = scores / np.sqrt(size // layer.heads * (1 if layer.relative is None else 3))
    if relative_bias is not None:
        scores = scores + relative_bias[:, distances + relative_bias.shape[1] // 2]
    seen = (mask[:, None, None] == 1) & (np.abs(distances) <= (layer.window or length))
    scores = np.where(seen, scores, -1e9)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    context = (powers / powers.sum(axis=-1, keepdims=True)) @ values
    context = context.transpose(0, 2, 1, 3).reshape(rows, length, size)
    attended = apply(layer.output, context) + hidden
    if not layer.pre_norm:
        attended = normalise(layer.attention_norm, attended)
    wide = apply(layer.up, normalise(layer.output_norm, attended) if layer.pre_norm else attended)
    value, gate = np.split(wide, 2, axis=-1) if layer.gated else (wide, 1)
    total = apply(layer.down, activate(layer.activation, value) * gate) + attended
    return total if layer.pre_norm else normalise(layer.output_norm, total)


def rotate(x: Array, angles: Array) -> Array:
    """Rotary positions: pairs of x (..., S, size) as complex numbers, times e^(i angle)."""
    first, second = np.split(x, 2, axis=-1)
    turned = (first + 1j * second) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def largest_gap(found: object, expected: Tensor, mask: Tensor) -> float:
    kept = mask.bool().numpy()
    return float(np.abs(np.asarray(found) - expected.numpy())[kept].max())


@pytest.mark.parametrize("family", ENCODERS)
def test_forward_returns_the_hidden_states_of_the_pretrained_model(family: str, backbone_folders: dict) -> None:
    batch = padded_batch()
    expected = plain_hidden_states(AutoModel.from_pretrained(backbone_folders[family]).eval(), batch)
    model = MultiExitModel.from_backbone(backbone_folders[family]).eval()
    with torch.no_grad():
        *found, last = model(**batch, output_hidden_states=True).hidden_states
        final_norm = model.heads[-1].norm
        found.append(last if final_norm is None else final_norm(last))
    assert len(found) == len(expected) == 4
    gaps = [largest_gap(f, e, batch["attention_mask"]) for f, e in zip(found, expected, strict=True)]
    assert max(gaps) <= 1e-6


@pytest.mark.parametrize("family", ENCODERS)
def test_canonical_weights_compute_the_same_hidden_states(family: str) -> None:
    backbone, batch = tiny_backbone(family), padded_batch()
    adapter, mask = adapter_for(backbone.config), batch["attention_mask"]
    adapter.remove_pooler(backbone)  # a final norm, too
    expected = plain_hidden_states(backbone, batch)
    weights = adapter.embeddings(backbone)
    hidden = embed(weights, batch["input_ids"].numpy(), batch["token_type_ids"].numpy())
    gaps = [largest_gap(hidden, expected[0], mask)]
    for layer, state in zip(adapter.encoder_layers(backbone), expected[1:], strict=True):
        hidden = run_layer(layer, hidden, mask.numpy(), weights.relative_bias)
        gaps.append(largest_gap(hidden, state, mask))
    assert max(gaps) <= 1e-5


@pytest.mark.parametrize("family", ENCODERS)
def test_forward_of_a_row_does_not_depend_on_other_rows(family: str, backbone_folders: dict) -> None:
    batch = padded_batch()
    model = MultiExitModel.from_backbone(backbone_folders[family]).eval()
    with torch.no_grad():
        together = model(**batch).exit_logits
        for row, length in enumerate(LENGTHS):
            alone = model(**{name: tensor[row : row + 1, :length] for name, tensor in batch.items()}).exit_logits[0]
            assert torch.allclose(alone, together[row], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_returns_the_sizes_of_the_model(family: str) -> None:
    backbone = tiny_backbone(family)
    adapter = adapter_for(backbone.config)
    assert type(adapter) is ADAPTERS[family]
    assert (adapter.layers, adapter.hidden_size) == (3, 32)
    assert {layer.heads for layer in adapter.encoder_layers(backbone)} == {4}
    weights = adapter.embeddings(backbone)
    assert len(weights.positions) == adapter.max_length
    assert (weights.types is not None) == adapter.has_token_types == (family in ("bert", "albert"))


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_accepts_an_input_of_maximum_length(family: str, backbone_folders: dict) -> None:
    model = MultiExitModel.from_backbone(backbone_folders[family]).eval()
    length = model.adapter.max_length
    with torch.no_grad():
        assert torch.isfinite(model(**padded_batch(lengths=(length,))).exit_logits).all()
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(**padded_batch(lengths=(length + 1,)))


def test_adapter_returns_the_dropout_of_the_familys_classifier() -> None:
    changed = {
        "bert": ({"hidden_dropout_prob": 0.2}, 0.2),
        "roberta": ({"classifier_dropout": 0.3}, 0.3),
        "albert": ({"classifier_dropout_prob": 0.4}, 0.4),
        "distilbert": ({"seq_classif_dropout": 0.25}, 0.25),
    }
    for family, (options, expected) in changed.items():
        config = tiny_config(family)
        for name, value in options.items():
            setattr(config, name, value)
        assert adapter_for(config).dropout == expected


def test_albert_layers_are_one_object() -> None:
    backbone = tiny_backbone("albert")
    first, *others = adapter_for(backbone.config).encoder_layers(backbone)
    assert len(others) == 2
    assert all(layer is first for layer in others)


def test_albert_groups_share_weights_as_in_transformers() -> None:
    config = tiny_config("albert")
    config.num_hidden_layers, config.num_hidden_groups = 4, 2
    torch.manual_seed(1)
    backbone, batch = AutoModel.from_config(config).eval(), padded_batch()
    layers = adapter_for(config).encoder_layers(backbone)
    assert layers[0] is layers[1]
    assert layers[2] is layers[3]
    assert layers[0] is not layers[2]
    expected = plain_hidden_states(backbone, batch)
    hidden = expected[0].numpy()
    for layer in layers:
        hidden = run_layer(layer, hidden, batch["attention_mask"].numpy())
    assert largest_gap(hidden, expected[-1], batch["attention_mask"]) <= 1e-5


def test_check_config_rejects_albert_with_inner_groups() -> None:
    config = tiny_config("albert")
    config.inner_group_num = 2
    with pytest.raises(InputError, match="inner_group_num 2"):
        check_config("albert", config)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_layers_of_other_families_are_not_shared(family: str) -> None:
    backbone = tiny_backbone(family)
    layers = adapter_for(backbone.config).encoder_layers(backbone)
    assert len({id(layer) for layer in layers}) == 3


@pytest.mark.parametrize("padding", [0, 1])
def test_roberta_counts_positions_from_the_padding_id(padding: int) -> None:
    config = tiny_config("roberta")
    config.pad_token_id = padding
    backbone = AutoModel.from_config(config)
    adapter = adapter_for(config)
    assert adapter.max_length == 40 - padding - 1
    rows = backbone.embeddings.position_embeddings.weight[padding + 1 :]
    one_type = backbone.embeddings.token_type_embeddings.weight[0]
    assert np.array_equal(adapter.embeddings(backbone).positions, (rows + one_type).detach().numpy())


def test_adapter_for_rejects_an_unsupported_family() -> None:
    with pytest.raises(InputError, match=r"'gpt2' is not supported, because .*: choose one of bert, roberta"):
        adapter_for(GPT2Config())


def test_start_model_rejects_a_family_that_transformers_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "of-tomorrow"}', encoding="utf-8")
    task = Task("custom", ("text",), "label", ("a", "b"), "accuracy", "classification")
    with pytest.raises(InputError, match=r"'of-tomorrow' is not supported, because .*: choose one of bert, roberta"):
        start_model(task, TrainingOptions(str(tmp_path)))


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
def test_check_config_names_an_unsupported_activation(activation: str) -> None:
    config = tiny_config("bert")
    config.hidden_act = activation
    backbone, batch = AutoModel.from_config(config).eval(), padded_batch()
    with torch.no_grad():
        for parameter in backbone.parameters():  # Large enough for the two GELUs to differ.
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    layer = adapter_for(config).encoder_layers(backbone)[0]
    expected = plain_hidden_states(backbone, batch)
    mask = batch["attention_mask"]
    assert layer.activation == activation
    assert largest_gap(run_layer(layer, expected[0].numpy(), mask.numpy()), expected[1], mask) <= 1e-5
    other = replace(layer, activation="gelu")
    assert largest_gap(run_layer(other, expected[0].numpy(), mask.numpy()), expected[1], mask) > 1e-5


def test_forward_of_real_bert_returns_the_hidden_states_of_the_pretrained_model() -> None:
    folder = shared("models", "bge-small-en")
    tokens = AutoTokenizer.from_pretrained(folder)(
        ["The meeting starts at nine.", "No.", "Nobody had told them that the last train was already gone."],
        padding=True,
        return_tensors="pt",
    )
    check_real(folder, dict(tokens))


def test_forward_of_real_albert_returns_the_hidden_states_of_the_pretrained_model() -> None:
    check_real(shared("models", "rxnmapper-albert"), padded_batch(vocabulary=591, lengths=(20, 5, 1)))


def check_real(folder: object, batch: dict[str, Tensor]) -> None:
    backbone = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    expected, mask = plain_hidden_states(backbone, batch), batch["attention_mask"]
    model = MultiExitModel.from_backbone(str(folder)).eval()
    with torch.no_grad():
        found = model(**batch, output_hidden_states=True).hidden_states
    assert max(largest_gap(f, e, mask) for f, e in zip(found, expected, strict=True)) <= 1e-6
    adapter = adapter_for(backbone.config)
    weights = adapter.embeddings(backbone)
    hidden = embed(weights, batch["input_ids"].numpy(), batch["token_type_ids"].numpy())
    for layer in adapter.encoder_layers(backbone):
        hidden = run_layer(layer, hidden, mask.numpy())
    assert largest_gap(hidden, expected[-1], mask) <= 1e-4
