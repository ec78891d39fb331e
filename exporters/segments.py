"""Canonical segments: the embeddings, then one segment per exit with the encoder layers up to it. The exporters of all
targets read these.

token ids -> [embeddings] -> hidden 0 -> [layer 1] -> hidden 1 -> [layer 2] -> ...
                                          |                        |
                                     logits 1, lte 1          logits 2, lte 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd

import numpy as np

from berxit.train.backbones import EmbeddingWeights, LayerWeights
from berxit.train.backbones.weights import Array, Linear, Norm, RelativeTerms
from berxit.train.modeling import MultiExitModel

MASKED = -30000.0
"""Added to the attention scores of padding. Softmax then returns 0, and float16 can represent the number."""


@dataclass(frozen=True)
class ExitWeights:
    """Exit of a layer: from its pooled hidden state (B, d) to logits and LTE certainty. The classifier of a tokens
    model reads the hidden states of all tokens."""

    pooler: Linear | None
    """(d, d), followed by tanh; None if the classifier reads the pooled hidden state directly."""
    classifier: Linear
    """(d, C)"""
    lte: Linear | None
    """(d, 1), followed by a sigmoid; the same object for all layers."""
    norm: Norm | None = None
    """Norm of the hidden states before pooling (encoders whose layers do not normalize their outputs); None: none."""


@dataclass(frozen=True)
class LayerSegment:
    layer: int
    """Number of the layer that the exit reads, from 1."""
    encoder: LayerWeights
    exit: ExitWeights
    before: tuple[LayerWeights, ...] = ()
    """Layers without an exit, which run before ``encoder``."""
    repeat: int = 1
    """Number of consecutive runs of all layers before the exit (ALBERT, whose layers are the same)."""

    @property
    def body(self) -> tuple[int, ...]:
        """Identity of the layers' weights: equal if two segments share all of them (ALBERT)."""
        return tuple(id(encoder) for encoder in (*self.before, self.encoder))


@dataclass(frozen=True)
class Segments:
    pooling: str
    """Input of the exits: first (token), or mean (over tokens)."""
    embeddings: EmbeddingWeights
    layers: tuple[LayerSegment, ...]
    outputs: int
    """C: classes, or 1 for regression."""
    words: bool
    """True if the exit heads read every token, not the pooled state: a tokens model."""
    hidden_size: int
    max_length: int
    """Tokens of the longest input in training; the position table may have more rows."""

    def shared(self, segment: LayerSegment) -> bool:
        """True if another segment has the same encoder weights (ALBERT)."""
        return sum(other.body == segment.body for other in self.layers) > 1

    def with_exits(self, exits: Sequence[int]) -> Segments:
        """Segments with these exits only. ``exits``: layers in ascending order, including the last."""
        ends = pairwise((0, *exits))
        return replace(
            self,
            layers=tuple(
                replace(self.layers[end - 1], before=tuple(each.encoder for each in self.layers[start : end - 1]))
                for start, end in ends
            ),
        )

    def repeating(self) -> Segments:
        """The segments with one shared body if all layers share their weights (ALBERT); else unchanged.

        The body has the largest number of layers that divides all segments, and each segment runs it repeatedly. Only
        for backends that support ``repeat``.
        """
        if len({encoder for segment in self.layers for encoder in segment.body}) > 1:
            return self
        counts = [len(segment.body) for segment in self.layers]
        unit = gcd(*counts)
        layers = (
            replace(segment, before=segment.before[: unit - 1], repeat=count // unit)
            for segment, count in zip(self.layers, counts, strict=True)
        )
        return replace(self, layers=tuple(layers))


def split_segments(model: MultiExitModel) -> Segments:
    """The segments of a model, with an exit after every layer. Arrays are views of its weights if possible."""
    lte = Linear.of(model.lte) if model.lte is not None else None
    exits = [
        ExitWeights(
            Linear.of(head.pooler) if head.pooler is not None else None,
            Linear.of(head.classifier),
            lte,
            Norm.of(head.norm) if head.norm is not None else None,
        )
        for head in model.heads
    ]
    encoder = model.adapter.encoder_layers(model.backbone)
    simplified = {id(layer): _shortened(_without_value_bias(layer), model.config.max_length) for layer in encoder}
    layers = [simplified[id(layer)] for layer in encoder]  # Layers that share their weights stay one object.
    return Segments(
        model.config.pooling,
        model.adapter.embeddings(model.backbone),
        tuple(LayerSegment(i, *pair) for i, pair in enumerate(zip(layers, exits, strict=True), start=1)),
        model.config.num_labels,
        model.config.task_kind.words,
        model.hidden_size,
        model.config.max_length,
    )


def _without_value_bias(layer: LayerWeights) -> LayerWeights:
    """The layer with the bias of its values added to the bias of its output. The attention weights of a token sum to 1,
    so the bias passes through them unchanged."""
    if layer.qkv.bias is None:
        return layer
    size = len(layer.output.weight)
    query_key, value = np.split(layer.qkv.bias, [2 * size])
    qkv = Linear(layer.qkv.weight, np.concatenate([query_key, np.zeros_like(value)]))
    output = Linear(layer.output.weight, layer.output.shift + value @ layer.output.weight)
    return replace(layer, qkv=qkv, output=output)


def _shortened(layer: LayerWeights, longest: int) -> LayerWeights:
    """The layer for inputs of at most ``longest`` tokens: without a window that contains every input, and with the
    relative terms of the distances that occur."""
    if layer.window is not None and layer.window >= longest - 1:
        layer = replace(layer, window=None)
    if layer.relative is not None:
        unused = max(0, (layer.relative.keys.shape[1] + 1) // 2 - longest)
        rows = slice(unused, layer.relative.keys.shape[1] - unused)
        layer = replace(layer, relative=RelativeTerms(layer.relative.keys[:, rows], layer.relative.queries[:, rows]))
    return layer


def scaled_queries(layer: LayerWeights, hidden_size: int) -> Linear:
    """The fused (d, 3d) matrix with the scale of the attention folded into the queries. This saves one operator on
    (B, heads, S, S)."""
    factors = np.ones(3 * hidden_size, dtype=np.float32)
    factors[:hidden_size] = layer.scale
    return layer.qkv.scaled(factors)


def queries_with_masks(qkv: Linear, heads: int) -> tuple[Linear, Array]:
    """The fused (d, 3d) matrix as (d, 3d + heads) without bias, and the bias of the queries (d + heads,). Every head of
    the queries has one more component, which is 1. The bias of the keys is dropped: it adds the same number to all
    scores of a query, and softmax ignores that. The values must have no bias."""
    size = qkv.weight.shape[1] // 3

    def wider(queries: Array, last: float) -> Array:
        by_head = queries.reshape(*queries.shape[:-1], heads, -1)
        widths = [(0, 0)] * (by_head.ndim - 1) + [(0, 1)]
        return np.pad(by_head, widths, constant_values=last).reshape(*queries.shape[:-1], -1)

    weight = np.concatenate([wider(qkv.weight[:, :size], 0), qkv.weight[:, size:]], axis=1)
    return Linear(weight, None), wider(qkv.shift[:size], 1)


def rotations(layer: LayerWeights, longest: int) -> tuple[Array, Array]:
    """Cosine and sine (longest, d / heads) of every position: values rotate to x cos + swapped(x) sin, where
    ``swapped`` exchanges the halves of a head. The sine of the first half is negative."""
    assert layer.rotary is not None
    angles = np.outer(np.arange(longest, dtype=np.float32), layer.rotary)
    sine = np.sin(angles)
    return np.tile(np.cos(angles), 2), np.concatenate([-sine, sine], axis=1)
