"""Int8 as a CPU likes it: weights stored in int8, activations rounded to bytes as they come.

DynamicQuantizeLinear finds the range of every activation, MatMulInteger multiplies integers, and ONNX Runtime joins the
two with scaling and bias into one kernel. The range is that of a whole batch, so what a row gets depends a little on
its neighbours. Embedding tables are int8 on disk, too.

What rounding costs lies in a few channels. BERT's hidden states have some that are 5 to 30 times as large as all
others, always the same ones, and one step for all channels is then too coarse for the others. So these channels are
divided down before the product and their weights multiplied up (as in SmoothQuant, Xiao et al. 2023, section 4, but of
the largest channels alone): the same product, of evener numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from berxit.exporters.onnx.activations import Activations
from berxit.exporters.onnx.graph import OnnxSegment

PRODUCTS = (
    "qkv.weight",
    "queries.weight",
    "keys_values.weight",
    "output.weight",
    "up.weight",
    "down.weight",
    "projection.weight",
    "pooler.weight",
)
"""The weights whose products run in int8. What answers stays in float32: classifier and LTE, which are small. A pooler
of its own per layer is not: at d = 768 reading it takes as long as an eighth of the layer, on 16 tokens."""
TABLES = ("words",)
"""The embedding tables that are stored in int8, row by row."""

STEPS = 127
"""int8 steps from 0 to the largest weight of a column, or to the largest sum of two neighbours: a CPU with AVX2 or
AVX512 but no VNNI adds two neighbours' products in 16 bits (vpmaddubsw), and beyond 255 x 128 they overflow silently.
So no two of one sign exceed 128 together, and the result is the same on every CPU. In real weights the largest one
of a column then has about 100 steps."""

SHARES = (0.998, 0.995, 0.99, 0.98, 0.95)
"""Which channels count as large: tried are those beyond this share of all."""
WORTH = 0.8
"""Evening out costs an operator: it is left out unless the error falls below this share of what it was."""


def quantized(graph: OnnxSegment, inputs: Mapping[str, Activations] | None = None) -> OnnxSegment:
    """The segment with its large products in int8: same inputs, same outputs, in float32.

    ``inputs``: name of a weight -> what comes to its product; large channels are evened out where that is known.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    rounded: dict[str, list[str]] = {}
    for node in graph.model.graph.node:
        if node.op_type == "MatMul" and node.input[1].rpartition("/")[2] in PRODUCTS and node.input[1] in weights:
            nodes += _product(node, weights, rounded, (inputs or {}).get(node.input[1]))
        elif node.op_type == "Gather" and node.input[0] in TABLES:
            nodes += _lookup(node, weights)
        else:
            nodes.append(node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return OnnxSegment(model, graph.inputs, graph.outputs, graph.constants)


def _product(
    node: onnx.NodeProto,
    weights: dict[str, npt.NDArray],
    rounded: dict[str, list[str]],
    inputs: Activations | None,
) -> Iterator[onnx.NodeProto]:
    """x (B, S, in) @ W (in, out), with one scale per column of W and one for x."""
    (x, name), output = node.input, node.output[0]
    if f"{name}.scale" not in weights:  # layers of one segment may share it
        factors = even_factors(weights[name], inputs) if inputs else np.ones(len(weights[name]), np.float32)
        if (factors > 1).any():
            weights[f"{name}.evening"] = 1 / factors
        weights[name], weights[f"{name}.scale"] = _int8_columns(weights[name] * factors[:, None])
    if f"{name}.evening" in weights:
        even = f"{output}.evened"
        yield helper.make_node("Mul", [x, f"{name}.evening"], [even], name=even)
        x = even
    if x not in rounded:  # DynamicQuantizeLinear: bytes, their scale, what stands for zero
        rounded[x] = [f"{x}.bytes", f"{x}.scale", f"{x}.zero"]
        yield helper.make_node("DynamicQuantizeLinear", [x], rounded[x], name=f"{x}.round")
    values, scale, zero = rounded[x]
    yield helper.make_node("MatMulInteger", [values, name, zero], [f"{output}.int32"], name=f"{output}.product")
    yield helper.make_node(
        "Cast", [f"{output}.int32"], [f"{output}.steps"], name=f"{output}.cast", to=TensorProto.FLOAT
    )
    yield helper.make_node("Mul", [scale, f"{name}.scale"], [f"{output}.step"], name=f"{output}.scale")
    yield helper.make_node("Mul", [f"{output}.steps", f"{output}.step"], [output], name=output)


def even_factors(weight: npt.NDArray, inputs: Activations) -> npt.NDArray[np.float32]:
    """(in,) what to divide each channel by, at least 1, so that the product in int8 comes nearest to the exact one."""
    exact = inputs.rows @ weight

    def error(factors: npt.NDArray) -> float:
        values, scale = _int8_columns(weight * factors[:, None])
        return float(np.linalg.norm(_bytes(inputs.rows / factors) @ (values * scale) - exact))

    limits = [max(float(np.quantile(inputs.largest, share)), 1e-6) for share in SHARES]
    tried = [np.maximum(inputs.largest / limit, 1).astype(np.float32) for limit in limits]
    best, plain = min(tried, key=error), np.ones(len(weight), np.float32)
    return best if error(best) < WORTH * error(plain) else plain


def _bytes(x: npt.NDArray) -> npt.NDArray:
    """x as DynamicQuantizeLinear rounds it, in its own unit."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255 or 1.0
    zero = np.round(-low / scale)
    return ((np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


def _lookup(node: onnx.NodeProto, weights: dict[str, npt.NDArray]) -> Iterator[onnx.NodeProto]:
    """The rows of a table (vocabulary, e), with one scale per row."""
    (table, ids), output = node.input, node.output[0]
    weights[table], weights[f"{table}.scale"] = _int8_rows(weights[table])
    yield helper.make_node("Gather", [table, ids], [f"{output}.int8"], name=f"{output}.rows", axis=0)
    yield helper.make_node("Cast", [f"{output}.int8"], [f"{output}.steps"], name=f"{output}.cast", to=TensorProto.FLOAT)
    yield helper.make_node("Gather", [f"{table}.scale", ids], [f"{output}.step"], name=f"{output}.scale", axis=0)
    yield helper.make_node("Mul", [f"{output}.steps", f"{output}.step"], [output], name=output)


def _int8_columns(weight: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    """Symmetric: the int8 matrix (in, out), and the size of a step in each column, (out,)."""
    padded = np.pad(weight, ((0, len(weight) % 2), (0, 0)))
    sums = [np.maximum(signed[0::2], 0) + np.maximum(signed[1::2], 0) for signed in (padded, -padded)]
    return _int8(weight, np.maximum(*sums).max(axis=0))


def _int8_rows(table: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    """Symmetric: the int8 table (rows, e), and the size of a step in each row, (rows, 1)."""
    return _int8(table, np.abs(table).max(axis=1, keepdims=True))


def _int8(weight: npt.NDArray, largest: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    scale = np.where(largest > 0, largest / STEPS, 1).astype(np.float32)
    return np.round(weight / scale).astype(np.int8), scale
