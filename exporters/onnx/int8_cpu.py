"""Int8 for the CPU: QuantizeLinear and DequantizeLinear around the large matmuls, with constant scales.

ONNX Runtime and OpenVINO replace each group by one int8 matmul when they load the file. The scales are chosen once, at
export, on texts of the task. So a row's result depends neither on the other rows of its batch nor on its padding.

Activations are uint8 with one scale for the whole tensor; weights are int8 with one scale per column. BERT's hidden
states have outlier channels, 5 to 30 times as large as the others and always the same ones. One scale for all channels
would be too coarse for the others. Therefore the outlier channels are divided by smoothing scales before the matmul,
and their weights multiplied by them (SmoothQuant, Xiao et al. 2023, equations 3 and 4), where that reduces the error.

Embedding tables are stored in int8, too, with one scale per row.
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
from berxit.exporters.smoothing import limited, smoothing_scales

QUANTIZED_WEIGHTS = (
    "qkv.weight",
    "queries.weight",
    "keys_values.weight",
    "output.weight",
    "up.weight",
    "down.weight",
    "gated_down.weight",
    "projection.weight",
    "pooler.weight",
)
"""Weights whose matmuls run in int8. Classifier and LTE stay in float32: they are small. A layer's own pooler does not:
at d = 768 reading it takes an eighth of the layer's time, on 16 tokens."""
QUANTIZED_TABLES = ("words",)
"""Embedding tables that are stored in int8, row by row."""

WEIGHT_STEPS = 127
"""int8 steps from 0 to the largest weight of a column, or to the largest sum of two adjacent weights. A CPU with AVX2
or AVX512 but no VNNI adds two adjacent products in 16 bits (vpmaddubsw), and beyond 255 x 128 the sum saturates without
an error. So no two adjacent weights of one sign exceed 128 together, and every CPU computes the same result. The
largest real weight of a column then has about 100 steps."""

CONTEXT_WEIGHT, VALUE_WEIGHTS = "output.weight", ("qkv.weight", "keys_values.weight")
"""The weight of the attention's output, and the weights whose last columns compute the values."""

AFTER_ACTIVATION = ("down.weight",)
"""Weights whose input is the feed-forward activation. Its largest value differs by a factor of ten between tokens, so
one scale for all tokens can be too coarse. Then each token is divided by its largest value before quantization, and its
result multiplied by it. The inputs of the other matmuls do not need that: a norm precedes them, or they are weighted
means of values that it precedes."""
LOWEST = 0.1701
"""gelu (-0.16997), gelu_new (-0.17004) and relu (0) have no lower value, whatever their input."""
STEPS_BELOW_ZERO = 20
"""Of the 255 steps of a token that is divided by its largest value: the divisor is large enough for -LOWEST."""

OUTLIER_SHARES = (0.998, 0.995, 0.99, 0.98, 0.95, 0.9)
"""Candidate smoothing: channels above this quantile are divided down to it."""
MIGRATION_STRENGTHS = (0.5, 0.7, 0.85, 1.0)
"""Candidate smoothing: SmoothQuant's alpha, the share of the channels' differences that the weights take over."""
WORTHWHILE = 0.8
"""Smoothing adds a Mul, a divisor per token four operators; each is skipped unless it reduces the error below this
share."""


@dataclass(frozen=True)
class Quantization:
    """Quantization of an activation to uint8: q = round(x / scale) + zero_point, saturated to 0..255."""

    scale: float
    zero_point: int
    smallest_divisor: float | None = None
    """If set, each token is first divided by its largest value, or by this if that is smaller."""

    @classmethod
    def of_range(cls, lowest: float, largest: float) -> Quantization:
        """The quantization with the smallest scale whose range contains ``lowest`` (below 0) and ``largest``."""
        lowest, largest = min(lowest, -1e-6), max(largest, 1e-6)
        zero_point = int(np.clip(np.round(255 * -lowest / (largest - lowest)), 1, 254))
        return cls(max(largest / (255 - zero_point), -lowest / zero_point), zero_point)

    @classmethod
    def per_token(cls, lowest: float) -> Quantization:
        """The quantization of tokens with values from ``lowest`` (below 0) to any largest value."""
        steps = 255 - STEPS_BELOW_ZERO
        return cls(1 / steps, STEPS_BELOW_ZERO, -lowest * steps / STEPS_BELOW_ZERO)

    def rounded(self, x: npt.NDArray) -> npt.NDArray[np.float32]:
        """``x`` (tokens, in) after quantization and dequantization."""
        scale = np.float32(self.scale)
        if self.smallest_divisor is not None:
            scale = scale * np.maximum(x.max(axis=1, keepdims=True), np.float32(self.smallest_divisor))
        steps = np.clip(np.round(x / scale) + self.zero_point, 0, 255) - self.zero_point
        return (steps * scale).astype(np.float32)


