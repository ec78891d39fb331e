"""Joins the segments of a bundle into one graph without exits, except the last.

The graph computes only what the last exit depends on. If the last segment computes only the first token, so does the
graph; the comparison is fair in this respect.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from berxit.runtime.bundle import Segment, read_tensor


def write_whole_graph(bundle: Path, segments: Sequence[Segment], output: Path) -> None:
    """Writes one ONNX file that maps token ids to the logits of the last exit.

    ``segments``: the ONNX files in ``bundle``, in order. Layers with the same file share their weights in the graph.
    """
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, onnx.TensorProto] = {}
    state: dict[str, str] = {}
    for segment in segments:
        part = onnx.load(str(bundle / segment.file))
        if not state:
            first = part
        known = _weights(part, segment, bundle, weights)
        for turn in range(segment.repeat):
            prefix = f"s{segment.layer}_{turn}_"
            before = {each.name: state.get(each.role, each.name) for each in segment.inputs}
            nodes += _renamed(part, prefix, {**before, **known})
            state.update({o.role: prefix + o.name for o in segment.outputs})
    nodes, used = _needed(nodes, state["logits"])
    logits = next(o for o in part.graph.output if prefix + o.name == state["logits"])
    logits.name = state["logits"]
    initializers = [tensor for name, tensor in weights.items() if name in used]
    inputs = [each for each in first.graph.input if each.name in used]
    graph = helper.make_graph(nodes, "whole", inputs, [logits], initializers)
    onnx.save(helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version), str(output))


def _weights(
    part: onnx.ModelProto, segment: Segment, bundle: Path, weights: dict[str, onnx.TensorProto]
) -> dict[str, str]:
    """Adds the weights of a segment to ``weights``, under names that are unique per file; returns old -> new names."""
    known = {}
    for tensor in part.graph.initializer:
        known[tensor.name] = shared = f"{Path(segment.file).stem}/{tensor.name}"
        tensor.name, weights[shared] = shared, tensor
    for name, file in segment.constants.items():  # constant inputs of a shared body become weights
        known[name] = f"s{segment.layer}_{name}"
        weights[known[name]] = numpy_helper.from_array(read_tensor(bundle, file).copy(), known[name])
    return known


def _renamed(part: onnx.ModelProto, prefix: str, known: dict[str, str]) -> list[onnx.NodeProto]:
    """Nodes of a segment with a prefix to their names; ``known``: new names of earlier outputs and of the weights."""
    nodes = []
    for i, original in enumerate(part.graph.node):
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.name = f"{prefix}{i}_{node.name}"
        node.input[:] = [known.get(name, prefix + name) if name else "" for name in node.input]
        node.output[:] = [prefix + name for name in node.output]
        nodes.append(node)
    return nodes


def _needed(nodes: list[onnx.NodeProto], output: str) -> tuple[list[onnx.NodeProto], set[str]]:
    """Nodes that ``output`` depends on, in order, and all names that they use."""
    wanted = {output}
    kept = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1], wanted
