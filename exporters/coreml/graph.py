"""Canonical segments as MIL programs, op by op: what CoreML runs.

Written with coremltools' builder and not traced, as the ONNX graphs are: some 25 ops a layer with names one can read,
the number type of every tensor ours to choose, and no converter that must know this month's torch. A batch is one row.

Two layouts of the hidden states, from the same weights: ``tokens`` (1, S, d), as everywhere; ``ane`` (1, d, 1, S),
which the Neural Engine prefers: every linear layer a 1x1 convolution, and attention without a single transposition
(Apple, "Deploying Transformers on the Apple Neural Engine", 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from berxit.exporters.coreml.silenced_coremltools import Function, Program, ct, get_new_symbol, mb, types
from berxit.exporters.coreml.weights import weights_pass
from berxit.exporters.segments import MASKED, LayerSegment, Segments, scaled_queries
from berxit.exporters.targets import Precision
from berxit.runtime.bundle import TensorInfo
from berxit.runtime.errors import InputError
from berxit.train.backbones import LayerWeights
from berxit.train.backbones.weights import Linear, Norm

Var = Any
"""A tensor of the program that is being written."""

LARGEST_WEIGHT = 64.0
"""An exit with larger weights or biases may give outputs beyond float16's 65504 at d = 768."""
SMALLEST_WEIGHT = 2.0**-10
"""An exit with no larger weight has many below 2^-14, where float16 loses bits."""
SMALLEST_EPSILON = 2.0**-24
"""fp16's least number: BERT's 1e-12 would become 0."""


@dataclass(frozen=True)
class Form:
    """How a program is written, beside what it computes."""

    precision: Precision
    """The arithmetic of CompressedWeights is fp16."""
    target: ct.target
    """The oldest system that can read it; decides which versions of the ops are used."""
    lengths: tuple[int, ...]
    """Input lengths in tokens; empty: any from 1 to ``max_length``."""
    max_length: int
    ane: bool = False

    @property
    def dtype(self) -> type[np.floating]:
        """Of weights and arithmetic; the layout says of what hidden states are. Logits and LTE are float32 always."""
        return np.float32 if self.precision.name == "fp32" else np.float16

    @property
    def layout(self) -> Layout:
        return ChannelsFirst(self.dtype) if self.ane else TokensFirst(self.dtype)

    @property
    def float_name(self) -> str:
        return np.dtype(self.dtype).name

    @property
    def static_length(self) -> int | None:
        return self.lengths[0] if len(self.lengths) == 1 else None


@dataclass(frozen=True)
class MilSegment:
    """One segment as a model with the function ``main``, with what the manifest says of it."""

    model: ct.models.MLModel
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def embeddings_model(segments: Segments, form: Form) -> MilSegment:
    """input_ids, attention_mask (and token_type_ids), (1, S) int32 -> hidden, attention_bias (1, 1, 1, S).

    Where the model has a bias by relative position, it is in attention_bias, which is (1, heads, S, S) then.
    Where the exits pool by the mean, also token_weights (1, 1, S): 1 / tokens for a token, 0 for padding.
    """
    weights, layout = segments.embeddings, form.layout
    names = ["input_ids", *(["token_type_ids"] if weights.types is not None else []), "attention_mask"]
    inputs = tuple(TensorInfo(name, name, "int32", (1, "length")) for name in names)
    outputs = [layout.hidden("hidden", segments.hidden_size), *_carried(segments, form)]

    def write(fed: dict[str, Var]) -> list[Var]:
        # Three small numbers in float32, whatever the layout: the norm would multiply their rounding by some twenty.
        total = _cast(mb.gather(x=layout.weight(weights.word_embeddings), indices=fed["input_ids"], axis=0), np.float32)
        if weights.types is not None:
            kinds = mb.gather(x=layout.weight(weights.types), indices=fed["token_type_ids"], axis=0)
            total = mb.add(x=total, y=_cast(kinds, np.float32))
        positions = _first(layout.weight(weights.positions[: form.max_length]), (0,), fed, form)
        total = mb.add(x=total, y=_cast(positions, np.float32))
        hidden = TokensFirst(form.dtype).norm("norm", total, weights.norm)
        if weights.projection is not None:
            hidden = TokensFirst(form.dtype).linear("projection", _cast(hidden, form.dtype), weights.projection)
        mask = _cast(fed["attention_mask"], form.dtype)
        masked = mb.mul(x=mb.sub(x=form.dtype(1), y=mask), y=form.dtype(MASKED))
        relative = weights.relative_bias
        bias = mb.expand_dims(x=masked, axes=[1, 2], name="attention_bias" if relative is None else "padding_bias")
        if relative is not None:
            table = layout.weight(_by_query_and_key(relative, form.max_length))
            bias = mb.add(x=bias, y=_first(table, (1, 2), fed, form), name="attention_bias")
        found = [layout.enter("hidden", _cast(hidden, layout.residual)), bias]
        if segments.pooling == "mean":
            counted = _cast(fed["attention_mask"], layout.residual)
            shares = mb.real_div(x=counted, y=mb.reduce_sum(x=counted, axes=[1], keep_dims=True))
            found.append(mb.expand_dims(x=shares, axes=[1], name="token_weights"))
        return found

    return _model(inputs, tuple(outputs), write, form)


