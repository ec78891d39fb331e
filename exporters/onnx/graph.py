"""Canonical segments as ONNX graphs, node by node.

They are written and not traced: a layer is some 35 plain ai.onnx nodes with readable names and dynamic shapes, the
exporter chooses the opset, and twelve layers take a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ml_dtypes  # noqa: F401 - with it numpy knows "bfloat16"
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from berxit.exporters.segments import MASKED, ExitWeights, LayerSegment, Segments, scaled_queries
from berxit.runtime.bundle import FLOAT32_NODES, TensorInfo
from berxit.runtime.errors import BerxitError, InputError
from berxit.train.backbones import LayerWeights
from berxit.train.backbones.weights import Array, Linear, Norm

OPSET = 17
"""The first opset with LayerNormalization; ONNX Runtime 1.12 and TensorRT 8.6 support it."""

_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
}


@dataclass
class GraphWriter:
    """Collects nodes and weights. Every method adds an operator and returns the name of its output."""

    opset: int = OPSET
    dtype: str = "float32"
    """Dtype of weights and operators."""
    prefix: str = ""
    """Start of the names of the nodes."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, npt.NDArray] = field(default_factory=dict)
    constants: dict[str, npt.NDArray] = field(default_factory=dict)
    """Constant inputs: weights in which layers that share the file differ."""

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{self.prefix}{output}", **attributes))
        return output

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """The nodes that are added within compute in float32 in every precision, which their names state."""
        before = self.dtype, self.prefix
        self.dtype, self.prefix = "float32", FLOAT32_NODES
        yield
        self.dtype, self.prefix = before

    def weight(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = None) -> str:
        with np.errstate(over="ignore"):  # raises below, with the name
            stored = np.asarray(value, dtype=dtype or self.dtype, order="C")
        if not np.isfinite(stored).all():
            raise BerxitError(f"weight {name} has values that {stored.dtype} cannot hold: export in fp32")
        self.weights[name] = stored
        return name

    def cast(self, x: str, dtype: str) -> str:
        """A Cast to ``dtype``; x itself if the graph has that dtype."""
        return x if self.dtype == dtype else self.op("Cast", x, to=_TYPES[dtype])

    def constant(self, name: str, value: npt.NDArray) -> str:
        self.constants[name] = np.asarray(value, dtype=np.float32, order="C")
        return name

    def linear(self, name: str, x: str, linear: Linear, *, external: bool = False) -> str:
        add = self.constant if external else self.weight
        return self.op(
            "Add", self.op("MatMul", x, add(f"{name}.weight", linear.weight)), add(f"{name}.bias", linear.bias)
        )

    def norm(self, name: str, x: str, norm: Norm, output: str = "") -> str:
        if self.opset < 17:
            return self._norm_in_parts(name, x, norm, output)
        scale, shift = self.weight(f"{name}.scale", norm.scale), self.weight(f"{name}.shift", norm.shift)
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=norm.epsilon, output=output)

    def _norm_in_parts(self, name: str, x: str, norm: Norm, output: str) -> str:
        """LayerNormalization in basic operators, in float32: squares of outliers exceed the range of float16."""
        x, same = self.cast(x, "float32"), self.dtype == "float32"
        with self.in_float32():
            centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1], keepdims=1))
            variance = self.op("ReduceMean", self.op("Mul", centred, centred), axes=[-1], keepdims=1)
            deviation = self.op("Sqrt", self.op("Add", variance, self.weight(f"{name}.epsilon", norm.epsilon)))
            scaled = self.op("Mul", self.op("Div", centred, deviation), self.weight(f"{name}.scale", norm.scale))
            total = self.op("Add", scaled, self.weight(f"{name}.shift", norm.shift), output=output if same else "")
        return total if same else self.op("Cast", total, to=_TYPES[self.dtype], output=output)

    def activation(self, name: str, x: str) -> str:
        half, one = self.weight("half", 0.5), self.weight("one", 1.0)
        if name == "relu":
            return self.op("Relu", x)
        if name == "gelu":  # x / 2 (1 + erf(x / sqrt 2)), in the form that ONNX Runtime fuses
            gate = self.op("Erf", self.op("Div", x, self.weight("sqrt_2", np.sqrt(2.0))))
        elif name in ("gelu_new", "gelu_pytorch_tanh"):  # x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
            cube = self.op("Mul", self.op("Pow", x, self.weight("three", 3.0)), self.weight("gelu_cubic", 0.044715))
            inner = self.op("Mul", self.op("Add", x, cube), self.weight("gelu_scale", np.sqrt(2.0 / np.pi)))
            gate = self.op("Tanh", inner)
        else:
            raise InputError(f"activation '{name}' is not supported: the backbone must use gelu, gelu_new or relu")
        return self.op("Mul", self.op("Mul", x, self.op("Add", gate, one)), half)

    def finish(self, name: str, inputs: list[TensorInfo], outputs: list[TensorInfo]) -> onnx.ModelProto:
        used = {i for node in self.nodes for i in node.input}
        graph = helper.make_graph(
            self.nodes,
            name,
            [_value(info) for info in inputs],
            [_value(info) for info in outputs],
            [numpy_helper.from_array(array, key) for key, array in self.weights.items() if key in used],
        )
        opset = helper.make_opsetid("", self.opset)
        ir_version = 8 if self.opset < 19 else 9
        model = helper.make_model(graph, opset_imports=[opset], ir_version=ir_version, producer_name="berxit")
        onnx.checker.check_model(model, full_check=True)
        return model


