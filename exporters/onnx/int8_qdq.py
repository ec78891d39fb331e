"""Int8 for TensorRT: QuantizeLinear and DequantizeLinear around the four large matmuls of a layer.

Quantization is symmetric: weights per output channel, activations per tensor, biases not at all. The range of the
activations is measured on the golden inputs. A few of BERT's channels (outlier channels) have much larger values than
the others, and one scale for all would be too coarse for the others. Activations are therefore divided by smoothing
scales, and the weights multiplied by them (SmoothQuant, Xiao et al. 2023, equations 3 and 4).
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
"""Weights whose matmuls run in int8: all matrices of a layer. The matmuls of the attention itself have no weights."""

DEQUANTIZED_WEIGHTS = 19
"""Opset from which weights are stored in int8. With earlier ones, TensorRT (8) quantizes float weights itself."""

MIGRATION_STRENGTH = 0.85
"""SmoothQuant's alpha: the share of the channels' differences that moves to the weights. With the paper's 0.5, the
matmul after the activation is worse in MiniLM-L6 and bge-small; for the numbers, see docs/tensorrt.md."""
SMALLEST_CHANNEL = 1e-3
"""Lower limit of a channel's largest value, as a share of the largest channel's. float16 must represent the ratio."""


def quantize_for_tensorrt(graph: OnnxSegment, inputs: Mapping[str, Activations]) -> OnnxSegment:
    """The segment with its matmuls in int8; everything else keeps its dtype.

    Outliers are not clipped, because BERT's predictions depend on its few outlier channels.

    ``inputs``: name of a weight -> activations that its matmul receives.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    opset = model.opset_import[0].version
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, npt.NDArray] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in inputs:
            name, smoothed = node.input[1], f"{node.output[0]}.even"
            rounded, ends = f"{node.output[0]}.input", (f"{name}.scale", f"{name}.zero", f"{name}.rounded")
            nodes.append(helper.make_node("Mul", [node.input[0], f"{name}.input_factor"], [smoothed]))
            nodes += _rounded(smoothed, f"{name}.input_scale", f"{name}.input_zero", rounded)
            node.input[0], node.input[1] = rounded, ends[2]
            if ends[0] not in constants:  # else an earlier layer of this segment has the same weights
                weight = numpy_helper.to_array(weights[name])
                scales, step = _smoothing(inputs[name].largest, weight)
                weight = (weight * scales[:, None]).astype(weight.dtype)
                constants |= {
                    f"{name}.input_factor": (1 / scales).astype(weight.dtype),
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
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # freed by the deletion below
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
    """Smoothing scales (in,), and the int8 step of the activation after smoothing.

    ``reach`` (in,): largest absolute value of each channel. Channels of the activation are divided by the scales, rows
    of the weight (in, out) multiplied by them.
    """
    rows = np.abs(weight.astype(np.float64)).max(axis=1)
    largest, heaviest = float(reach.max()) or 1.0, float(rows.max()) or 1.0
    channels = np.maximum(reach.astype(np.float64), SMALLEST_CHANNEL * largest)
    scales = channels**MIGRATION_STRENGTH / np.maximum(rows, SMALLEST_CHANNEL * heaviest) ** (1 - MIGRATION_STRENGTH)
    scales /= np.exp(np.log(scales).mean())
    return scales, float((channels / scales).max()) / 127


def _weight_scale(weight: npt.NDArray) -> npt.NDArray:
    """Scales (out,) of a weight (in, out): the largest value of a column is 127 steps."""
    scale = np.abs(weight.astype(np.float64)).max(axis=0) / 127
    return np.maximum(scale, float(np.finfo(weight.dtype).tiny)).astype(weight.dtype)