def layer_model(segments: Segments, segment: LayerSegment, form: Form) -> MilSegment:
    """hidden_in and what embeddings_model gave -> hidden_out, logits (1, C), lte (1,), of the layer that has the exit;
    those before it run in the same program."""
    layout, head = form.layout, segment.exit
    inputs = (layout.hidden("hidden_in", segments.hidden_size), *_carried(segments, form))
    outputs = [
        layout.hidden("hidden_out", segments.hidden_size),
        TensorInfo("logits", "logits", "float32", (1, segments.outputs)),
    ]
    if head.lte is not None:
        outputs.append(TensorInfo("lte", "lte", "float32", (1,)))

    def write(fed: dict[str, Var]) -> list[Var]:
        hidden, encoders = fed["hidden_in"], (*segment.before, segment.encoder)
        for i, weights in enumerate(encoders, start=segment.layer - len(encoders) + 1):
            name = f"layer_{i:02d}"
            hidden = _encoder_layer(name, layout, hidden, fed["attention_bias"], weights, segments.hidden_size)
        hidden = mb.identity(x=hidden, name="hidden_out")
        pooled = _cast(layout.pool(hidden, fed.get("token_weights")), form.dtype)
        answer = pooled
        if head.pooler is not None:
            answer = mb.tanh(x=layout.linear("pooler", pooled, head.pooler))
        found = [hidden, _output("logits", layout, "classifier", answer, head.classifier, (1, -1))]
        if head.lte is not None:  # the sigmoid on float32: float16 has only some 2000 steps between 0.5 and 1
            found.append(mb.sigmoid(x=_output("lte_logit", layout, "lte_linear", pooled, head.lte, (1,)), name="lte"))
        return found

    return _model(inputs, tuple(outputs), write, form)


class Layout(Protocol):
    """How hidden states lie, and what follows from it."""

    @property
    def dtype(self) -> type[np.floating]:
        """Of weights, and of what is computed with them."""

    @property
    def residual(self) -> type[np.floating]:
        """Of the hidden states, within a segment and from one to the next: sums, norms, and what exits pool."""

    def weight(self, value: npt.NDArray) -> npt.NDArray:
        """In the program's number type."""

    def hidden(self, name: str, hidden_size: int) -> TensorInfo:
        """A hidden state among a segment's inputs or outputs."""

    def enter(self, name: str, rows: Var) -> Var:
        """(1, S, d) -> this layout."""

    def linear(self, name: str, x: Var, linear: Linear) -> Var: ...

    def norm(self, name: str, x: Var, norm: Norm) -> Var:
        """In the type of ``residual``, as ``x`` is."""

    def attend(self, qkv: Var, bias: Var, heads: int, size: int) -> Var:
        """Queries, keys and values side by side, and the bias (1, 1, 1, S) -> their attention, heads joined."""

    def pool(self, hidden: Var, token_weights: Var | None) -> Var:
        """What the exits read: the mean by ``token_weights``, or the first token where there are none."""


