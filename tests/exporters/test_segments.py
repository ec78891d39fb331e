"""Segments of a model: the embeddings, and one layer with its exit each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, WORDS

from berxit.exporters.segments import queries_with_masks, split_segments
from berxit.train.backbones.weights import Linear
from berxit.train.modeling import MultiExitModel


@pytest.mark.parametrize("family", FAMILIES)
def test_split_segments_has_one_segment_per_layer(family: str, backbone_folders: dict) -> None:
    model = MultiExitModel.from_backbone(backbone_folders[family], num_labels=3, lte=True, pooling="mean")
    segments = split_segments(model)
    assert [segment.layer for segment in segments.layers] == [1, 2, 3]
    assert (segments.outputs, segments.hidden_size, segments.pooling) == (3, 32, "mean")
    assert segments.embeddings.word_embeddings.shape == (5 + len(WORDS), 16 if family == "albert" else 32)
    assert [segments.shared(segment) for segment in segments.layers] == [family == "albert"] * 3


def test_each_exit_has_its_own_classifier(backbone_folders: dict) -> None:
    model = MultiExitModel.from_backbone(backbone_folders["bert"], num_labels=3, exit_head="pooler")
    for segment, head in zip(split_segments(model).layers, model.heads, strict=True):
        assert np.array_equal(segment.exit.classifier.weight, head.classifier.weight.detach().numpy().T)
        assert np.array_equal(segment.exit.classifier.bias, head.classifier.bias.detach().numpy())
        assert segment.exit.pooler is not None
        assert np.array_equal(segment.exit.pooler.weight, head.pooler.weight.detach().numpy().T)
        assert segment.exit.lte is None


def test_all_exits_share_one_lte(backbone_folders: dict) -> None:
    model = MultiExitModel.from_backbone(backbone_folders["bert"], lte=True)
    with torch.no_grad():
        model.lte.bias.fill_(0.5)
    first, *others = [segment.exit for segment in split_segments(model).layers]
    assert first.lte is not None
    assert first.lte.weight.shape == (32, 1)
    assert first.lte.bias.tolist() == [0.5]
    assert all(other.lte is first.lte for other in others)
    assert first.pooler is None


def test_queries_with_masks_have_one_more_component_per_head() -> None:
    rng = np.random.default_rng(0)
    qkv = Linear(rng.normal(size=(8, 24)).astype(np.float32), rng.normal(size=24).astype(np.float32))
    wider, bias = queries_with_masks(qkv, 2)
    assert wider.bias is None
    x = rng.normal(size=(3, 8)).astype(np.float32)
    product = x @ wider.weight
    queries = (product[:, :10] + bias).reshape(3, 2, 5)
    assert (queries[..., 4] == 1).all()
    assert np.array_equal(queries[..., :4].reshape(3, 8), (x @ qkv.weight + qkv.shift)[:, :8])
    assert np.array_equal(product[:, 10:], (x @ qkv.weight)[:, 8:])


def test_bias_of_values_is_part_of_the_bias_of_the_output(backbone_folders: dict) -> None:
    model = MultiExitModel.from_backbone(backbone_folders["bert"])
    attention = model.backbone.encoder.layer[1].attention
    with torch.no_grad():
        for linear in (attention.self.query, attention.self.key, attention.self.value, attention.output.dense):
            linear.bias.normal_()
    layer = split_segments(model).layers[1].encoder
    weights = torch.softmax(torch.randn(4, 6), dim=-1)  # of 4 queries on 6 keys
    hidden = torch.randn(6, 32)
    expected = attention.output.dense(weights @ attention.self.value(hidden)).detach().numpy()
    values = hidden.numpy() @ layer.qkv.weight[:, 64:] + layer.qkv.bias[64:]
    assert np.allclose(weights.numpy() @ values @ layer.output.weight + layer.output.bias, expected, atol=1e-5)
    assert (layer.qkv.bias[64:] == 0).all()
    assert np.array_equal(layer.qkv.bias[:32], attention.self.query.bias.detach().numpy())