@dataclass(frozen=True)
class OnnxSegment:
    """A graph with its inputs, outputs and constant inputs for the manifest."""

    model: onnx.ModelProto
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    constants: dict[str, npt.NDArray]


def externalize_tables(graph: OnnxSegment) -> OnnxSegment:
    """The embeddings segment with the tables that ``input_ids`` indexes as constant inputs, which are stored in
    separate files. The graph accepts any number of rows (``vocabulary``)."""
    model, inputs, constants = onnx.ModelProto(), list(graph.inputs), dict(graph.constants)
    model.CopyFrom(graph.model)
    looked_up = {
        node.input[0] for node in model.graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"
    }
    for stored in [tensor for tensor in model.graph.initializer if tensor.name in looked_up]:
        value = numpy_helper.to_array(stored)
        inputs.append(TensorInfo(stored.name, "constant", str(value.dtype), value.shape))
        constants[stored.name] = value
        shape = ("vocabulary", *value.shape[1:])
        model.graph.input.append(helper.make_tensor_value_info(stored.name, stored.data_type, shape))
        model.graph.initializer.remove(stored)
    onnx.checker.check_model(model, full_check=True)
    return OnnxSegment(model, tuple(inputs), graph.outputs, constants)


def embeddings_graph(segments: Segments, *, opset: int = OPSET, dtype: str = "float32") -> OnnxSegment:
    """input_ids, attention_mask (and token_type_ids), (B, S) int32 -> hidden (B, S, d), attention_bias (B, 1, 1, S).

    With a relative position bias, attention_bias contains it and is (B, heads, S, S). With mean pooling, there is also
    token_weights (B, 1, S): 1 / tokens for a token, 0 for padding. The outputs are in ``dtype``.
    """
    g = GraphWriter(opset, dtype)
    weights = segments.embeddings
    tokens: tuple[str | int, ...] = ("batch", "length")
    inputs = [TensorInfo("input_ids", "input_ids", "int32", tokens)]
    total = g.op("Gather", g.weight("words", weights.word_embeddings), "input_ids", axis=0)
    if weights.types is not None:
        inputs.append(TensorInfo("token_type_ids", "token_type_ids", "int32", tokens))
        total = g.op("Add", total, g.op("Gather", g.weight("types", weights.types), "token_type_ids", axis=0))
    start, axis = g.weight("zero", [0], np.int64), g.weight("rows", [0], np.int64)
    one, two = g.weight("length_axis", [1], np.int64), g.weight("after_length", [2], np.int64)
    length = g.op("Slice", g.op("Shape", "input_ids"), one, two, axis)  # TensorRT 8.5 may not support Shape's own start
    positions = g.op("Slice", g.weight("positions", weights.positions), start, length, axis)
    hidden = g.norm("norm", g.op("Add", total, positions), weights.norm, "" if weights.projection else "hidden")
    if weights.projection is not None:
        hidden = g.op("Identity", g.linear("projection", hidden, weights.projection), output="hidden")
    inputs.append(TensorInfo("attention_mask", "attention_mask", "int32", tokens))
    mask = g.op("Cast", "attention_mask", to=_TYPES[dtype])
    bias = g.op("Mul", g.op("Sub", g.weight("one", 1.0), mask), g.weight("masked", MASKED))
    padding_name = "attention_bias" if weights.relative_bias is None else "padding_bias"
    padding = g.op("Unsqueeze", bias, g.weight("heads_and_queries", [1, 2], np.int64), output=padding_name)
    if weights.relative_bias is not None:
        g.op("Add", padding, _relative_bias(g, weights.relative_bias, length), output="attention_bias")
    outputs = [_hidden("hidden", segments.hidden_size, dtype), *_shared_tensors(segments, dtype)]
    if segments.pooling == "mean":
        total = g.op("ReduceSum", mask, g.weight("last_axis", [1], np.int64), keepdims=1)
        shares = g.op("Div", mask, total)
        g.op("Unsqueeze", shares, g.weight("last_axis", [1], np.int64), output="token_weights")
    return OnnxSegment(g.finish("embeddings", inputs, outputs), tuple(inputs), tuple(outputs), {})