@dataclass(frozen=True)
class TokensFirst:
    """Hidden states (1, S, d)."""

    dtype: type[np.floating]
    residual: ClassVar[type[np.floating]] = np.float32
    """Whatever the weights are in: hidden states are as large as 10, where float16's steps are 8e-3 wide."""

    def weight(self, value: npt.NDArray) -> npt.NDArray:
        return np.asarray(value, dtype=self.dtype, order="C")

    def hidden(self, name: str, hidden_size: int) -> TensorInfo:
        return TensorInfo(name, "hidden", np.dtype(self.residual).name, (1, "length", hidden_size))

    def enter(self, name: str, rows: Var) -> Var:
        return mb.identity(x=rows, name=name)

    def linear(self, name: str, x: Var, linear: Linear) -> Var:
        return mb.linear(x=x, weight=self.weight(linear.weight.T), bias=self.weight(linear.bias), name=name)

    def norm(self, name: str, x: Var, norm: Norm) -> Var:
        return _norm(name, x, norm, self.residual, axis=-1)

    def attend(self, qkv: Var, bias: Var, heads: int, size: int) -> Var:
        queries, keys, values = (
            mb.transpose(x=mb.reshape(x=part, shape=[1, -1, heads, size]), perm=[0, 2, 1, 3])
            for part in mb.split(x=qkv, num_splits=3, axis=-1)
        )
        scores = mb.add(x=mb.matmul(x=queries, y=keys, transpose_y=True), y=bias)
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

    dtype: type[np.floating]

    @property
    def residual(self) -> type[np.floating]:
        """The Neural Engine computes in float16 only: a float32 op would leave for the CPU, and come back."""
        return self.dtype

    def weight(self, value: npt.NDArray) -> npt.NDArray:
        return np.asarray(value, dtype=self.dtype, order="C")

    def hidden(self, name: str, hidden_size: int) -> TensorInfo:
        return TensorInfo(name, "hidden", np.dtype(self.residual).name, (1, hidden_size, 1, "length"))

    def enter(self, name: str, rows: Var) -> Var:
        return mb.expand_dims(x=mb.transpose(x=rows, perm=[0, 2, 1]), axes=[2], name=name)

    def linear(self, name: str, x: Var, linear: Linear) -> Var:
        kernel = self.weight(linear.weight.T)[:, :, None, None]
        return mb.conv(x=x, weight=kernel, bias=self.weight(linear.bias), pad_type="valid", name=name)

    def norm(self, name: str, x: Var, norm: Norm) -> Var:
        return _norm(name, x, norm, self.residual, axis=1)

    def attend(self, qkv: Var, bias: Var, heads: int, size: int) -> Var:
        queries, keys, values = (
            mb.reshape(x=part, shape=[1, heads, size, -1]) for part in mb.split(x=qkv, num_splits=3, axis=1)
        )
        scores = mb.add(x=mb.matmul(x=queries, y=keys, transpose_x=True), y=bias)
        context = mb.matmul(x=values, y=mb.softmax(x=scores, axis=-1), transpose_y=True)
        return mb.reshape(x=context, shape=[1, heads * size, 1, -1])

    def pool(self, hidden: Var, token_weights: Var | None) -> Var:
        if token_weights is not None:  # (1, d, S) x (1, S, 1)
            mean = mb.matmul(x=mb.squeeze(x=hidden, axes=[2]), y=token_weights, transpose_y=True)
            return mb.expand_dims(x=mean, axes=[3])
        return mb.slice_by_index(x=hidden, begin=[0, 0, 0, 0], end=[1, hidden.shape[1], 1, 1])


def _encoder_layer(name: str, layout: Layout, x: Var, bias: Var, layer: LayerWeights, hidden_size: int) -> Var:
    """Hidden state in, hidden state out."""

    def add_and_norm(kind: str, new: Var, old: Var, norm: Norm) -> Var:
        total = mb.add(x=_cast(new, layout.residual), y=old)
        return layout.norm(f"{name}_{kind}", total, norm)

    size = hidden_size // layer.heads
    qkv = layout.linear(f"{name}_qkv", _cast(x, layout.dtype), scaled_queries(layer, hidden_size))
    context = layout.attend(qkv, bias, layer.heads, size)
    attended = add_and_norm(
        "attention_norm", layout.linear(f"{name}_output", context, layer.output), x, layer.attention_norm
    )
    up = layout.linear(f"{name}_up", _cast(attended, layout.dtype), layer.up)
    down = layout.linear(f"{name}_down", _activation(layer.activation, up), layer.down)
    return add_and_norm("output_norm", down, attended, layer.output_norm)


def _activation(name: str, x: Var) -> Var:
    if name == "relu":
        return mb.relu(x=x)
    if name == "gelu":
        return mb.gelu(x=x, mode="EXACT")
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return mb.gelu(x=x, mode="TANH_APPROXIMATION")
    raise InputError(f"activation '{name}' is not supported: the backbone must use gelu, gelu_new or relu")


def _norm(name: str, x: Var, norm: Norm, dtype: type[np.floating], *, axis: int) -> Var:
    gamma, beta = np.asarray(norm.scale, dtype), np.asarray(norm.shift, dtype)
    epsilon = dtype(max(norm.epsilon, SMALLEST_EPSILON) if dtype is np.float16 else norm.epsilon)
    return mb.layer_norm(x=x, axes=[axis], gamma=gamma, beta=beta, epsilon=epsilon, name=name)


