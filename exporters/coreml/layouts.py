"""Layouts of the hidden states in a CoreML program, with the ops that depend on them, written from the same weights.

``tokens`` (1, S, d), as in the other targets, and ``ane`` (1, d, 1, S) for the Neural Engine. In ``ane``, every linear
layer is a 1x1 convolution, and attention has no transposition (Apple, "Deploying Transformers on the Apple Neural
Engine", 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from berxit.exporters.coreml.int8_activations import Int8Activation
from berxit.exporters.coreml.silenced_coremltools import mb, types
from berxit.exporters.coreml.weights import Weights
from berxit.runtime.bundle import TensorInfo
from berxit.train.backbones.weights import Linear, Norm

Var = Any
"""A tensor of the program."""

SMALLEST_EPSILON = 2.0**-24
"""Smallest number of float16: BERT's 1e-12 would become 0."""


class Layout(Protocol):
    """Memory layout of hidden states, and the ops that depend on it."""

    @property
    def weights(self) -> Weights: ...

    @property
    def residual(self) -> type[np.floating]:
        """Dtype of the hidden states, within and between segments: sums, norms, and input of the pooling."""

    def hidden(self, name: str, hidden_size: int) -> TensorInfo:
        """A hidden state as an input or output of a segment."""

    def enter(self, name: str, rows: Var) -> Var:
        """Converts (1, S, d) to this layout."""

    def rows(self, x: Var) -> Var:
        """Converts this layout to (1, S, d)."""

    def linear(self, name: str, x: Var, linear: Linear) -> Var:
        """``x`` in the dtype of the weights -> the same dtype."""

    def norm(self, name: str, x: Var, norm: Norm) -> Var:
        """Layer normalization in the dtype of ``residual``, which ``x`` has."""

    @property
    def channels(self) -> int:
        """Axis of the channels."""

    @property
    def tokens(self) -> int:
        """Axis of the tokens."""

    def attend(self, qkv: Var, bias: Var, heads: int, size: int, positions: Positions) -> Var:
        """Fused queries, keys and values, and the bias (1, 1 or heads, 1 or S, S) -> output of the attention, heads
        joined."""

    def pool(self, hidden: Var, token_weights: Var | None) -> Var:
        """Input of the exits: the mean with ``token_weights``, or the first token if they are None."""


class Positions(Protocol):
    """Positions in the attention of a layer; ``exporters/coreml/positions.py`` implements them."""

    def rotate(self, x: Var) -> Var:
        """Queries or keys by head, with rotary positions."""

    def add_terms(self, scores: Var, queries: Var, keys: Var) -> Var:
        """The scores (1, heads, S, S) with relative terms."""


@dataclass(frozen=True)
class TokensFirst:
    """Hidden states (1, S, d)."""

    weights: Weights
    int8: Mapping[str, Int8Activation] = field(default_factory=dict)
    """Name of a linear layer -> quantization of its input."""
    residual: ClassVar[type[np.floating]] = np.float32
    """float32 for every weight dtype: hidden states are as large as 10, where the spacing of float16 is 8e-3."""
    channels: ClassVar[int] = -1
    tokens: ClassVar[int] = 1

    def hidden(self, name: str, hidden_size: int) -> TensorInfo:
        return TensorInfo(name, "hidden", np.dtype(self.residual).name, (1, "length", hidden_size))

    def enter(self, name: str, rows: Var) -> Var:
        return mb.identity(x=rows, name=name)

    def rows(self, x: Var) -> Var:
        return x

    def linear(self, name: str, x: Var, linear: Linear) -> Var:
        x, matrix = _int8_input(self.int8.get(name), x, linear.weight, (-1,), self.weights)
        weight = self.weights.matrix(matrix.T)
        return mb.linear(x=x, weight=weight, name=name, **_bias(linear, self.weights))

    def norm(self, name: str, x: Var, norm: Norm) -> Var:
        return _norm(name, x, norm, self.residual, axis=-1)

    def attend(self, qkv: Var, bias: Var, heads: int, size: int, positions: Positions) -> Var:
        queries, keys, values = (
            mb.transpose(x=mb.reshape(x=part, shape=[1, -1, heads, size]), perm=[0, 2, 1, 3])
            for part in mb.split(x=qkv, num_splits=3, axis=-1)
        )
        queries, keys = positions.rotate(queries), positions.rotate(keys)
        scores = positions.add_terms(mb.matmul(x=queries, y=keys, transpose_y=True), queries, keys)
        scores = mb.add(x=scores, y=bias)
        context = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=values)
        return mb.reshape(x=mb.transpose(x=context, perm=[0, 2, 1, 3]), shape=[1, -1, heads * size])

    def pool(self, hidden: Var, token_weights: Var | None) -> Var:
        if token_weights is not None:
            return mb.squeeze(x=mb.matmul(x=token_weights, y=hidden), axes=[1])
        size = hidden.shape[-1]
        return mb.slice_by_index(x=hidden, begin=[0, 0, 0], end=[1, 1, size], squeeze_mask=[False, True, False])


