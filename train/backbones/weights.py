"""The canonical encoder: one set of arrays for all families. Exporters use nothing else.

A layer is BERT's (Devlin et al., 2019): attention, add and normalize, feed-forward, add and normalize. Matrices have
shape (inputs, outputs), so that a layer computes ``hidden @ weight + bias``. d: hidden size, e: embedding size, f:
feed-forward size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

Array = npt.NDArray[np.float32]

ACTIVATIONS = ("gelu", "gelu_new", "relu")
"""Activations of the canonical layer, as transformers names them: gelu (exact), gelu_new (tanh approximation), relu."""


@dataclass(frozen=True)
class Linear:
    weight: Array
    """(inputs, outputs)"""
    bias: Array
    """(outputs,)"""

    @classmethod
    def of(cls, *modules: nn.Linear) -> Linear:
        """The weights of a module, or of several modules, concatenated along the outputs."""
        weights = np.concatenate([array(module.weight).T for module in modules], axis=1)
        return cls(np.ascontiguousarray(weights), np.concatenate([array(module.bias) for module in modules]))


@dataclass(frozen=True)
class Norm:
    """Layer normalization over the last axis."""

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
    """(longest input, e): row i is added to the i-th token of the input. The family's offset is removed."""
    types: Array | None
    """(types, e); None for a family with one token type."""
    norm: Norm
    projection: Linear | None = None
    """(e, d) for ALBERT's factorized embeddings."""
    relative_bias: Array | None = None
    """(heads, 2 L - 1), L: the longest input. Bias that every layer adds to its attention scores (MPNet). Column i
    belongs to keys at position i - (L - 1) relative to the query."""


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One encoder layer. Layers with shared weights are one object (ALBERT)."""

    qkv: Linear
    """(d, 3d): query, key and value projections, concatenated."""
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