def _first(table: npt.NDArray, axes: tuple[int, ...], fed: dict[str, Var], form: Form) -> Var:
    """The first S of a table along ``axes``."""
    if form.static_length is not None:
        part = tuple(slice(form.static_length if axis in axes else None) for axis in range(table.ndim))
        return mb.const(val=np.ascontiguousarray(table[part]))
    length = mb.slice_by_index(x=mb.shape(x=fed["input_ids"]), begin=[1], end=[2])
    sizes = [length if axis in axes else np.array([size], np.int32) for axis, size in enumerate(table.shape)]
    return mb.slice_by_size(x=table, begin=[0] * table.ndim, size=mb.concat(values=sizes, axis=0))


def _by_query_and_key(relative_bias: npt.NDArray, longest: int) -> npt.NDArray:
    """(heads, 2 L - 1) by distance -> (heads, longest, longest): a look-up less on the device."""
    places = np.arange(longest)
    return relative_bias[:, places[None] - places[:, None] + (relative_bias.shape[1] - 1) // 2]


def _output(name: str, layout: Layout, op: str, x: Var, linear: Linear, shape: tuple[int, ...]) -> Var:
    """The output of an exit's linear layer in float32. Where float16 may not hold it (regression on prices, or
    on tiny values), it is computed smaller or larger by a power of two; the factor and the bias follow in float32."""
    weight, bias = (float(np.abs(part).max()) for part in (linear.weight, linear.bias))
    held = SMALLEST_WEIGHT <= weight <= LARGEST_WEIGHT or weight == 0
    if layout.dtype is np.float32 or (held and bias <= LARGEST_WEIGHT):
        return _float32(name, layout.linear(op, x, linear), shape)
    factor = np.float32(1.0 if held else 2.0 ** np.ceil(np.log2(weight)))
    near_one = Linear(linear.weight / factor, np.zeros_like(linear.bias))
    found = _float32(f"{name}_scaled", layout.linear(op, x, near_one), shape)
    return mb.add(x=mb.mul(x=found, y=factor), y=linear.bias.astype(np.float32), name=name)


def _float32(name: str, x: Var, shape: tuple[int, ...]) -> Var:
    return mb.cast(x=mb.reshape(x=x, shape=shape), dtype="fp32", name=name)


def _carried(segments: Segments, form: Form) -> list[TensorInfo]:
    """What the embeddings segment makes once and every layer reads."""
    relative = segments.embeddings.relative_bias
    shape = (1, 1, 1, "length") if relative is None else (1, len(relative), "length", "length")
    carried = [TensorInfo("attention_bias", "attention_bias", form.float_name, shape)]
    if segments.pooling == "mean":
        name = np.dtype(form.layout.residual).name
        carried.append(TensorInfo("token_weights", "token_weights", name, (1, 1, "length")))
    return carried


def _model(inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], write: Any, form: Form) -> MilSegment:
    """The program that ``write`` (inputs by name -> outputs) writes, as a model in memory."""
    length = form.static_length or get_new_symbol()
    placeholders = {
        info.name: mb.placeholder(
            shape=tuple(length if size == "length" else size for size in info.shape),
            dtype=types.numpy_type_to_builtin_type(np.dtype(info.dtype)),
        )
        for info in inputs
    }
    program = Program()
    with Function(placeholders, opset_version=form.target) as function:
        found = write(function.inputs)
        function.set_outputs(found)
    program.add_function("main", function)
    assert [var.name for var in found] == [info.name for info in outputs]
    model = ct.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        inputs=[ct.TensorType(info.name, shape=_shape(info, form), dtype=np.dtype(info.dtype).type) for info in inputs],
        minimum_deployment_target=form.target,
        compute_precision=ct.precision.FLOAT32,  # that is: leave the types as they are written
        pass_pipeline=weights_pass(form.precision),
        skip_model_load=True,
    )
    return MilSegment(model, _stated(inputs, form), _stated(outputs, form))


def _shape(info: TensorInfo, form: Form) -> Any:
    def of(length: Any) -> tuple[Any, ...]:
        return tuple(length if size == "length" else size for size in info.shape)

    if len(form.lengths) > 1:
        return ct.EnumeratedShapes(shapes=[of(length) for length in form.lengths], default=of(form.lengths[-1]))
    return ct.Shape(of(form.static_length or ct.RangeDim(1, form.max_length, default=form.max_length)))


def _stated(infos: tuple[TensorInfo, ...], form: Form) -> tuple[TensorInfo, ...]:
    """As the manifest says it: one length is a number, several or any are a name."""
    return tuple(
        TensorInfo(i.name, i.role, i.dtype, tuple(form.static_length or s if s == "length" else s for s in i.shape))
        for i in infos
    )


def _cast(x: Var, dtype: type[np.floating]) -> Var:
    builtin = types.numpy_type_to_builtin_type(np.dtype(dtype))
    return x if x.dtype == builtin else mb.cast(x=x, dtype="fp16" if dtype is np.float16 else "fp32")