def _relative_bias(g: GraphWriter, bias: Array, length: str) -> str:
    """(heads, S, S): the bias of each distance between key and query, for the S tokens of the input."""
    longest = (bias.shape[1] + 1) // 2
    first = [g.weight(name, [0], np.int64) for name in ("zero", "rows")]
    places = g.op("Slice", g.weight("places", np.arange(longest), np.int64), first[0], length, first[1])
    keys = g.op("Unsqueeze", places, first[1])
    queries = g.op("Unsqueeze", places, g.weight("last_axis", [1], np.int64))
    distances = g.op("Add", g.op("Sub", keys, queries), g.weight("longest", longest - 1, np.int64))
    return g.op("Gather", g.weight("relative_bias", bias), distances, axis=1)


def layer_graph(
    segments: Segments,
    segment: LayerSegment,
    *,
    opset: int = OPSET,
    dtype: str = "float32",
    short_end: bool = False,
) -> OnnxSegment:
    """hidden_in (B, S, d) and the other outputs of embeddings_graph -> hidden_out (B, S, d), logits (B, C), lte (B,).
    Logits of a tokens model are (B, S, C).

    If layers share their encoder weights, the weights of the head are constant inputs, so that the layers share a file.
    The encoder layer computes in ``dtype``; the exit in float32, because its outputs are compared with thresholds.

    ``short_end``: the last layer computes only the first token if its exit reads only that one (single-query
    attention). There is then no hidden_out, which nothing would read.
    """
    g = GraphWriter(opset, dtype)
    shared, hidden_size = segments.shared(segment), segments.hidden_size
    hidden, encoders = "hidden_in", (*segment.before, segment.encoder)
    first_only = short_end and segment is segments.layers[-1] and segments.pooling == "first" and not shared
    first_only = first_only and not segments.words
    prefixes: dict[int, str] = {}  # of weights; layers that share weights have the same prefix
    for place, encoder in enumerate(encoders):
        prefix = prefixes.setdefault(id(encoder), f"{len(prefixes)}/" if prefixes else "")
        last = place == len(encoders) - 1
        output = "hidden_out" if last else f"hidden_{place}"
        attention = _single_query_attention if last and first_only else _self_attention
        hidden = _encoder_layer(g, encoder, hidden_size, hidden, prefix, output, attention)
    if segments.pooling == "mean":
        pooled = g.op("Squeeze", g.op("MatMul", "token_weights", hidden), g.weight("last_axis", [1], np.int64))
    else:
        pooled = g.op("Gather", hidden, g.weight("first_token", 0, np.int64), axis=1)
    pooled = g.cast(pooled, "float32")
    read = g.cast(hidden, "float32") if segments.words else pooled
    with g.in_float32():
        _exit(g, segment.exit, read, pooled, external=shared)
    declared = [] if first_only else [_hidden("hidden_out", hidden_size, dtype)]
    size = ("batch", "length", segments.outputs) if segments.words else ("batch", segments.outputs)
    declared.append(TensorInfo("logits", "logits", "float32", size))
    if segment.exit.lte is not None:
        declared.append(TensorInfo("lte", "lte", "float32", ("batch",)))
    inputs = [_hidden("hidden_in", hidden_size, dtype), *_shared_tensors(segments, dtype)]
    inputs += [TensorInfo(name, "constant", "float32", value.shape) for name, value in g.constants.items()]
    name = "body" if shared else f"layer_{segment.layer:02d}"
    return OnnxSegment(g.finish(name, inputs, declared), tuple(inputs), tuple(declared), g.constants)


def _exit(g: GraphWriter, head: ExitWeights, read: str, pooled: str, *, external: bool) -> None:
    """From ``read``, (B, d) or (B, S, d), to logits (B, C) or (B, S, C), and from ``pooled`` (B, d) to lte (B,).
    ``external``: the head's weights are constant inputs."""
    features = read
    if head.pooler is not None:
        features = g.op("Tanh", g.linear("pooler", read, head.pooler, external=external))
    g.op("Identity", g.linear("classifier", features, head.classifier, external=external), output="logits")
    if head.lte is not None:
        certainty = g.op("Sigmoid", g.linear("lte", pooled, head.lte))
        g.op("Squeeze", certainty, g.weight("last_axis", [1], np.int64), output="lte")


