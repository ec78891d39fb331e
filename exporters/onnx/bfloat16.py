"""Segments that compute in bfloat16: the range of float32 in half the bytes, with 8 bits of precision.

numpy has no bfloat16, and ONNX Runtime has no CPU kernels for it. Tensors between segments are therefore float32, and
the parity check runs the same graph in float32 with every result rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from berxit.exporters.onnx.graph import OnnxSegment
from berxit.runtime.backends.host import HostBackend, Run
from berxit.runtime.bundle import Manifest, Segment, TensorInfo
from berxit.runtime.bundle_files import BundleFile, BundleFolder


def with_float32_borders(graph: OnnxSegment) -> OnnxSegment:
    """The segment with inputs and outputs in float32. Everything between them stays bfloat16."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    inputs, outputs = (
        [value for value in values if value.type.tensor_type.elem_type == TensorProto.BFLOAT16]
        for values in (model.graph.input, model.graph.output)
    )
    inner = {value.name: f"{value.name}.bfloat16" for value in (*inputs, *outputs)}
    for node in model.graph.node:
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    for value in (*inputs, *outputs):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    before = [_cast(value.name, inner[value.name], TensorProto.BFLOAT16) for value in inputs]
    after = [_cast(inner[value.name], value.name, TensorProto.FLOAT) for value in outputs]
    _replace_nodes(model, [*before, *model.graph.node, *after])
    onnx.checker.check_model(model, full_check=True)
    return replace(graph, model=model, inputs=_in_float32(graph.inputs), outputs=_in_float32(graph.outputs))


def rounded_in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for a machine without bfloat16. It computes in float32; weights and results of nodes that were
    bfloat16 are rounded to bfloat16. Sums within a node are float32, as on a GPU."""
    twin = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    rounded = {v.name for v in twin.graph.value_info if v.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    del twin.graph.value_info[:]
    for tensor in twin.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in twin.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
        names = [name for name in node.output if name in rounded]
        node.output[:] = [f"{name}.exact" if name in rounded else name for name in node.output]
        nodes.append(node)
        for name in names:
            nodes.append(_cast(f"{name}.exact", f"{name}.bits", TensorProto.BFLOAT16))
            nodes.append(_cast(f"{name}.bits", name, TensorProto.FLOAT))
    _replace_nodes(twin, nodes)
    onnx.checker.check_model(twin, full_check=True)
    return twin


class RoundingBackend(HostBackend):
    """Backend of the parity check: runs every segment as ``rounded_in_float32``."""

    name = "onnxruntime"

    def __init__(self, folder: Path, manifest: Manifest, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Optimizations would remove the casts.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

        def open_file(segment: Segment, file: BundleFile) -> Run:
            twin = rounded_in_float32(onnx.load_from_string(file.read_bytes()))
            session = onnxruntime.InferenceSession(
                twin.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return partial(session.run, [output.name for output in segment.outputs])

        super().__init__(BundleFolder.at(folder), manifest, threads, open_file)


def _cast(x: str, output: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [x], [output], name=f"{x}.cast", to=to)


def _in_float32(tensors: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    return tuple(replace(t, dtype="float32") if t.dtype == "bfloat16" else t for t in tensors)


def _replace_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # freed by the deletion below
    del model.graph.node[:]
    model.graph.node.extend(kept)