@dataclass(frozen=True)
class ChannelsFirst:
    """Hidden states (1, d, 1, S)."""

    weights: Weights
    int8: Mapping[str, Int8Activation] = field(default_factory=dict)
    """As in TokensFirst."""
    channels: ClassVar[int] = 1
    tokens: ClassVar[int] = 3

    @property
    def residual(self) -> type[np.floating]:
        """The Neural Engine computes in float16 only; a float32 op would run on the CPU."""
        return self.weights.dtype

    def hidden(self, name: str, hidden_size: int) -> TensorInfo:
        return TensorInfo(name, "hidden", np.dtype(self.residual).name, (1, hidden_size, 1, "length"))

    def enter(self, name: str, rows: Var) -> Var:
        return mb.expand_dims(x=mb.transpose(x=rows, perm=[0, 2, 1]), axes=[2], name=name)

    def rows(self, x: Var) -> Var:
        return mb.transpose(x=mb.squeeze(x=x, axes=[2]), perm=[0, 2, 1])

    def linear(self, name: str, x: Var, linear: Linear) -> Var:
        x, matrix = _int8_input(self.int8.get(name), x, linear.weight, (1, -1, 1, 1), self.weights)
        weight = self.weights.matrix(matrix.T[:, :, None, None])
        return mb.conv(x=x, weight=weight, pad_type="valid", name=name, **_bias(linear, self.weights))

    def norm(self, name: str, x: Var, norm: Norm) -> Var:
        return _norm(name, x, norm, self.residual, axis=1)

    def attend(self, qkv: Var, bias: Var, heads: int, size: int, positions: Positions) -> Var:
        queries, keys, values = (
            mb.reshape(x=part, shape=[1, heads, size, -1]) for part in mb.split(x=qkv, num_splits=3, axis=1)
        )
        queries, keys = positions.rotate(queries), positions.rotate(keys)
        scores = positions.add_terms(mb.matmul(x=queries, y=keys, transpose_x=True), queries, keys)
        scores = mb.add(x=scores, y=bias)
        context = mb.matmul(x=values, y=mb.softmax(x=scores, axis=-1), transpose_y=True)
        return mb.reshape(x=context, shape=[1, heads * size, 1, -1])

    def pool(self, hidden: Var, token_weights: Var | None) -> Var:
        if token_weights is not None:  # (1, d, S) x (1, S, 1)
            mean = mb.matmul(x=mb.squeeze(x=hidden, axes=[2]), y=token_weights, transpose_y=True)
            return mb.expand_dims(x=mean, axes=[3])
        return mb.slice_by_index(x=hidden, begin=[0, 0, 0, 0], end=[1, hidden.shape[1], 1, 1])


def cast(x: Var, dtype: type[np.floating]) -> Var:
    builtin = types.numpy_type_to_builtin_type(np.dtype(dtype))
    return x if x.dtype == builtin else mb.cast(x=x, dtype="fp16" if dtype is np.float16 else "fp32")


def _int8_input(
    int8: Int8Activation | None, x: Var, weight: npt.NDArray, channels: tuple[int, ...], weights: Weights
) -> tuple[Var, npt.NDArray]:
    """Input and weight (in, out) of a linear layer; unchanged without ``int8``.

    With it, the input is smoothed, rounded to int8 and converted back, and the weight is multiplied by the smoothing
    scales. CoreML replaces dequantization, linear layer and weight by one int8 matmul if the device has one.
    """
    if int8 is None:
        return x, weight
    smoothed = mb.mul(x=x, y=weights.plain(1 / int8.smoothing).reshape(channels))
    step = weights.dtype(int8.step)
    rounded = mb.dequantize(input=mb.quantize(input=smoothed, scale=step, output_dtype="int8"), scale=step)
    return rounded, weight * int8.smoothing[:, None]


def _norm(name: str, x: Var, norm: Norm, dtype: type[np.floating], *, axis: int) -> Var:
    gamma = np.asarray(norm.scale, dtype)
    beta = np.zeros_like(gamma) if norm.shift is None else np.asarray(norm.shift, dtype)
    epsilon = dtype(max(norm.epsilon, SMALLEST_EPSILON) if dtype is np.float16 else norm.epsilon)
    return mb.layer_norm(x=x, axes=[axis], gamma=gamma, beta=beta, epsilon=epsilon, name=name)


def _bias(linear: Linear, weights: Weights) -> dict[str, npt.NDArray]:
    return {} if linear.bias is None else {"bias": weights.plain(linear.bias)}
