"""Canonical segments as MIL programs, for CoreML.

They are written with coremltools' builder and not traced, like the ONNX graphs: some 25 ops per layer with readable
names and an explicit dtype for every tensor, independent of the torch version. A batch is one row.

There are two layouts of the hidden states, from the same weights: ``tokens`` (1, S, d), as in the other targets, and
``ane`` (1, d, 1, S) for the Neural Engine. In ``ane``, every linear layer is a 1x1 convolution, and attention has no
transposition (Apple, "Deploying Transformers on the Apple Neural Engine", 2022).
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
"""A tensor of the program."""

LARGEST_WEIGHT = 64.0
"""With larger weights or biases, the outputs of an exit may exceed float16's 65504 at d = 768."""
SMALLEST_WEIGHT = 2.0**-10
"""If no weight of an exit is larger, many are below 2^-14, where float16 loses bits."""
SMALLEST_EPSILON = 2.0**-24
"""Smallest number of float16: BERT's 1e-12 would become 0."""


@dataclass(frozen=True)
class Form:
    """Form of a program: precision, layout and input lengths."""

    precision: Precision
    """The arithmetic of CompressedWeights is fp16."""
    target: ct.target
    """The oldest system that can read the program; it determines the versions of the ops."""
    lengths: tuple[int, ...]
    """Input lengths in tokens; empty: any from 1 to ``max_length``."""
    max_length: int
    ane: bool = False

    @property
    def dtype(self) -> type[np.floating]:
        """Dtype of weights and arithmetic. The layout defines that of hidden states; logits and LTE are float32."""
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
    """One segment as a model with the function ``main``, with its inputs and outputs for the manifest."""

    model: ct.models.MLModel
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def embeddings_model(segments: Segments, form: Form) -> MilSegment:
    """input_ids, attention_mask (and token_type_ids), (1, S) int32 -> hidden, attention_bias (1, 1, 1, S).

    With a relative position bias, attention_bias contains it and is (1, heads, S, S). With mean pooling, there is also
    token_weights (1, 1, S): 1 / tokens for a token, 0 for padding.
    """
    weights, layout = segments.embeddings, form.layout
    names = ["input_ids", *(["token_type_ids"] if weights.types is not None else []), "attention_mask"]
    inputs = tuple(TensorInfo(name, name, "int32", (1, "length")) for name in names)
    outputs = [layout.hidden("hidden", segments.hidden_size), *_shared_tensors(segments, form)]

    def write(given: dict[str, Var]) -> list[Var]:
        # The sum is float32 in every layout: the norm would multiply the rounding of these small numbers by some 20.
        total = _cast(
            mb.gather(x=layout.weight(weights.word_embeddings), indices=given["input_ids"], axis=0), np.float32
        )
        if weights.types is not None:
            kinds = mb.gather(x=layout.weight(weights.types), indices=given["token_type_ids"], axis=0)
            total = mb.add(x=total, y=_cast(kinds, np.float32))
        positions = _first(layout.weight(weights.positions[: form.max_length]), (0,), given, form)
        total = mb.add(x=total, y=_cast(positions, np.float32))
        hidden = TokensFirst(form.dtype).norm("norm", total, weights.norm)
        if weights.projection is not None:
            hidden = TokensFirst(form.dtype).linear("projection", _cast(hidden, form.dtype), weights.projection)
        mask = _cast(given["attention_mask"], form.dtype)
        masked = mb.mul(x=mb.sub(x=form.dtype(1), y=mask), y=form.dtype(MASKED))
        relative = weights.relative_bias
        bias = mb.expand_dims(x=masked, axes=[1, 2], name="attention_bias" if relative is None else "padding_bias")
        if relative is not None:
            table = layout.weight(_by_query_and_key(relative, form.max_length))
            bias = mb.add(x=bias, y=_first(table, (1, 2), given, form), name="attention_bias")
        found = [layout.enter("hidden", _cast(hidden, layout.residual)), bias]
        if segments.pooling == "mean":
            counted = _cast(given["attention_mask"], layout.residual)
            shares = mb.real_div(x=counted, y=mb.reduce_sum(x=counted, axes=[1], keep_dims=True))
            found.append(mb.expand_dims(x=shares, axes=[1], name="token_weights"))
        return found

    return _model(inputs, tuple(outputs), write, form)


