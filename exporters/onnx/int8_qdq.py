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
from berxit.exporters.smoothing import limited, smoothing_scales

QDQ_WEIGHTS = ("qkv.weight", "output.weight", "up.weight", "down.weight", "gated_down.weight")
"""Weights whose matmuls run in int8: all matrices of a layer. The matmuls of the attention itself have no weights."""

MIGRATION_STRENGTH = 0.85
"""SmoothQuant's alpha: the share of the channels' differences that moves to the weights. With the paper's 0.5, the
matmul after the activation is worse in MiniLM-L6 and bge-small; for the numbers, see docs/tensorrt.md."""


def quantize_for_tensorrt(graph: OnnxSegment, inputs: Mapping[str, Activations], *, int8_weights: bool) -> OnnxSegment:
    """The segment with its matmuls in int8; everything else keeps its dtype.

    Outliers are not clipped, because BERT's predictions depend on its few outlier channels.

    ``inputs``: name of a weight -> activations that its matmul receives. ``int8_weights``: store the weights in int8;
    otherwise they are stored as they are, and quantized and dequantized in the graph.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants = _smooth(model, inputs, arrays)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if _is_quantized(node, inputs):
            x, name = node.input
            rounded, ends = f"{node.output[0]}.input", (f"{name}.scale", f"{name}.zero", f"{name}.rounded")
            if (factor := f"{name}.input_factor") in constants:
                nodes.append(helper.make_node("Mul", [x, factor], [f"{node.output[0]}.smoothed"]))
                x = f"{node.output[0]}.smoothed"
            nodes += _rounded(x, f"{name}.input_scale", f"{name}.input_zero", rounded)
            node.input[:] = rounded, ends[2]
            if ends[0] not in constants:  # else an earlier layer of this segment has the same weights
                weight = arrays[name]
                constants[ends[0]] = _weight_scale(weight)
                constants[ends[1]] = np.zeros(weight.shape[1], np.int8)
                if int8_weights:
                    stored = np.round(weight.astype(np.float64) / constants[ends[0]])
                    arrays[name] = stored.clip(-127, 127).astype(np.int8)
                    nodes.append(helper.make_node("DequantizeLinear", [name, *ends[:2]], [ends[2]], axis=1))
                else:
                    nodes += _rounded(name, *ends, axis=1)
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # freed by the deletion below
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    stored_arrays = {name: value for name, value in {**arrays, **constants}.items() if name in used}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored_arrays.items())
    onnx.checker.check_model(model, full_check=True)
    return replace(graph, model=model)


def _is_quantized(node: onnx.NodeProto, inputs: Mapping[str, Activations]) -> bool:
    return node.op_type == "MatMul" and node.input[1] in inputs


def _smooth(
    model: onnx.ModelProto, inputs: Mapping[str, Activations], arrays: dict[str, npt.NDArray]
) -> dict[str, npt.NDArray]:
    """Smooths the inputs of the matmuls: changes ``arrays``, and returns each matmul's int8 step and zero point, with
    the factor of its input if that needs an operator.

    The last matmul is the first, because its smoothing scales may change the weights before it.
    """
    constants: dict[str, npt.NDArray] = {}
    producers = {output: node for node in model.graph.node for output in node.output}
    matmuls = [node for node in model.graph.node if _is_quantized(node, inputs)]
    for name in dict.fromkeys(node.input[1] for node in reversed(matmuls)):
        dtype = arrays[name].dtype
        scales, step = _smoothing(inputs[name].largest, arrays[name])
        arrays[name] = (arrays[name] * scales[:, None]).astype(dtype)
        constants[f"{name}.input_scale"], constants[f"{name}.input_zero"] = np.array(step, dtype), np.array(0, np.int8)
        sources = [producers.get(node.input[0]) for node in matmuls if node.input[1] == name]
        if not _fold(1 / scales, name, sources, arrays):
            constants[f"{name}.input_factor"] = (1 / scales).astype(dtype)
    return constants


def _fold(factor: npt.NDArray, name: str, sources: list[onnx.NodeProto | None], arrays: dict[str, npt.NDArray]) -> bool:
    """Multiplies the input channels of the matmul with the weight ``name`` by ``factor`` (in,) without an operator of
    its own. False if that is impossible: hidden states are also added to the outputs of attention and feed forward.

    ``sources``: the nodes that write the matmul's input, one per layer of the segment.
    """
    before, kind = name[: name.rfind("/") + 1], name.rpartition("/")[2]
    if kind == "output.weight":  # Attention averages the values channel by channel.
        columns, changed = slice(-len(factor), None), ("qkv.weight", "qkv.bias")
    elif kind == "gated_down.weight":  # The activation is multiplied by the second half.
        columns, changed = slice(-len(factor), None), ("up.weight", "up.bias")
    elif kind == "down.weight" and all(node and node.op_type == "Relu" for node in sources):
        columns, changed = slice(None), ("up.weight", "up.bias")
    elif kind == "down.weight" and all(node and node.op_type == "Mul" for node in sources):  # GELU ends in "times 0.5"
        for node in filter(None, sources):
            half, node.input[1] = arrays[node.input[1]], f"{name}.half"
            arrays[f"{name}.half"] = (half * factor).astype(half.dtype)
        return True
    else:
        return False
    for array in (before + each for each in changed if before + each in arrays):
        arrays[array] = arrays[array].copy()
        arrays[array][..., columns] *= factor.astype(arrays[array].dtype)
    return True


def _rounded(x: str, scale: str, zero: str, output: str, axis: int | None = None) -> list[onnx.NodeProto]:
    attributes = {} if axis is None else {"axis": axis}
    return [
        helper.make_node("QuantizeLinear", [x, scale, zero], [f"{output}.int8"], **attributes),
        helper.make_node("DequantizeLinear", [f"{output}.int8", scale, zero], [output], **attributes),
    ]


def _smoothing(reach: npt.NDArray, weight: npt.NDArray) -> tuple[npt.NDArray, float]:
    """Smoothing scales (in,), and the int8 step of the activation after smoothing.

    ``reach`` (in,): largest absolute value of each channel.
    """
    channels, rows = limited(reach.astype(np.float64)), limited(np.abs(weight.astype(np.float64)).max(axis=1))
    scales = smoothing_scales(channels, rows, MIGRATION_STRENGTH)
    return scales, float((channels / scales).max()) / 127


def _weight_scale(weight: npt.NDArray) -> npt.NDArray:
    """Scales (out,) of a weight (in, out): the largest value of a column is 127 steps."""
    scale = np.abs(weight.astype(np.float64)).max(axis=0) / 127
    return np.maximum(scale, float(np.finfo(weight.dtype).tiny)).astype(weight.dtype)