Attention = Callable[[GraphWriter, LayerWeights, int, str, str], tuple[str, str]]
"""(graph, layer, d, hidden, prefix) -> attention output of Q tokens (B, Q, d), and their hidden states (B, Q, d)."""


def _encoder_layer(
    g: GraphWriter, layer: LayerWeights, hidden_size: int, hidden: str, prefix: str, output: str, attention: Attention
) -> str:
    """From ``hidden`` to ``output``, (B, S, d) both; ``prefix``: of the names of its weights."""
    context, hidden = attention(g, layer, hidden_size, hidden, prefix)
    attended = g.op("Add", g.linear(f"{prefix}output", context, layer.output), hidden)
    attended = g.norm(f"{prefix}attention_norm", attended, layer.attention_norm)
    wide = g.activation(layer.activation, g.linear(f"{prefix}up", attended, layer.up))
    total = g.op("Add", g.linear(f"{prefix}down", wide, layer.down), attended)
    return g.norm(f"{prefix}output_norm", total, layer.output_norm, output=output)


def _self_attention(g: GraphWriter, layer: LayerWeights, hidden_size: int, hidden: str, prefix: str) -> tuple[str, str]:
    """Self-attention."""
    qkv = g.linear(f"{prefix}qkv", hidden, scaled_queries(layer, hidden_size))
    parts = _split(g, qkv, ("queries", "keys", "values"), hidden_size)
    return _attend(g, layer, hidden_size, parts, "attention_bias"), hidden


def _single_query_attention(
    g: GraphWriter, layer: LayerWeights, hidden_size: int, hidden: str, prefix: str
) -> tuple[str, str]:
    """Single-query attention: only the first token has a query."""
    qkv, place = scaled_queries(layer, hidden_size), g.weight("first_row", [0], np.int64)
    first = g.op("Gather", hidden, place, axis=1)
    queries, others = (
        Linear(np.ascontiguousarray(qkv.weight[:, columns]), qkv.bias[columns])
        for columns in (slice(hidden_size), slice(hidden_size, None))
    )
    query = g.linear(f"{prefix}queries", first, queries)
    keys_values = g.linear(f"{prefix}keys_values", hidden, others)
    bias = g.op("Gather", "attention_bias", place, axis=2)  # (B, 1 or heads, 1, S)
    parts = [query, *_split(g, keys_values, ("keys", "values"), hidden_size)]
    return _attend(g, layer, hidden_size, parts, bias), first


def _split(g: GraphWriter, x: str, names: tuple[str, ...], hidden_size: int) -> list[str]:
    parts = [f"{x}_{name}" for name in names]
    sizes = g.weight(f"{len(names)}_parts", [hidden_size] * len(names), np.int64)
    g.nodes.append(helper.make_node("Split", [x, sizes], parts, name=f"{x}_split", axis=-1))
    return parts


def _attend(g: GraphWriter, layer: LayerWeights, hidden_size: int, parts: list[str], bias: str) -> str:
    """Scaled dot-product attention of queries (B, Q, d), keys and values (B, S, d): (B, Q, d)."""
    by_head = g.weight("by_head", [0, 0, layer.heads, hidden_size // layer.heads], np.int64)
    queries, keys, values = (
        g.op("Transpose", g.op("Reshape", part, by_head), perm=perm)
        for part, perm in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    weights = g.op("Softmax", g.op("Add", g.op("MatMul", queries, keys), bias), axis=-1)
    context = g.op("Transpose", g.op("MatMul", weights, values), perm=[0, 2, 1, 3])
    return g.op("Reshape", context, g.weight("joined", [0, 0, hidden_size], np.int64))


def _hidden(name: str, hidden_size: int, dtype: str) -> TensorInfo:
    return TensorInfo(name, "hidden", dtype, ("batch", "length", hidden_size))


def _shared_tensors(segments: Segments, dtype: str) -> list[TensorInfo]:
    """Outputs of the embeddings segment that every layer reads."""
    relative = segments.embeddings.relative_bias
    shape = ("batch", 1, 1, "length") if relative is None else ("batch", len(relative), "length", "length")
    tensors = [TensorInfo("attention_bias", "attention_bias", dtype, shape)]
    if segments.pooling == "mean":
        tensors.append(TensorInfo("token_weights", "token_weights", dtype, ("batch", 1, "length")))
    return tensors


def _value(info: TensorInfo) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(info.name, _TYPES[info.dtype], info.shape)
