"""Dynamic int8 quantization for the CPU: int8 weights, activations quantized at run time with one scale per token.

The scale of a token is computed from that token alone: max |x| / 127. So a row's result depends neither on the other
rows of its batch nor on its padding. DynamicQuantizeLinear has one scale for a whole batch and is not used. The
operators are plain ai.onnx operators: QuantizeLinear with scale 1 and a constant zero point, MatMulInteger, and one Mul
each for the scales of the weight's columns and of the tokens. Embedding tables are stored in int8, too.

What rounding costs lies in a few channels. BERT's hidden states have some that are 5 to 30 times as large as all
others, always the same ones, and one step for all channels is then too coarse for the others. So these channels are
divided down before the product and their weights multiplied up (as in SmoothQuant, Xiao et al. 2023, section 4, but of
the largest channels alone): the same product, of evener numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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

ZERO_POINT = 128
"""Of an activation with both signs: 127 steps up and 127 down."""
AFTER_ACTIVATION = ("down.weight",)
"""The weights whose input comes from the feed-forward activation, which has no value below -LOWEST."""
LOWEST = 0.1701
"""gelu (-0.16997), gelu_new (-0.17004) and relu (0) have no lower value, whatever their input."""
LOW_ZERO_POINT = 20
"""After the activation: 235 steps up, 20 down. The 20 reach LOWEST, because the scale is never below LOWEST / 20."""

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
    rounded: dict[str, tuple[str, str, str]] = {}
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


@dataclass(frozen=True)
class TokenQuantization:
    """Quantization of an activation to uint8, with one scale per token: q = round(x / scale) + zero_point."""

    zero_point: int
    steps: int
    """The scale is the token's largest value divided by this."""
    smallest_scale: float
    """Lower bound of the scale. It is positive, so a token of zeros stays zero."""
    signed: bool
    """True if the token's largest value is its largest absolute value."""

    @classmethod
    def of(cls, weight: str) -> TokenQuantization:
        """The quantization of the input of the matmul with the weight of this name."""
        if weight.rpartition("/")[2] in AFTER_ACTIVATION:
            return cls(LOW_ZERO_POINT, 255 - LOW_ZERO_POINT, LOWEST / LOW_ZERO_POINT, signed=False)
        return cls(ZERO_POINT, 127, float(np.finfo(np.float32).tiny), signed=True)

    def dequantized(self, x: npt.NDArray) -> npt.NDArray[np.float32]:
        """The values (tokens, in) of ``x`` (tokens, in) after quantization, as the operators compute them."""
        largest = (np.abs(x) if self.signed else x).max(axis=1, keepdims=True)
        scale = np.maximum(largest / np.float32(self.steps), np.float32(self.smallest_scale))
        quantized = np.clip(np.round(x / scale) + self.zero_point, 0, 255)
        return ((quantized - self.zero_point) * scale).astype(np.float32)

    def nodes(self, x: str, weights: dict[str, npt.NDArray]) -> tuple[list[onnx.NodeProto], tuple[str, str, str]]:
        """The operators that quantize ``x`` (..., in); the names of the bytes, of the scale (..., 1) and of the zero
        point. Adds the constants to ``weights``."""
        kind = "signed" if self.signed else "activation"
        zero_point, steps, smallest = f"{kind}_zero_point", f"{kind}_steps", f"{kind}_smallest_scale"
        weights[zero_point] = np.array(self.zero_point, np.uint8)
        weights[steps], weights[smallest] = np.array(self.steps, np.float32), np.array(self.smallest_scale, np.float32)
        weights["unit_scale"] = np.array(1, np.float32)
        nodes: list[onnx.NodeProto] = []

        def op(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
            name = f"{x}.{output}"
            nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
            return name

        largest = op("ReduceMax", [op("Abs", [x], "absolute") if self.signed else x], "largest", axes=[-1], keepdims=1)
        scale = op("Max", [op("Div", [largest, steps], "step"), smallest], "scale")
        quantized = op("QuantizeLinear", [op("Div", [x, scale], "steps"), "unit_scale", zero_point], "bytes")
        return nodes, (quantized, scale, zero_point)


def _product(
    node: onnx.NodeProto,
    weights: dict[str, npt.NDArray],
    rounded: dict[str, tuple[str, str, str]],
    inputs: Activations | None,
) -> Iterator[onnx.NodeProto]:
    """x (B, S, in) @ W (in, out), with one scale per column of W and one per token of x."""
    (x, name), output = node.input, node.output[0]
    quantization = TokenQuantization.of(name)
    if f"{name}.scale" not in weights:  # layers of one segment may share it
        factors = (
            even_factors(weights[name], inputs, quantization) if inputs else np.ones(len(weights[name]), np.float32)
        )
        if (factors > 1).any():
            weights[f"{name}.evening"] = 1 / factors
        weights[name], weights[f"{name}.scale"] = _int8_columns(weights[name] * factors[:, None])
    if f"{name}.evening" in weights:
        even = f"{output}.evened"
        yield helper.make_node("Mul", [x, f"{name}.evening"], [even], name=even)
        x = even
    if x not in rounded:
        nodes, rounded[x] = quantization.nodes(x, weights)
        yield from nodes
    values, scale, zero = rounded[x]
    integers, steps, columns = f"{output}.int32", f"{output}.float", f"{output}.columns"
    yield helper.make_node("MatMulInteger", [values, name, zero], [integers], name=f"{output}.product")
    yield helper.make_node("Cast", [integers], [steps], name=f"{output}.cast", to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [steps, f"{name}.scale"], [columns], name=columns)
    yield helper.make_node("Mul", [columns, scale], [output], name=output)


def even_factors(weight: npt.NDArray, inputs: Activations, quantization: TokenQuantization) -> npt.NDArray[np.float32]:
    """(in,) what to divide each channel by, at least 1, so that the product in int8 comes nearest to the exact one.

    A token's error counts relative to its own product: with a scale per token, a token of large values would otherwise
    decide alone, although the norm that follows gives all tokens the same size.
    """
    exact = inputs.rows @ weight
    size = np.maximum(np.linalg.norm(exact, axis=1), np.finfo(np.float32).tiny)

    def error(factors: npt.NDArray) -> float:
        values, scale = _int8_columns(weight * factors[:, None])
        difference = quantization.dequantized(inputs.rows / factors) @ (values * scale) - exact
        return float(np.linalg.norm(np.linalg.norm(difference, axis=1) / size))

    limits = [max(float(np.quantile(inputs.largest, share)), 1e-6) for share in SHARES]
    tried = [np.maximum(inputs.largest / limit, 1).astype(np.float32) for limit in limits]
    best, plain = min(tried, key=error), np.ones(len(weight), np.float32)
    return best if error(best) < WORTH * error(plain) else plain


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
