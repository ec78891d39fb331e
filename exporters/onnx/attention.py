"""Self-attention of a canonical layer as ONNX nodes: rotary positions, local windows and relative terms included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from berxit.exporters.onnx.writer import GraphWriter
from berxit.exporters.segments import MASKED, Segments, queries_with_masks, rotations, scaled_queries
from berxit.train.backbones import LayerWeights
from berxit.train.backbones.weights import Array

BIAS = "attention_bias"


@dataclass(frozen=True)
class AttentionForm:
    """Form in which the attention of a layer is written. All forms compute the same outputs."""

    first_only: bool = False
    """Single-query attention: only the first token has a query."""
    masked_keys: bool = False
    """The bias of a key is one more component of the key, and the component of every query there is 1. Otherwise, it is
    added to the (B, heads, S, S) scores. Without effect on a layer whose bias depends on the query or the head."""


def attend(
    g: GraphWriter, layer: LayerWeights, segments: Segments, hidden: str, prefix: str, form: AttentionForm
) -> str:
    """Scaled dot-product attention, heads joined: ``hidden`` (B, S, d) -> (B, S, d); (B, 1, d) with ``first_only``.
    ``prefix``: of the weights."""
    first_only, masked_keys = form.first_only, form.masked_keys and bias_depends_on_keys_only(layer, segments)
    size, head_size = segments.hidden_size, segments.hidden_size // layer.heads
    qkv, sizes, query_bias = scaled_queries(layer, size), [size, size, size], None
    if masked_keys:
        (qkv, query_bias), sizes = queries_with_masks(qkv, layer.heads), [size + layer.heads, size, size]
    if first_only:
        first = g.op("Gather", hidden, g.weight("first_row", [0], np.int64), axis=1)
        query = g.linear(f"{prefix}queries", first, qkv.part(slice(sizes[0])))
        keys_values = g.linear(f"{prefix}keys_values", hidden, qkv.part(slice(sizes[0], None)))
        parts = [query, *g.split(keys_values, ("keys", "values"), sizes[1:])]
    else:
        parts = g.split(g.linear(f"{prefix}qkv", hidden, qkv), ("queries", "keys", "values"), sizes)
    if query_bias is not None:
        parts[0] = g.op("Add", parts[0], g.weight(f"{prefix}queries.bias", query_bias))
    queries, keys, values = (_by_head(g, part, layer.heads, each) for part, each in zip(parts, sizes, strict=True))
    length = g.length(hidden) if layer.rotary is not None or layer.relative is not None else ""
    if layer.rotary is not None:
        tables = _rotation_tables(g, layer, segments.max_length, length)
        keys = _rotated(g, keys, tables, head_size)
        if not first_only:  # Position 0 is not rotated.
            queries = _rotated(g, queries, tables, head_size)
    queries, columns = (g.op("Transpose", x, perm=p) for x, p in ((queries, [0, 2, 1, 3]), (keys, [0, 2, 3, 1])))
    if masked_keys:
        every_head = g.weight("every_head", [1, layer.heads, 1, 1], np.int64)
        columns = g.op("Concat", columns, g.once("key biases", lambda: g.op("Expand", BIAS, every_head)), axis=2)
    scores = g.op("MatMul", queries, columns)
    if layer.relative is not None:
        scores = _with_relative_terms(g, layer, scores, queries, keys, length, prefix, first_only=first_only)
    if not masked_keys:
        scores = g.op("Add", scores, _bias(g, layer, segments, hidden, first_only=first_only))
    values = g.op("Transpose", values, perm=[0, 2, 1, 3])
    context = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)
    return g.op("Reshape", g.op("Transpose", context, perm=[0, 2, 1, 3]), g.weight("joined", [0, 0, size], np.int64))


def bias_depends_on_keys_only(layer: LayerWeights, segments: Segments) -> bool:
    """Is the bias of a score the same for all queries and heads? Not so with a local window, with relative positions,
    and with rotary positions, whose rotation would mix the additional component with the others."""
    absolute = layer.window is None and layer.relative is None and layer.rotary is None
    return absolute and segments.embeddings.relative_bias is None


def _by_head(g: GraphWriter, x: str, heads: int, size: int) -> str:
    """(B, S, size) -> (B, S, heads, size / heads)."""
    return g.op("Reshape", x, g.weight(f"{heads}_heads_of_{size // heads}", [0, 0, heads, size // heads], np.int64))


def _rotation_tables(g: GraphWriter, layer: LayerWeights, longest: int, length: str) -> tuple[str, str]:
    """Cosine and sine (S, 1, d / heads) of the positions of the input."""
    assert layer.rotary is not None
    kind = f"{float(layer.rotary[-1]):g}"  # Global and local layers of a segment have different tables.
    cosine, sine = (table[:, None] for table in rotations(layer, longest))

    def first(name: str, table: Array) -> str:
        return g.once(f"{kind}/{name}", lambda: g.first(g.weight(f"{kind}/{name}", table), length))

    return first("cosine", cosine), first("sine", sine)


def _rotated(g: GraphWriter, x: str, tables: tuple[str, str], head_size: int) -> str:
    """Queries or keys (B, S, heads, d / heads), rotated by their positions."""
    cosine, sine = tables
    first, second = g.split(x, ("first", "second"), [head_size // 2] * 2)
    swapped = g.op("Concat", second, first, axis=-1)
    return g.op("Add", g.op("Mul", x, cosine), g.op("Mul", swapped, sine))


def _bias(g: GraphWriter, layer: LayerWeights, segments: Segments, hidden: str, *, first_only: bool) -> str:
    """The bias that is added to the scores: (B, 1 or heads, 1 or S, S); of the first token only with ``first_only``."""
    bias = BIAS
    if layer.window is not None:
        bias = g.once(f"window of {layer.window}", lambda: _within_window(g, layer.window or 0, segments, hidden))
    return g.op("Gather", bias, g.weight("first_row", [0], np.int64), axis=2) if first_only else bias


def _within_window(g: GraphWriter, window: int, segments: Segments, hidden: str) -> str:
    """The bias (B, 1 or heads, S, S) in which tokens more than ``window`` away are masked, too."""
    numbers = g.weight("numbers", np.arange(segments.max_length), np.float32)  # float16 has no odd numbers above 2048
    places = g.first(numbers, g.length(hidden))
    keys = g.op("Unsqueeze", places, g.weight("rows", [0], np.int64))
    queries = g.op("Unsqueeze", places, g.weight("last_axis", [1], np.int64))
    distance = g.op("Abs", g.op("Sub", keys, queries))
    outside = g.op("Greater", distance, g.weight(f"window_{window}", window, np.float32))
    return g.op("Where", outside, g.weight("masked", MASKED), BIAS)


def _with_relative_terms(
    g: GraphWriter,
    layer: LayerWeights,
    scores: str,
    queries: str,
    keys: str,
    length: str,
    prefix: str,
    *,
    first_only: bool,
) -> str:
    """``scores`` (B, heads, Q, S) with both relative terms. ``queries`` (B, heads, Q, d / heads), scaled; ``keys``
    (B, S, heads, d / heads)."""
    assert layer.relative is not None
    to_keys, to_queries = layer.relative.keys, layer.relative.queries * np.float32(layer.scale)
    keys = g.op("Transpose", keys, perm=[0, 2, 1, 3])
    if first_only:  # Distances from 0 to S - 1.
        ahead = slice(to_keys.shape[1] // 2, None)
        by_position = g.weight(f"{prefix}relative_keys", to_keys[:, ahead].transpose(1, 0, 2))
        table = g.op("Transpose", g.first(by_position, length), perm=[1, 2, 0])
        first = g.op("MatMul", queries, table)
        by_position = g.weight(f"{prefix}relative_queries", to_queries[:, ahead].transpose(1, 0, 2))
        table = g.op("Transpose", g.first(by_position, length), perm=[1, 0, 2])
        product = g.op("ReduceSum", g.op("Mul", keys, table), g.weight("head_axis", [3], np.int64), keepdims=0)
        second = g.op("Unsqueeze", product, g.weight("after_length", [2], np.int64))
    else:
        first = _by_distance(g, queries, f"{prefix}relative_keys", to_keys, length)
        second = _by_distance(g, keys, f"{prefix}relative_queries", to_queries[:, ::-1], length)
        second = g.op("Transpose", second, perm=[0, 1, 3, 2])
    return g.op("Add", g.op("Add", scores, first), second)


def _by_distance(g: GraphWriter, x: str, name: str, table: Array, length: str) -> str:
    """(B, heads, S, S): entry (i, j) is the product of row i of ``x`` (B, heads, S, d / heads) with the row of
    ``table`` (heads, 2 L - 1, d / heads) for distance j - i.

    One matmul with the rows for all distances from 1 - S to S (the last one is unused) gives (B, heads, S, 2 S). Read
    with one column less per row, row i starts i columns later, so that column j belongs to distance j - i.
    """
    longest = (table.shape[1] + 1) // 2
    columns = np.pad(table.transpose(0, 2, 1), ((0, 0), (0, 0), (0, 1)))[None]
    axis, middle = g.weight("head_axis", [3], np.int64), g.weight(f"middle_of_{longest}", [longest], np.int64)
    start = g.once(f"start of {longest}", lambda: g.op("Sub", middle, length))
    end = g.once(f"end of {longest}", lambda: g.op("Add", middle, length))
    near = g.op("Slice", g.weight(name, columns), start, end, axis)
    flat = g.op("Reshape", g.op("MatMul", x, near), g.weight("flat", [0, 0, -1], np.int64))
    skipped = g.once("skipped", lambda: g.op("Sub", length, g.weight("one_int", [1], np.int64)))
    two, last = g.weight("after_length", [2], np.int64), g.weight("last_entry", [-1], np.int64)
    kept = g.op("Slice", flat, skipped, last, two)
    shape = g.once(
        "one column less", lambda: g.op("Concat", g.weight("batch_and_heads", [0, 0], np.int64), length, last, axis=0)
    )
    return g.op("Slice", g.op("Reshape", kept, shape), g.weight("zero", [0], np.int64), length, axis)