def layer_model(segments: Segments, segment: LayerSegment, form: Form) -> MilSegment:
    """hidden_in and the other outputs of embeddings_model -> hidden_out, logits (1, C), lte (1,) of the layer with the
    exit. The layers before it run in the same program."""
    layout, head = form.layout, segment.exit
    inputs = (layout.hidden("hidden_in", segments.hidden_size), *_shared_tensors(segments, form))
    outputs = [
        layout.hidden("hidden_out", segments.hidden_size),
        TensorInfo("logits", "logits", "float32", (1, segments.outputs)),
    ]
    if head.lte is not None:
        outputs.append(TensorInfo("lte", "lte", "float32", (1,)))

    def write(given: dict[str, Var]) -> list[Var]:
        hidden, encoders = given["hidden_in"], (*segment.before, segment.encoder)
        for i, weights in enumerate(encoders, start=segment.layer - len(encoders) + 1):
            name = f"layer_{i:02d}"
            hidden = _encoder_layer(name, layout, hidden, given["attention_bias"], weights, segments.hidden_size)
        hidden = mb.identity(x=hidden, name="hidden_out")
        pooled = _cast(layout.pool(hidden, given.get("token_weights")), form.dtype)
        features = pooled
        if head.pooler is not None:
            features = mb.tanh(x=layout.linear("pooler", pooled, head.pooler))
        found = [hidden, _output("logits", layout, "classifier", features, head.classifier, (1, -1))]
        if head.lte is not None:  # the sigmoid is float32: float16 has only some 2000 steps between 0.5 and 1
            found.append(mb.sigmoid(x=_output("lte_logit", layout, "lte_linear", pooled, head.lte, (1,)), name="lte"))
        return found

    return _model(inputs, tuple(outputs), write, form)


class Layout(Protocol):
    """Memory layout of hidden states, and the ops that depend on it."""

    @property
    def dtype(self) -> type[np.floating]:
        """Dtype of weights and of the ops that use them."""

    @property
    def residual(self) -> type[np.floating]:
        """Dtype of the hidden states, within and between segments: sums, norms, and input of the pooling."""

    def weight(self, value: npt.NDArray) -> npt.NDArray:
        """The weight in the program's dtype."""

    def hidden(self, name: str, hidden_size: int) -> TensorInfo:
        """A hidden state as an input or output of a segment."""

    def enter(self, name: str, rows: Var) -> Var:
        """Converts (1, S, d) to this layout."""

    def linear(self, name: str, x: Var, linear: Linear) -> Var: ...

    def norm(self, name: str, x: Var, norm: Norm) -> Var:
        """Layer normalization in the dtype of ``residual``, which ``x`` has."""

    def attend(self, qkv: Var, bias: Var, heads: int, size: int) -> Var:
        """Fused queries, keys and values, and the bias (1, 1, 1, S) -> output of the attention, heads joined."""

    def pool(self, hidden: Var, token_weights: Var | None) -> Var:
        """Input of the exits: the mean with ``token_weights``, or the first token if they are None."""


@dataclass(frozen=True)
class TokensFirst:
    """Hidden states (1, S, d)."""

    dtype: type[np.floating]
    residual: ClassVar[type[np.floating]] = np.float32
    """float32 for every weight dtype: hidden states are as large as 10, where the spacing of float16 is 8e-3."""

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
        """The Neural Engine computes in float16 only; a float32 op would run on the CPU."""
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
    """From hidden state to hidden state."""

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


