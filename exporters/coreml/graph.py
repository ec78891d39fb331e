"""Canonical segments as functions of MIL programs, for CoreML.

They are written with coremltools' builder and not traced, like the ONNX graphs: some 25 ops per layer with readable
names and an explicit dtype for every tensor, independent of the torch version. A batch is one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.exporters.coreml.int8_activations import Int8Activation
from berxit.exporters.coreml.layouts import ChannelsFirst, Layout, TokensFirst, Var, cast
from berxit.exporters.coreml.package import new_function
from berxit.exporters.coreml.positions import LayerPositions, Length
from berxit.exporters.coreml.silenced_coremltools import Function, ct, get_new_symbol, mb, types
from berxit.exporters.coreml.weights import Weights
from berxit.exporters.segments import MASKED, ExitWeights, LayerSegment, Segments, scaled_queries
from berxit.runtime.bundle import TensorInfo
from berxit.runtime.errors import InputError
from berxit.train.backbones import LayerWeights
from berxit.train.backbones.weights import Linear, Norm

LARGEST_WEIGHT = 64.0
"""With larger weights or biases, the outputs of an exit may exceed float16's 65504 at d = 768."""
SMALLEST_WEIGHT = 2.0**-10
"""If no weight of an exit is larger, many are below 2^-14, where float16 loses bits."""


@dataclass(frozen=True)
class Form:
    """Form of the functions: weights, layout, input lengths, and the variants of the bundle."""

    weights: Weights
    target: ct.target
    """The oldest system that can read the program; it determines the versions of the ops."""
    lengths: tuple[int, ...]
    """Input lengths in tokens; empty: any from 1 to ``max_length``."""
    max_length: int
    """Longest input of the bundle in tokens. It determines the rows of the tables, which all functions share."""
    ane: bool = False
    float16_exits: bool = False
    """Logits and the logit of LTE are float16, and LTE has no sigmoid, so that no op needs the CPU."""
    int8: Mapping[str, Int8Activation] = field(default_factory=dict)
    """Name of a linear layer -> quantization of its input."""

    @property
    def dtype(self) -> type[np.floating]:
        """Dtype of weights and arithmetic. The layout defines that of hidden states."""
        return self.weights.dtype

    @property
    def layout(self) -> Layout:
        return ChannelsFirst(self.weights, self.int8) if self.ane else TokensFirst(self.weights, self.int8)

    @property
    def exit_dtype(self) -> type[np.floating]:
        return np.float16 if self.float16_exits else np.float32

    @property
    def static_length(self) -> int | None:
        return self.lengths[0] if len(self.lengths) == 1 else None


@dataclass(frozen=True)
class SegmentFunction:
    """One function of a package, with its inputs and outputs for the manifest."""

    function: Function
    inputs: tuple[TensorInfo, ...]
    """Their shapes have "length" for the number of tokens."""
    outputs: tuple[TensorInfo, ...]


def embeddings_function(segments: Segments, form: Form) -> SegmentFunction:
    """input_ids, attention_mask (and token_type_ids), (1, S) int32 -> hidden, attention_bias (1, 1, 1, S).

    With a relative position bias, attention_bias contains it and is (1, heads, S, S). With mean pooling, there is also
    token_weights (1, 1, S): 1 / tokens for a token, 0 for padding.
    """
    outputs = (form.layout.hidden("hidden", segments.hidden_size), *_shared_tensors(segments, form))
    return _function(_token_inputs(segments), outputs, lambda given: _embed(segments, form, given), form)


