"""The canonical encoder: one set of arrays for all families. Exporters use nothing else.

A layer is BERT's (Devlin et al., 2019): attention, add and normalize, feed-forward, add and normalize. The differences
of later encoders are fields of a layer: the order of the norms, a gate, rotary positions, a local window, relative
positions in the attention. Matrices have shape (inputs, outputs), so that a layer computes ``hidden @ weight + bias``.
d: hidden size, e: embedding size, f: feed-forward size, L: longest input in tokens.
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
    bias: Array | None
    """(outputs,); None: nothing is added."""

    @classmethod
    def of(cls, *modules: nn.Linear) -> Linear:
        """The weights of a module, or of several modules, concatenated along the outputs."""
        weights = np.concatenate([array(module.weight).T for module in modules], axis=1)
        biases = [array(module.bias) for module in modules if module.bias is not None]
        return cls(np.ascontiguousarray(weights), np.concatenate(biases) if biases else None)

    @property
    def shift(self) -> Array:
        """(outputs,) the bias; zeros without one."""
        return np.zeros(self.weight.shape[1], np.float32) if self.bias is None else self.bias

    def scaled(self, factors: Array) -> Linear:
        """The linear layer whose outputs are multiplied by ``factors`` (outputs,)."""
        return Linear(self.weight * factors, None if self.bias is None else self.bias * factors)

    def part(self, columns: slice) -> Linear:
        """The linear layer with some of the outputs."""
        bias = None if self.bias is None else self.bias[columns]
        return Linear(np.ascontiguousarray(self.weight[:, columns]), bias)


@dataclass(frozen=True)
class Norm:
    """Layer normalization over the last axis."""

    scale: Array
    """(d,)"""
    shift: Array | None
    """(d,); None: nothing is added."""
    epsilon: float

    @classmethod
    def of(cls, module: nn.LayerNorm) -> Norm:
        return cls(array(module.weight), None if module.bias is None else array(module.bias), module.eps)


@dataclass(frozen=True)
class EmbeddingWeights:
    """Token ids -> hidden state 0: word embeddings + positions (+ types), normalised (, projected)."""

    word_embeddings: Array
    """(vocabulary, e)"""
    positions: Array | None
    """(L, e): row i is added to the i-th token of the input. The family's offset is removed. None: the layers alone
    have positions (ModernBERT, DeBERTa)."""
    types: Array | None
    """(types, e); None for a family with one token type."""
    norm: Norm
    projection: Linear | None = None
    """(e, d) for ALBERT's factorized embeddings."""
    relative_bias: Array | None = None
    """(heads, 2 L - 1). Bias that every layer adds to its attention scores (MPNet). Column i belongs to keys at
    position i - (L - 1) relative to the query."""


@dataclass(frozen=True)
class RelativeTerms:
    """Relative positions in the attention scores (DeBERTa, He et al., 2021, equation 4), as constants: the score of
    query i and key j is query_i key_j + query_i keys[j - i] + key_j queries[j - i]."""

    keys: Array
    """(heads, 2 L - 1, d / heads): row r belongs to keys at position r - (L - 1) relative to the query."""
    queries: Array
    """As ``keys``. The scale of the attention is not included."""


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One encoder layer. Layers with shared weights are one object (ALBERT)."""

    qkv: Linear
    """(d, 3d): query, key and value projections, concatenated."""
    output: Linear
    """(d, d)"""
    attention_norm: Norm | None
    """None: the identity (first layer of ModernBERT)."""
    up: Linear
    """(d, f), or (d, 2f) if ``gated``."""
    down: Linear
    """(f, d)"""
    output_norm: Norm
    """The norm of the feed-forward: after its sum, or of its input if ``pre_norm``."""
    heads: int
    activation: str
    """One of ACTIVATIONS."""
    pre_norm: bool = False
    """True: attention and feed-forward read normalized inputs, and their sums are not normalized (ModernBERT)."""
    gated: bool = False
    """True: activation(first half of ``up``) is multiplied by the second half (GeGLU, Shazeer, 2020)."""
    rotary: Array | None = None
    """(d / heads / 2,) angles in radians by which a pair of query or key values is rotated per position (RoPE, Su et
    al., 2021): values i and i + d / heads / 2 are a pair. None: no rotation."""
    window: int | None = None
    """A token attends to tokens at most this far away; None: to all."""
    relative: RelativeTerms | None = None
    """None: no relative terms in the attention scores."""

    @property
    def scale(self) -> float:
        """Factor of the attention scores: 1 / sqrt(terms x head size)."""
        terms = 1 if self.relative is None else 3
        return float((terms * (self.down.weight.shape[1] // self.heads)) ** -0.5)


def array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().float().numpy()