def _first(table: npt.NDArray, axes: tuple[int, ...], given: dict[str, Var], form: Form) -> Var:
    """The first S entries of a table along ``axes``."""
    if form.static_length is not None:
        part = tuple(slice(form.static_length if axis in axes else None) for axis in range(table.ndim))
        return mb.const(val=np.ascontiguousarray(table[part]))
    length = mb.slice_by_index(x=mb.shape(x=given["input_ids"]), begin=[1], end=[2])
    sizes = [length if axis in axes else np.array([size], np.int32) for axis, size in enumerate(table.shape)]
    return mb.slice_by_size(x=table, begin=[0] * table.ndim, size=mb.concat(values=sizes, axis=0))


def _by_query_and_key(relative_bias: npt.NDArray, longest: int) -> npt.NDArray:
    """(heads, 2 L - 1) by distance -> (heads, longest, longest). This saves a lookup on the device."""
    places = np.arange(longest)
    return relative_bias[:, places[None] - places[:, None] + (relative_bias.shape[1] - 1) // 2]


def _output(name: str, layout: Layout, op: str, x: Var, linear: Linear, shape: tuple[int, ...]) -> Var:
    """The output of an exit's linear layer in float32.

    If it may exceed the range of float16 (regression on prices, or on tiny values), the weights are divided by a power
    of two; this factor and the bias are applied in float32.
    """
    weight, bias = (float(np.abs(part).max()) for part in (linear.weight, linear.bias))
    in_range = SMALLEST_WEIGHT <= weight <= LARGEST_WEIGHT or weight == 0
    if layout.dtype is np.float32 or (in_range and bias <= LARGEST_WEIGHT):
        return _float32(name, layout.linear(op, x, linear), shape)
    factor = np.float32(1.0 if in_range else 2.0 ** np.ceil(np.log2(weight)))
    near_one = Linear(linear.weight / factor, np.zeros_like(linear.bias))
    found = _float32(f"{name}_scaled", layout.linear(op, x, near_one), shape)
    return mb.add(x=mb.mul(x=found, y=factor), y=linear.bias.astype(np.float32), name=name)


def _float32(name: str, x: Var, shape: tuple[int, ...]) -> Var:
    return mb.cast(x=mb.reshape(x=x, shape=shape), dtype="fp32", name=name)


def _shared_tensors(segments: Segments, form: Form) -> list[TensorInfo]:
    """Outputs of the embeddings segment that every layer reads."""
    relative = segments.embeddings.relative_bias
    shape = (1, 1, 1, "length") if relative is None else (1, len(relative), "length", "length")
    tensors = [TensorInfo("attention_bias", "attention_bias", form.float_name, shape)]
    if segments.pooling == "mean":
        name = np.dtype(form.layout.residual).name
        tensors.append(TensorInfo("token_weights", "token_weights", name, (1, 1, "length")))
    return tensors


def _model(inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], write: Any, form: Form) -> MilSegment:
    """The program of ``write`` (inputs by name -> outputs), as a model in memory."""
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
        compute_precision=ct.precision.FLOAT32,  # that is: keep the dtypes of the program
        pass_pipeline=weights_pass(form.precision),
        skip_model_load=True,
    )
    return MilSegment(model, _for_manifest(inputs, form), _for_manifest(outputs, form))


def _shape(info: TensorInfo, form: Form) -> Any:
    def of(length: Any) -> tuple[Any, ...]:
        return tuple(length if size == "length" else size for size in info.shape)

    if len(form.lengths) > 1:
        return ct.EnumeratedShapes(shapes=[of(length) for length in form.lengths], default=of(form.lengths[-1]))
    return ct.Shape(of(form.static_length or ct.RangeDim(1, form.max_length, default=form.max_length)))


def _for_manifest(infos: tuple[TensorInfo, ...], form: Form) -> tuple[TensorInfo, ...]:
    """The tensors as in the manifest: a single length is a number, several or any are a name."""
    return tuple(
        TensorInfo(i.name, i.role, i.dtype, tuple(form.static_length or s if s == "length" else s for s in i.shape))
        for i in infos
    )


def _cast(x: Var, dtype: type[np.floating]) -> Var:
    builtin = types.numpy_type_to_builtin_type(np.dtype(dtype))
    return x if x.dtype == builtin else mb.cast(x=x, dtype="fp16" if dtype is np.float16 else "fp32")