@dataclass(frozen=True)
class QuantizedMatmul:
    """An int8 matmul: x (..., in) @ weight (in, out)."""

    smoothing: npt.NDArray[np.float32]
    """(in,) divisors of the activation's channels; 1 if there is no smoothing."""
    activation: Quantization
    """Quantization of the activation after smoothing."""
    weight: npt.NDArray[np.int8]
    """(in, out), after smoothing."""
    weight_scale: npt.NDArray[np.float32]
    """(out,)"""

    @classmethod
    def of(
        cls,
        weight: npt.NDArray,
        inputs: Activations,
        smoothing: npt.NDArray[np.float32],
        *,
        after_activation: bool = False,
        per_token: bool = False,
    ) -> QuantizedMatmul:
        largest = float((inputs.largest / smoothing).max())
        lowest = -LOWEST / float(smoothing.min()) if after_activation else -largest
        activation = Quantization.per_token(lowest) if per_token else Quantization.of_range(lowest, largest)
        return cls(smoothing, activation, *_int8_columns(weight * smoothing[:, None]))

    @classmethod
    def choose(cls, weight: npt.NDArray, inputs: Activations, *, after_activation: bool) -> QuantizedMatmul:
        """The plainest candidate whose error on ``inputs`` no other reduces by enough to be WORTHWHILE."""
        exact = inputs.rows @ weight
        smoothings = list(smoothing_candidates(weight, inputs))
        best, least = None, np.inf
        for per_token in (False, True) if after_activation else (False,):
            for tried in ([np.ones(len(weight), np.float32)], smoothings):
                found = [
                    cls.of(weight, inputs, each, after_activation=after_activation, per_token=per_token)
                    for each in tried
                ]
                errors = [each.error(inputs.rows, exact) for each in found]
                if min(errors) < WORTHWHILE * least:
                    best, least = found[int(np.argmin(errors))], min(errors)
        assert best is not None  # the first candidate has a finite error
        return best

    def error(self, rows: npt.NDArray, exact: npt.NDArray) -> float:
        """Root mean square over the tokens of the error relative to the token's own result.

        ``rows`` (tokens, in), ``exact`` (tokens, out). The error is relative because the norm after the matmul scales
        all tokens to the same size.
        """
        found = self.activation.rounded(rows / self.smoothing) @ (self.weight * self.weight_scale)
        size = np.maximum(np.linalg.norm(exact, axis=1), np.finfo(np.float32).tiny)
        return float(np.sqrt(np.mean(np.square(np.linalg.norm(found - exact, axis=1) / size))))


def smoothing_candidates(weight: npt.NDArray, inputs: Activations) -> Iterator[npt.NDArray[np.float32]]:
    """Smoothing scales (in,) to try for a weight (in, out)."""
    for share in OUTLIER_SHARES:
        limit = max(float(np.quantile(inputs.largest, share)), 1e-6)
        yield np.maximum(inputs.largest / limit, 1).astype(np.float32)
    channels, rows = limited(inputs.largest), limited(np.abs(weight).max(axis=1))
    for alpha in MIGRATION_STRENGTHS:
        yield smoothing_scales(channels, rows, alpha).astype(np.float32)


