"""Activations that the matmuls of every segment receive, from a float32 pass over the golden inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from berxit.exporters.onnx.graph import OnnxSegment
from berxit.exporters.segments import LayerSegment
from berxit.runtime.tokenization import TokenBatch

Array = npt.NDArray[np.float32]
ROWS = 512
"""Tokens that are kept per matmul, spread over all samples."""


@dataclass(frozen=True)
class Activations:
    """Activations that the matmul with a weight (in, out) receives."""

    largest: Array
    """(in,) largest absolute value of each channel."""
    rows: Array
    """(tokens, in) a subset of the tokens."""

    def and_(self, other: Activations) -> Activations:
        return Activations(np.maximum(self.largest, other.largest), _some(np.concatenate([self.rows, other.rows])))


EMBEDDINGS = ()
"""Key of the embeddings segment in the result of ``matmul_inputs``."""


def matmul_inputs(
    embeddings: OnnxSegment,
    layers: Iterable[tuple[LayerSegment, OnnxSegment]],
    samples: Sequence[TokenBatch],
    weights: Sequence[str],
) -> dict[tuple[int, ...], dict[str, Activations]]:
    """Segment.body (or EMBEDDINGS) -> name of a weight -> activations that its matmul receives.

    ``weights``: which weights, without their prefix. Layers that share a body share an entry.
    """
    start = _Watched(embeddings, weights)
    states = [start.run(_ids(batch)) for batch in samples]
    found: dict[tuple[int, ...], dict[str, Activations]] = {EMBEDDINGS: start.collected(states)}
    for segment, graph in layers:
        watched = _Watched(graph, weights)
        mine = found.setdefault(segment.body, {})
        for _ in range(segment.repeat):
            passes = [{"hidden_in": state["hidden"], **watched.run(state)} for state in states]
            for name, activations in watched.collected(passes).items():
                mine[name] = mine[name].and_(activations) if name in mine else activations
            states = [{**state, **values} for state, values in zip(states, passes, strict=True)]
    return found


class _Watched:
    """A segment whose session also returns the inputs of the matmuls with some weights."""

    def __init__(self, graph: OnnxSegment, weights: Sequence[str]) -> None:
        self.graph = graph
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        matmuls = [node.input for node in model.graph.node if node.op_type == "MatMul"]
        self.matmuls = [(x, name) for x, name in matmuls if name.rpartition("/")[2] in weights]
        known = {output.name for output in model.graph.output} | {"hidden_in"}
        inner = sorted({x for x, _ in self.matmuls} - known)
        model.graph.output.extend(helper.make_tensor_value_info(x, TensorProto.FLOAT, None) for x in inner)
        self.session = _session(model)

    def run(self, tensors: Mapping[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        return _values(self.session, self.graph, tensors)

    def collected(self, passes: Sequence[Mapping[str, npt.NDArray]]) -> dict[str, Activations]:
        """Name of a weight -> activations, from the values of ``run`` for every sample."""
        found: dict[str, Activations] = {}
        for x, name in self.matmuls:
            rows = np.concatenate([values[x].reshape(-1, values[x].shape[-1]) for values in passes])
            activations = Activations(np.abs(rows).max(axis=0), _some(rows))
            found[name] = found[name].and_(activations) if name in found else activations
        return found


def _some(rows: Array) -> Array:
    return rows[:: max(1, -(-len(rows) // ROWS))]


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _ids(batch: TokenBatch) -> dict[str, npt.NDArray]:
    return {
        "input_ids": batch.input_ids,
        "token_type_ids": batch.token_type_ids,
        "attention_mask": batch.attention_mask,
    }


def _values(
    session: onnxruntime.InferenceSession, graph: OnnxSegment, tensors: Mapping[str, npt.NDArray]
) -> dict[str, npt.NDArray]:
    """Role of an output, or its name where it has none -> value."""
    feeds = {i.name: tensors[i.role] for i in graph.inputs if i.role != "constant"}
    roles = {output.name: output.role for output in graph.outputs}
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {**feeds, **graph.constants})
    return {roles.get(name, name): value for name, value in zip(names, values, strict=True)}
