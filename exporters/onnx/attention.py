"""Self-attention of a canonical layer as ONNX nodes: rotary positions, local windows and relative terms included."""

from __future__ import annotations

import numpy as np

from berxit.exporters.onnx.writer import GraphWriter
from berxit.exporters.segments import MASKED, Segments, rotations, scaled_queries
from berxit.train.backbones import LayerWeights
from berxit.train.backbones.weights import Array

BIAS = "attention_bias"


def attend(
    g: GraphWriter, layer: LayerWeights, segments: Segments, hidden: str, prefix: str, *, first_only: bool
) -> str:
    """Scaled dot-product attention, heads joined: ``hidden`` (B, S, d) -> (B, S, d).

    ``first_only``: single-query attention; only the first token has a query: (B, 1, d). ``prefix``: of the weights.
    """
    size, head_size = segments.hidden_size, segments.hidden_size // layer.heads
    by_head = g.weight("by_head", [0, 0, layer.heads, head_size], np.int64)
    qkv = scaled_queries(layer, size)
    if first_only:
        first = g.op("Gather", hidden, g.weight("first_row", [0], np.int64), axis=1)
        query = g.linear(f"{prefix}queries", first, qkv.part(slice(size)))
        keys_values = g.linear(f"{prefix}keys_values", hidden, qkv.part(slice(size, None)))
        parts = [query, *g.split(keys_values, ("keys", "values"), size)]
    else:
        parts = g.split(g.linear(f"{prefix}qkv", hidden, qkv), ("queries", "keys", "values"), size)
    queries, keys, values = (g.op("Reshape", part, by_head) for part in parts)
    length = g.length(hidden) if layer.rotary is not None or layer.relative is not None else ""
    if layer.rotary is not None:
        tables = _rotation_tables(g, layer, segments.max_length, length)
        keys = _rotated(g, keys, tables, head_size)
        if not first_only:  # Position 0 is not rotated.
            queries = _rotated(g, queries, tables, head_size)
    queries = g.op("Transpose", queries, perm=[0, 2, 1, 3])
    scores = g.op("MatMul", queries, g.op("Transpose", keys, perm=[0, 2, 3, 1]))
    if layer.relative is not None:
        scores = _with_relative_terms(g, layer, scores, queries, keys, length, prefix, first_only=first_only)
    scores = g.op("Add", scores, _bias(g, layer, segments, hidden, first_only=first_only))
    values = g.op("Transpose", values, perm=[0, 2, 1, 3])
    context = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)
    return g.op("Reshape", g.op("Transpose", context, perm=[0, 2, 1, 3]), g.weight("joined", [0, 0, size], np.int64))


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
    first, second = g.split(x, ("first", "second"), head_size // 2)
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
