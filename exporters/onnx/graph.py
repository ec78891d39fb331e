"""Canonical segments as ONNX graphs, node by node.

They are written and not traced: a layer is some 35 plain ai.onnx nodes with readable names and dynamic shapes, the
exporter chooses the opset, and twelve layers take a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from berxit.exporters.onnx.attention import AttentionForm, attend
from berxit.exporters.onnx.writer import OPSET, TYPES, GraphWriter
from berxit.exporters.segments import MASKED, ExitWeights, LayerSegment, Segments
from berxit.runtime.bundle import TensorInfo
from berxit.train.backbones import LayerWeights
from berxit.train.backbones.weights import Array


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
    if weights.positions is not None:
        total = g.op("Add", total, g.first(g.weight("positions", weights.positions), g.length("input_ids")))
    hidden = g.norm("norm", total, weights.norm, "" if weights.projection else "hidden")
    if weights.projection is not None:
        hidden = g.op("Identity", g.linear("projection", hidden, weights.projection), output="hidden")
    inputs.append(TensorInfo("attention_mask", "attention_mask", "int32", tokens))
    mask = g.op("Cast", "attention_mask", to=TYPES[dtype])
    bias = g.op("Mul", g.op("Sub", g.weight("one", 1.0), mask), g.weight("masked", MASKED))
    padding_name = "attention_bias" if weights.relative_bias is None else "padding_bias"
    padding = g.op("Unsqueeze", bias, g.weight("heads_and_queries", [1, 2], np.int64), output=padding_name)
    if weights.relative_bias is not None:
        bias = _relative_bias(g, weights.relative_bias, g.length("input_ids"))
        g.op("Add", padding, bias, output="attention_bias")
    outputs = [_hidden("hidden", segments.hidden_size, dtype), *_shared_tensors(segments, dtype)]
    if segments.pooling == "mean":
        total = g.op("ReduceSum", mask, g.weight("last_axis", [1], np.int64), keepdims=1)
        shares = g.op("Div", mask, total)
        g.op("Unsqueeze", shares, g.weight("last_axis", [1], np.int64), output="token_weights")
    return OnnxSegment(g.finish("embeddings", inputs, outputs), tuple(inputs), tuple(outputs), {})


def _relative_bias(g: GraphWriter, bias: Array, length: str) -> str:
    """(heads, S, S): the bias of each distance between key and query, for the S tokens of the input."""
    longest = (bias.shape[1] + 1) // 2
    places = g.first(g.weight("places", np.arange(longest), np.int64), length)
    keys = g.op("Unsqueeze", places, g.weight("rows", [0], np.int64))
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
    masked_keys: bool = False,
) -> OnnxSegment:
    """hidden_in (B, S, d) and the other outputs of embeddings_graph -> hidden_out (B, S, d), logits (B, C), lte (B,).
    Logits of a tokens model are (B, S, C).

    If layers share their encoder weights, the weights of the head are constant inputs, so that the layers share a file.
    The encoder layer computes in ``dtype``; the exit in float32, because its outputs are compared with thresholds.

    ``short_end``: the last layer computes only the first token if its exit reads only that one (single-query
    attention). There is then no hidden_out, which nothing would read. ``masked_keys``: as in ``AttentionForm``.
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
        form = AttentionForm(last and first_only, masked_keys)
        hidden = _encoder_layer(g, encoder, segments, hidden, prefix, output, form)
    read, pooled = _exit_inputs(g, segments, segment.exit, hidden)
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


def _exit_inputs(g: GraphWriter, segments: Segments, head: ExitWeights, hidden: str) -> tuple[str, str]:
    """Inputs of an exit's classifier and of its LTE module, in float32: both the pooled state (B, d), but the states of
    all tokens (B, S, d) for the classifier of a tokens model."""
    mean, read = segments.pooling == "mean", hidden
    if not (mean or segments.words):
        read = g.op("Gather", hidden, g.weight("first_token", 0, np.int64), axis=1)
    if head.norm is not None:
        read = g.norm("exit_norm", read, head.norm)
    pooled = read
    if mean:
        pooled = g.op("Squeeze", g.op("MatMul", "token_weights", read), g.weight("last_axis", [1], np.int64))
    elif segments.words:
        pooled = g.op("Gather", read, g.weight("first_token", 0, np.int64), axis=1)
    pooled = g.cast(pooled, "float32")
    return g.cast(read, "float32") if segments.words else pooled, pooled


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


def _encoder_layer(
    g: GraphWriter, layer: LayerWeights, segments: Segments, hidden: str, prefix: str, output: str, form: AttentionForm
) -> str:
    """From ``hidden`` (B, S, d) to ``output`` (B, S, d); (B, 1, d) with ``first_only``. ``prefix``: of its weights."""
    attended = _attention(g, layer, segments, hidden, prefix, form)
    wide = g.norm(f"{prefix}output_norm", attended, layer.output_norm) if layer.pre_norm else attended
    down = f"{prefix}gated_down" if layer.gated else f"{prefix}down"
    fed = g.linear(down, _inner(g, layer, g.linear(f"{prefix}up", wide, layer.up)), layer.down)
    if layer.pre_norm:
        return g.op("Add", fed, attended, output=output)
    return g.norm(f"{prefix}output_norm", g.op("Add", fed, attended), layer.output_norm, output=output)


def _attention(
    g: GraphWriter, layer: LayerWeights, segments: Segments, hidden: str, prefix: str, form: AttentionForm
) -> str:
    """Attention with its residual connection and norm."""
    norm, read = layer.attention_norm, hidden
    if layer.pre_norm and norm is not None:
        read = g.norm(f"{prefix}attention_norm", hidden, norm)
    context = attend(g, layer, segments, read, prefix, form)
    if form.first_only:
        hidden = g.op("Gather", hidden, g.weight("first_row", [0], np.int64), axis=1)
    total = g.op("Add", g.linear(f"{prefix}output", context, layer.output), hidden)
    return total if layer.pre_norm or norm is None else g.norm(f"{prefix}attention_norm", total, norm)


def _inner(g: GraphWriter, layer: LayerWeights, wide: str) -> str:
    """The activation of the feed-forward, with its gate."""
    if not layer.gated:
        return g.activation(layer.activation, wide)
    value, gate = g.split(wide, ("value", "gate"), [len(layer.down.weight)] * 2)
    return g.op("Mul", g.activation(layer.activation, value), gate)


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
