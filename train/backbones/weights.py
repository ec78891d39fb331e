"""The canonical encoder: the same arrays whatever the family calls its parameters. Exporters see nothing else.

A layer is BERT's (Devlin et al., 2019): attention, add and normalise, feed forward, add and normalise. Matrices are
stored input-first, (inputs, outputs), so that a layer computes ``hidden @ weight + bias``. d hidden size, e embedding
size, f feed-forward size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

Array = npt.NDArray[np.float32]

ACTIVATIONS = ("gelu", "gelu_new", "relu")
"""Names of transformers' ACT2FN that the canonical layer has: gelu (exact), gelu_new (tanh approximation), relu."""


@dataclass(frozen=True)
class Linear:
    weight: Array
    """(inputs, outputs)"""
    bias: Array
    """(outputs,)"""

    @classmethod
    def of(cls, *modules: nn.Linear) -> Linear:
        """One matrix of a module, or of several side by side."""
        weights = np.concatenate([array(module.weight).T for module in modules], axis=1)
        return cls(np.ascontiguousarray(weights), np.concatenate([array(module.bias) for module in modules]))


@dataclass(frozen=True)
class Norm:
    """Layer normalisation over the last axis."""

    scale: Array
    """(d,)"""
    shift: Array
    """(d,)"""
    epsilon: float

    @classmethod
    def of(cls, module: nn.LayerNorm) -> Norm:
        return cls(array(module.weight), array(module.bias), module.eps)


@dataclass(frozen=True)
class EmbeddingWeights:
    """Token ids -> hidden state 0: word embeddings + positions (+ types), normalised (, projected)."""

    word_embeddings: Array
    """(vocabulary, e)"""
    positions: Array
    """(longest input, e): row i belongs to the i-th token of the input, whatever offset the family counts from."""
    types: Array | None
    """(types, e); None where the family has one segment only."""
    norm: Norm
    projection: Linear | None = None
    """(e, d), for ALBERT's factorised embeddings."""
    relative_bias: Array | None = None
    """(heads, 2 L - 1), L the longest input: what every layer adds to its attention scores where the key stands L - 1
    places before the query, ... and L - 1 after it (MPNet)."""


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One encoder layer. Layers that share their weights are one object (ALBERT)."""

    qkv: Linear
    """(d, 3d): queries, keys and values side by side."""
    output: Linear
    """(d, d)"""
    attention_norm: Norm
    up: Linear
    """(d, f)"""
    down: Linear
    """(f, d)"""
    output_norm: Norm
    heads: int
    activation: str
    """One of ACTIVATIONS."""


def array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().float().numpy()