def quantized(graph: OnnxSegment, inputs: Mapping[str, Activations]) -> OnnxSegment:
    """The segment with its large matmuls in int8: same inputs and outputs, in float32.

    ``inputs``: name of a weight -> activations that its matmul receives. A weight that is not in it stays in float32.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    chosen: dict[str, QuantizedMatmul] = {}
    rounded: set[str] = set()
    for node in graph.model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in inputs and node.input[1] in weights:
            name = node.input[1]
            if name not in chosen:  # layers of one segment may share a weight
                after = name.rpartition("/")[2] in AFTER_ACTIVATION
                chosen[name] = QuantizedMatmul.choose(weights[name], inputs[name], after_activation=after)
            nodes += _matmul(node, chosen[name], weights, rounded)
        elif node.op_type == "Gather" and node.input[0] in QUANTIZED_TABLES:
            nodes += _lookup(node, weights)
        else:
            nodes.append(node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return OnnxSegment(model, graph.inputs, graph.outputs, graph.constants)


def _matmul(
    node: onnx.NodeProto, matmul: QuantizedMatmul, weights: dict[str, npt.NDArray], done: set[str]
) -> Iterator[onnx.NodeProto]:
    """The operators of one matmul. Adds their constants to ``weights``, and to ``done`` the tensors that exist now."""
    (x, name), output = node.input, node.output[0]
    dequantized = f"{name}.dequantized"
    if dequantized not in done:
        done.add(dequantized)
        weights[name], weights[f"{name}.scale"] = matmul.weight, matmul.weight_scale
        weights[f"{name}.zero_point"] = np.zeros(len(matmul.weight_scale), np.int8)
        parts = [name, f"{name}.scale", f"{name}.zero_point"]
        yield helper.make_node("DequantizeLinear", parts, [dequantized], name=dequantized, axis=1)
    scale, zero_point = f"{name}.input_scale", f"{name}.input_zero_point"
    weights[scale] = np.array(matmul.activation.scale, np.float32)
    weights[zero_point] = np.array(matmul.activation.zero_point, np.uint8)
    if (matmul.smoothing != 1).any() and not _smooth_values(name, matmul.smoothing, weights, done):
        weights[f"{name}.smoothing"] = 1 / matmul.smoothing
        smoothed = f"{output}.smoothed"
        yield helper.make_node("Mul", [x, f"{name}.smoothing"], [smoothed], name=smoothed)
        x = smoothed
    q, rounded, divisor = f"{output}.input_uint8", f"{output}.input", ""
    if matmul.activation.smallest_divisor is not None:
        weights[f"{name}.smallest_divisor"] = np.array(matmul.activation.smallest_divisor, np.float32)
        largest, divisor, divided = f"{output}.largest", f"{output}.divisor", f"{output}.divided"
        yield helper.make_node("ReduceMax", [x], [largest], name=largest, axes=[-1], keepdims=1)
        yield helper.make_node("Max", [largest, f"{name}.smallest_divisor"], [divisor], name=divisor)
        yield helper.make_node("Div", [x, divisor], [divided], name=divided)
        x = divided
    yield helper.make_node("QuantizeLinear", [x, scale, zero_point], [q], name=q)
    yield helper.make_node("DequantizeLinear", [q, scale, zero_point], [rounded], name=rounded)
    product = f"{output}.divided_output" if divisor else output
    yield helper.make_node("MatMul", [rounded, dequantized], [product], name=product)
    if divisor:
        yield helper.make_node("Mul", [product, divisor], [output], name=f"{output}.multiplied")


def _smooth_values(name: str, smoothing: npt.NDArray, weights: dict[str, npt.NDArray], done: set[str]) -> bool:
    """Divides the input of matmul ``name`` by ``smoothing`` (d,) without an operator. False if that is impossible.

    The input of the attention's output is a weighted mean of the values, so the scales of the columns that compute the
    values can include the division. The values have no bias, see ``split_segments``.
    """
    prefix = name.removesuffix(CONTEXT_WEIGHT)
    if prefix == name:
        return False
    scales = [scale for kind in VALUE_WEIGHTS if (scale := f"{prefix}{kind}.scale") in weights]
    for scale in scales:
        if f"{scale}.smoothed" not in done:  # layers of one segment may share a weight
            done.add(f"{scale}.smoothed")
            weights[scale] = weights[scale].copy()
            weights[scale][-len(smoothing) :] /= smoothing
    return bool(scales)


def _lookup(node: onnx.NodeProto, weights: dict[str, npt.NDArray]) -> Iterator[onnx.NodeProto]:
    """The rows of a table (vocabulary, e), with one scale per row."""
    (table, ids), output = node.input, node.output[0]
    weights[table], weights[f"{table}.scale"] = _int8_rows(weights[table])
    yield helper.make_node("Gather", [table, ids], [f"{output}.int8"], name=f"{output}.rows", axis=0)
    yield helper.make_node("Cast", [f"{output}.int8"], [f"{output}.steps"], name=f"{output}.cast", to=TensorProto.FLOAT)
    yield helper.make_node("Gather", [f"{table}.scale", ids], [f"{output}.step"], name=f"{output}.scale", axis=0)
    yield helper.make_node("Mul", [f"{output}.steps", f"{output}.step"], [output], name=output)


def _int8_columns(weight: npt.NDArray) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric quantization of (in, out): the int8 weight, and the step of each column, (out,)."""
    padded = np.pad(weight, ((0, len(weight) % 2), (0, 0)))
    sums = [np.maximum(signed[0::2], 0) + np.maximum(signed[1::2], 0) for signed in (padded, -padded)]
    return _int8(weight, np.maximum(*sums).max(axis=0))


def _int8_rows(table: npt.NDArray) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric quantization of (rows, e): the int8 table, and the step of each row, (rows, 1)."""
    return _int8(table, np.abs(table).max(axis=1, keepdims=True))


def _int8(weight: npt.NDArray, largest: npt.NDArray) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    scale = np.where(largest > 0, largest / WEIGHT_STEPS, 1).astype(np.float32)
    return np.round(weight / scale).astype(np.int8), scale
