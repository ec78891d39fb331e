"""Int8 as a CPU likes it: weights stored in int8, activations rounded to bytes as they come.

Nothing has to be calibrated: DynamicQuantizeLinear finds the range of every activation, MatMulInteger multiplies
integers, and ONNX Runtime joins the two with scaling and bias into one kernel. The range is that of a whole batch, so
what a row gets depends a little on its neighbours. Embedding tables are int8 on disk, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx_graph import OnnxSegment

PRODUCTS = ("qkv.weight", "output.weight", "up.weight", "down.weight", "projection.weight")
"""The weights whose products run in int8. Exits stay in float32: thresholds are compared with what they say."""
TABLES = ("words",)
"""The embedding tables that are stored in int8, row by row."""

STEPS = 63
"""int8 steps from 0 to the largest weight of a column. 127 would fit, but where a CPU adds two products of a byte and
an int8 in 16 bits (AVX2 without VNNI) they overflow, silently: 2 x 255 x 127 > 32767 > 2 x 255 x 63."""


def quantized(graph: OnnxSegment) -> OnnxSegment:
    """The segment with its large products in int8: same inputs, same outputs, in float32."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    rounded: dict[str, list[str]] = {}
    for node in graph.model.graph.node:
        if node.op_type == "MatMul" and node.input[1].rpartition("/")[2] in PRODUCTS and node.input[1] in weights:
            nodes += _product(node, weights, rounded)
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
    node: onnx.NodeProto, weights: dict[str, npt.NDArray], rounded: dict[str, list[str]]
) -> Iterator[onnx.NodeProto]:
    """x (B, S, in) @ W (in, out), with one scale per column of W and one for x."""
    (x, name), output = node.input, node.output[0]
    if f"{name}.scale" not in weights:  # layers of one segment may share it
        weights[name], weights[f"{name}.scale"] = _int8(weights[name], axis=0)
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


def _lookup(node: onnx.NodeProto, weights: dict[str, npt.NDArray]) -> Iterator[onnx.NodeProto]:
    """The rows of a table (vocabulary, e), with one scale per row."""
    (table, ids), output = node.input, node.output[0]
    weights[table], weights[f"{table}.scale"] = _int8(weights[table], axis=1, steps=127)
    yield helper.make_node("Gather", [table, ids], [f"{output}.int8"], name=f"{output}.rows", axis=0)
    yield helper.make_node("Cast", [f"{output}.int8"], [f"{output}.steps"], name=f"{output}.cast", to=TensorProto.FLOAT)
    yield helper.make_node("Gather", [f"{table}.scale", ids], [f"{output}.step"], name=f"{output}.scale", axis=0)
    yield helper.make_node("Mul", [f"{output}.steps", f"{output}.step"], [output], name=output)


def _int8(weight: npt.NDArray, axis: int, steps: int = STEPS) -> tuple[npt.NDArray, npt.NDArray]:
    """Symmetric: the int8 matrix, and the size of a step along ``axis``, (1, out) or (in, 1)."""
    largest = np.abs(weight).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / steps, 1).astype(np.float32)
    values = np.round(weight / scale).astype(np.int8)
    return values, scale[0] if axis == 0 else scale
