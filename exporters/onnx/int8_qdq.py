"""Int8 as TensorRT reads it: QuantizeLinear and DequantizeLinear around the four large matrix products of a layer.

Symmetric throughout: weights per output channel, activations per tensor, biases as they are. How far activations reach
is read off the samples that the checkpoint carries. A few of BERT's channels reach much farther than the others, and a
step for all would leave the others few levels: so channels are divided by what makes them more even, and the weights
multiplied by it (SmoothQuant, Xiao et al. 2023, equations 3 and 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from berxit.exporters.onnx.activations import Activations
from berxit.exporters.onnx.graph import OnnxSegment

QDQ_WEIGHTS = ("qkv.weight", "output.weight", "up.weight", "down.weight")
"""The weights whose products run in int8: everything in a layer that has weights; the attention itself has none."""

DEQUANTIZED_WEIGHTS = 19
"""From this opset on weights are stored in int8. Before it TensorRT (8) quantises float weights itself."""

MIGRATED = 0.85
"""SmoothQuant's alpha: how much of the channels' unevenness goes over to the weights. With the paper's 0.5 the product
after the activation gets worse, in MiniLM-L6 and bge-small: docs/tensorrt.md has the numbers."""
QUIET = 1e-3
"""A channel counts as reaching this far at least, as a share of the farthest: float16 must hold the division."""


def quantize_for_tensorrt(graph: OnnxSegment, inputs: Mapping[str, Activations]) -> OnnxSegment:
    """The segment with its products in int8; everything else stays in the type that it had. Cutting outliers off for
    finer steps, as is usual, costs BERT its answers: the few channels that reach far are what it computes with.

    ``inputs``: name of a weight -> what comes to its product.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    opset = model.opset_import[0].version
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, npt.NDArray] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in inputs:
            name, even = node.input[1], f"{node.output[0]}.even"
            rounded, ends = f"{node.output[0]}.input", (f"{name}.scale", f"{name}.zero", f"{name}.rounded")
            nodes.append(helper.make_node("Mul", [node.input[0], f"{name}.input_factor"], [even]))
            nodes += _rounded(even, f"{name}.input_scale", f"{name}.input_zero", rounded)
            node.input[0], node.input[1] = rounded, ends[2]
            if ends[0] not in constants:  # else a layer before in this segment has the same weights
                weight = numpy_helper.to_array(weights[name])
                factors, step = _smoothing(inputs[name].largest, weight)
                weight = (weight * factors[:, None]).astype(weight.dtype)
                constants |= {
                    f"{name}.input_factor": (1 / factors).astype(weight.dtype),
                    f"{name}.input_scale": np.array(step, weight.dtype),
                    f"{name}.input_zero": np.array(0, np.int8),
                    ends[0]: _weight_scale(weight),
                    ends[1]: np.zeros(weight.shape[1], np.int8),
                }
                if opset >= DEQUANTIZED_WEIGHTS:
                    stored = np.round(weight.astype(np.float64) / constants[ends[0]]).clip(-127, 127).astype(np.int8)
                    weights[name].CopyFrom(numpy_helper.from_array(stored, name))
                    nodes.append(helper.make_node("DequantizeLinear", [name, *ends[:2]], [ends[2]], axis=1))
                else:
                    weights[name].CopyFrom(numpy_helper.from_array(weight, name))
                    nodes += _rounded(name, *ends, axis=1)
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # they die with the list below
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return replace(graph, model=model)


def _rounded(x: str, scale: str, zero: str, output: str, axis: int | None = None) -> list[onnx.NodeProto]:
    attributes = {} if axis is None else {"axis": axis}
    return [
        helper.make_node("QuantizeLinear", [x, scale, zero], [f"{output}.int8"], **attributes),
        helper.make_node("DequantizeLinear", [f"{output}.int8", scale, zero], [output], **attributes),
    ]


def _smoothing(reach: npt.NDArray, weight: npt.NDArray) -> tuple[npt.NDArray, float]:
    """(in,) what an activation's channels are divided by and the rows of its weight (in, out) multiplied by; and how
    large one int8 step of the activation is then."""
    rows = np.abs(weight.astype(np.float64)).max(axis=1)
    farthest, heaviest = float(reach.max()) or 1.0, float(rows.max()) or 1.0
    channels = np.maximum(reach.astype(np.float64), QUIET * farthest)
    factors = channels**MIGRATED / np.maximum(rows, QUIET * heaviest) ** (1 - MIGRATED)
    factors /= np.exp(np.log(factors).mean())
    return factors, float((channels / factors).max()) / 127


def _weight_scale(weight: npt.NDArray) -> npt.NDArray:
    """(out,) for a weight (in, out): its largest value in a channel is 127 steps."""
    scale = np.abs(weight.astype(np.float64)).max(axis=0) / 127
    return np.maximum(scale, float(np.finfo(weight.dtype).tiny)).astype(weight.dtype)