def layer_function(
    segments: Segments, segment: LayerSegment, form: Form, *, external_head: bool = False
) -> SegmentFunction:
    """hidden_in and the other outputs of embeddings_function -> hidden_out, and the outputs of the exit. The layers
    before it run in the same function.

    ``external_head``: the tensors of ``head_tensors`` are further inputs, so that all layers that share their encoder
    weights share the function.
    """
    layout, head = form.layout, segment.exit
    constants = head_tensors(head, form) if external_head else {}
    inputs = (
        layout.hidden("hidden_in", segments.hidden_size),
        *_shared_tensors(segments, form),
        *(TensorInfo(name, "constant", value.dtype.name, value.shape) for name, value in constants.items()),
    )
    outputs = (layout.hidden("hidden_out", segments.hidden_size), *_exit_tensors(segments, head, form))

    def write(given: dict[str, Var]) -> list[Var]:
        length = _length(form, given["hidden_in"], form.layout.tokens)
        hidden = _encode(segments, segment, form, given["hidden_in"], given["attention_bias"], length)
        hidden = mb.identity(x=hidden, name="hidden_out")
        read = _exit_inputs(segments, head, form, hidden, given.get("token_weights"))
        return [hidden, *(_external_exit(head, form, read, given) if external_head else _exit(head, form, read))]

    return _function(inputs, outputs, write, form)


def full_function(segments: Segments, form: Form) -> SegmentFunction:
    """Full depth as one graph: the inputs of embeddings_function -> the outputs of the last exit."""
    last = segments.layers[-1].exit

    def write(given: dict[str, Var]) -> list[Var]:
        hidden, bias, *rest = _embed(segments, form, given)
        length = _length(form, given["input_ids"], 1)
        for segment in segments.layers:
            hidden = _encode(segments, segment, form, hidden, bias, length)
        return _exit(last, form, _exit_inputs(segments, last, form, hidden, rest[0] if rest else None))

    return _function(_token_inputs(segments), _exit_tensors(segments, last, form), write, form)


def head_tensors(head: ExitWeights, form: Form) -> dict[str, npt.NDArray]:
    """Input of ``layer_function`` with an external head -> its value for one layer.

    Matrices are (inputs, outputs), in the dtype of the arithmetic, divided by ``scale``. ``scale`` and the bias have
    the dtype of the outputs.
    """
    found: dict[str, npt.NDArray] = {}
    if head.pooler is not None:
        found["pooler_weight"] = form.weights.plain(head.pooler.weight)
        found["pooler_bias"] = form.weights.plain(head.pooler.shift)
    for name, linear in _outputs(head):
        scale = _scale(linear, form.dtype)
        found[f"{name}_weight"] = form.weights.plain(linear.weight / scale)
        found[f"{name}_scale"] = np.array([scale], form.exit_dtype)
        found[f"{name}_bias"] = linear.shift.astype(form.exit_dtype)
    return found


def check_float16_exits(segments: Segments) -> None:
    """Raises InputError for an exit whose outputs may exceed the range of float16."""
    for segment in segments.layers:
        for name, linear in _outputs(segment.exit):
            if not _in_range(linear):
                raise InputError(
                    f"--target-options float16-exits: the {name} of layer {segment.layer} may exceed the range of"
                    " float16: export without this option"
                )


def _token_inputs(segments: Segments) -> tuple[TensorInfo, ...]:
    types_ = ["token_type_ids"] if segments.embeddings.types is not None else []
    return tuple(TensorInfo(name, name, "int32", (1, "length")) for name in ("input_ids", *types_, "attention_mask"))


def _shared_tensors(segments: Segments, form: Form) -> list[TensorInfo]:
    """Outputs of the embeddings segment that every layer reads."""
    relative = segments.embeddings.relative_bias
    shape = (1, 1, 1, "length") if relative is None else (1, len(relative), "length", "length")
    tensors = [TensorInfo("attention_bias", "attention_bias", np.dtype(form.dtype).name, shape)]
    if segments.pooling == "mean":
        name = np.dtype(form.layout.residual).name
        tensors.append(TensorInfo("token_weights", "token_weights", name, (1, 1, "length")))
    return tensors


def _exit_tensors(segments: Segments, head: ExitWeights, form: Form) -> tuple[TensorInfo, ...]:
    dtype = np.dtype(form.exit_dtype).name
    shape = (1, "length", segments.outputs) if segments.words else (1, segments.outputs)
    logits = TensorInfo("logits", "logits", dtype, shape)
    if head.lte is None:
        return (logits,)
    name = "lte_logit" if form.float16_exits else "lte"
    return (logits, TensorInfo(name, name, dtype, (1,)))


def _embed(segments: Segments, form: Form, given: dict[str, Var]) -> list[Var]:
    """hidden, attention_bias and, with mean pooling, token_weights."""
    weights, layout, dtype = segments.embeddings, form.layout, form.dtype
    rows = TokensFirst(form.weights)
    # The sum is float32 in every layout: the norm would multiply the rounding of these small numbers by some 20.
    words = mb.gather(x=form.weights.matrix(weights.word_embeddings), indices=given["input_ids"], axis=0)
    total = cast(words, np.float32)
    if weights.types is not None:
        kinds = mb.gather(x=form.weights.matrix(weights.types), indices=given["token_type_ids"], axis=0)
        total = mb.add(x=total, y=cast(kinds, np.float32))
    length = _length(form, given["input_ids"], 1)
    if weights.positions is not None:
        positions = weights.positions[: form.max_length]
        rows_of_tokens = length.first(positions, (0,), form.weights.matrix(positions))
        total = mb.add(x=total, y=cast(rows_of_tokens, np.float32))
    hidden = rows.norm("norm", total, weights.norm)
    if weights.projection is not None:
        hidden = rows.linear("projection", cast(hidden, dtype), weights.projection)
    mask = cast(given["attention_mask"], dtype)
    masked = mb.mul(x=mb.sub(x=dtype(1), y=mask), y=dtype(MASKED))
    relative = weights.relative_bias
    bias = mb.expand_dims(x=masked, axes=[1, 2], name="attention_bias" if relative is None else "padding_bias")
    if relative is not None:
        table = _by_query_and_key(relative, form.max_length)
        bias = mb.add(x=bias, y=length.first(table, (1, 2), form.weights.matrix(table)), name="attention_bias")
    found = [layout.enter("hidden", cast(hidden, layout.residual)), bias]
    if segments.pooling == "mean":
        counted = cast(given["attention_mask"], layout.residual)
        shares = mb.real_div(x=counted, y=mb.reduce_sum(x=counted, axes=[1], keep_dims=True))
        found.append(mb.expand_dims(x=shares, axes=[1], name="token_weights"))
    return found


def _encode(segments: Segments, segment: LayerSegment, form: Form, hidden: Var, bias: Var, length: Length) -> Var:
    """All encoder layers of a segment."""
    encoders = (*segment.before, segment.encoder)
    for i, weights in enumerate(encoders, start=segment.layer - len(encoders) + 1):
        positions = LayerPositions(weights, form.layout, length)
        hidden = _encoder_layer(f"layer_{i:02d}", form.layout, hidden, bias, weights, segments.hidden_size, positions)
    return hidden


def _encoder_layer(
    name: str, layout: Layout, x: Var, bias: Var, layer: LayerWeights, hidden_size: int, positions: LayerPositions
) -> Var:
    """From hidden state to hidden state."""
    dtype = layout.weights.dtype

    def norm(kind: str, value: Var, weights: Norm | None, *, before: bool) -> Var:
        """The norm of attention or feed-forward if it is ``before``, or after, them."""
        if weights is None or before != layer.pre_norm:
            return value
        return layout.norm(f"{name}_{kind}", value, weights)

    def add(new: Var, old: Var) -> Var:
        return mb.add(x=cast(new, layout.residual), y=old)

    read = cast(norm("attention_norm", x, layer.attention_norm, before=True), dtype)
    qkv = layout.linear(f"{name}_qkv", read, scaled_queries(layer, hidden_size))
    context = layout.attend(qkv, positions.window(bias), layer.heads, hidden_size // layer.heads, positions)
    attended = add(layout.linear(f"{name}_output", context, layer.output), x)
    attended = norm("attention_norm", attended, layer.attention_norm, before=False)
    wide = cast(norm("output_norm", attended, layer.output_norm, before=True), dtype)
    inner = _inner(layer, layout, layout.linear(f"{name}_up", wide, layer.up))
    total = add(layout.linear(f"{name}_down", inner, layer.down), attended)
    return norm("output_norm", total, layer.output_norm, before=False)


def _inner(layer: LayerWeights, layout: Layout, wide: Var) -> Var:
    """The activation of the feed-forward, with its gate."""
    if not layer.gated:
        return _activation(layer.activation, wide)
    value, gate = mb.split(x=wide, num_splits=2, axis=layout.channels)
    return mb.mul(x=_activation(layer.activation, value), y=gate)


class _ExitInputs(NamedTuple):
    """Inputs of an exit, in the dtype of the weights."""

    classifier: Var
    """The pooled hidden state; for a tokens model the states of all tokens, in the layout of hidden states."""
    lte: Var
    """The pooled hidden state."""
    logits: tuple[int, ...]
    """Shape of the logits: (1, C), or (1, S, C) for a tokens model; -1 for one size."""


def _exit_inputs(
    segments: Segments, head: ExitWeights, form: Form, hidden: Var, token_weights: Var | None
) -> _ExitInputs:
    if head.norm is not None:
        hidden = form.layout.norm("exit_norm", hidden, head.norm)
    pooled = cast(form.layout.pool(hidden, token_weights), form.dtype)
    if segments.words:
        return _ExitInputs(cast(hidden, form.dtype), pooled, (1, -1, segments.outputs))
    return _ExitInputs(pooled, pooled, (1, -1))


def _length(form: Form, x: Var, axis: int) -> Length:
    """The number of tokens of a function's inputs, which is a size of ``x``."""
    if form.static_length is not None:
        return Length(form.static_length, form.max_length)
    return Length(mb.slice_by_index(x=mb.shape(x=x), begin=[axis], end=[axis + 1]), form.max_length)


def _activation(name: str, x: Var) -> Var:
    if name == "relu":
        return mb.relu(x=x)
    if name == "gelu":
        return mb.gelu(x=x, mode="EXACT")
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return mb.gelu(x=x, mode="TANH_APPROXIMATION")
    raise InputError(f"activation '{name}' is not supported: the backbone must use gelu, gelu_new or relu")


def _outputs(head: ExitWeights) -> list[tuple[str, Linear]]:
    """The linear layers whose results a segment returns."""
    return [("classifier", head.classifier), *([("lte", head.lte)] if head.lte is not None else [])]


def _exit(head: ExitWeights, form: Form, read: _ExitInputs) -> list[Var]:
    """Outputs of an exit."""
    layout, features = form.layout, read.classifier
    if head.pooler is not None:
        features = mb.tanh(x=layout.linear("pooler", features, head.pooler))

    def output(name: str, op: str, x: Var, linear: Linear, shape: tuple[int, ...]) -> Var:
        """A linear layer in the dtype of the outputs. If its result may exceed the range of float16 (regression on
        prices, or on tiny values), the weights are divided by a power of two; this factor and the bias are applied in
        float32."""
        of_tokens = len(shape) == 3
        if layout.weights.dtype is np.float32 or _in_range(linear):
            found = layout.linear(op, x, linear)
            return _as_output(name, layout.rows(found) if of_tokens else found, shape, form)
        scale = np.float32(_scale(linear, form.dtype))
        near_one = Linear(linear.weight / scale, None)
        found = layout.linear(op, x, near_one)
        found = _as_output(f"{name}_scaled", layout.rows(found) if of_tokens else found, shape, form)
        return mb.add(x=mb.mul(x=found, y=scale), y=linear.shift.astype(np.float32), name=name)

    found = [output("logits", "classifier", features, head.classifier, read.logits)]
    if head.lte is not None:
        found.append(_lte(output("lte_logit", "lte_linear", read.lte, head.lte, (1,)), form))
    return found


def _external_exit(head: ExitWeights, form: Form, read: _ExitInputs, given: dict[str, Var]) -> list[Var]:
    """Outputs of an exit whose weights are inputs."""
    features = pooled = mb.reshape(x=read.lte, shape=(1, -1))
    if len(read.logits) == 3:
        features = form.layout.rows(read.classifier)
    if head.pooler is not None:
        product = mb.matmul(x=pooled, y=given["pooler_weight"])
        features = mb.tanh(x=mb.add(x=product, y=given["pooler_bias"]))
    found = []
    for (part, _), x, (name, shape) in zip(
        _outputs(head), (features, pooled), (("logits", read.logits), ("lte_logit", (1,))), strict=False
    ):
        product = mb.matmul(x=x, y=given[f"{part}_weight"])
        scaled = mb.mul(x=cast(product, form.exit_dtype), y=given[f"{part}_scale"])
        found.append(mb.reshape(x=mb.add(x=scaled, y=given[f"{part}_bias"]), shape=shape, name=name))
    return found if head.lte is None else [found[0], _lte(found[1], form)]


def _lte(logit: Var, form: Form) -> Var:
    """LTE certainty in float32, because float16 has only some 2000 steps between 0.5 and 1; or its logit."""
    return logit if form.float16_exits else mb.sigmoid(x=logit, name="lte")


def _as_output(name: str, x: Var, shape: tuple[int, ...], form: Form) -> Var:
    if form.float16_exits:
        return mb.reshape(x=x, shape=shape, name=name)
    return mb.cast(x=mb.reshape(x=x, shape=shape), dtype="fp32", name=name)


def _in_range(linear: Linear) -> bool:
    """True if the weights and the outputs of an exit's linear layer fit into float16."""
    weight, bias = _largest(linear)
    return _weight_in_range(weight) and bias <= LARGEST_WEIGHT


def _scale(linear: Linear, dtype: type[np.floating]) -> float:
    """Power of two that the weights are divided by."""
    weight, _ = _largest(linear)
    return 1.0 if dtype is np.float32 or _weight_in_range(weight) else float(2.0 ** np.ceil(np.log2(weight)))


def _largest(linear: Linear) -> tuple[float, float]:
    """Largest absolute weight and bias."""
    return float(np.abs(linear.weight).max()), float(np.abs(linear.shift).max())


def _weight_in_range(weight: float) -> bool:
    return SMALLEST_WEIGHT <= weight <= LARGEST_WEIGHT or weight == 0


def _by_query_and_key(relative_bias: npt.NDArray, longest: int) -> npt.NDArray:
    """(heads, 2 L - 1) by distance -> (heads, longest, longest). This saves a lookup on the device."""
    places = np.arange(longest)
    return relative_bias[:, places[None] - places[:, None] + (relative_bias.shape[1] - 1) // 2]


def _function(
    inputs: tuple[TensorInfo, ...],
    outputs: tuple[TensorInfo, ...],
    write: Callable[[dict[str, Var]], list[Var]],
    form: Form,
) -> SegmentFunction:
    """The function that ``write`` defines (inputs by name -> outputs)."""
    length = form.static_length or get_new_symbol()
    placeholders = {
        info.name: mb.placeholder(
            shape=tuple(length if size == "length" else size for size in info.shape),
            dtype=types.numpy_type_to_builtin_type(np.dtype(info.dtype)),
        )
        for info in inputs
    }
    with new_function(placeholders, form.target) as function:
        found = write(function.inputs)
        function.set_outputs(found)
    assert [var.name for var in found] == [info.name for info in outputs]
    function.set_input_types(
        tuple(ct.TensorType(i.name, shape=_shape(i, form), dtype=np.dtype(i.dtype).type) for i in inputs)
    )
    return SegmentFunction(function, inputs, outputs)


def _shape(info: TensorInfo, form: Form) -> Any:
    def of(length: Any) -> tuple[Any, ...]:
        return tuple(length if size == "length" else size for size in info.shape)

    if "length" not in info.shape:
        return ct.Shape(of(None))
    if len(form.lengths) > 1:
        return ct.EnumeratedShapes(shapes=[of(length) for length in form.lengths], default=of(form.lengths[-1]))
    return ct.Shape(of(form.static_length or ct.RangeDim(1, form.max_length, default=form.max_length)))
