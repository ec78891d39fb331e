"""What the weights of every layer are multiplied by, in a float32 pass over the samples that the checkpoint carries."""

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
"""Tokens that are kept per product, spread over all samples."""


@dataclass(frozen=True)
class Activations:
    """What a product with a weight (in, out) was given."""

    largest: Array
    """(in,) the largest absolute value of each channel."""
    rows: Array
    """(tokens, in) some of them."""

    def and_(self, other: Activations) -> Activations:
        return Activations(np.maximum(self.largest, other.largest), _some(np.concatenate([self.rows, other.rows])))


def product_inputs(
    embeddings: OnnxSegment,
    layers: Iterable[tuple[LayerSegment, OnnxSegment]],
    samples: Sequence[TokenBatch],
    weights: Sequence[str],
) -> dict[tuple[int, ...], dict[str, Activations]]:
    """Segment.body -> name of a weight -> what comes to its product. ``weights``: which, without their prefix."""
    start = _session(embeddings.model)
    states = [_values(start, embeddings, _ids(batch)) for batch in samples]
    found: dict[tuple[int, ...], dict[str, Activations]] = {}
    for segment, graph in layers:
        watched = onnx.ModelProto()
        watched.CopyFrom(graph.model)
        products = [n.input for n in watched.graph.node if n.op_type == "MatMul"]
        products = [(x, name) for x, name in products if name.rpartition("/")[2] in weights]
        inner = sorted({x for x, _ in products} - {"hidden_in"})
        watched.graph.output.extend(helper.make_tensor_value_info(x, TensorProto.FLOAT, None) for x in inner)
        session = _session(watched)
        mine = found.setdefault(segment.body, {})
        for _ in range(segment.repeat):
            passes = [{"hidden_in": state["hidden"], **_values(session, graph, state)} for state in states]
            for x, name in products:
                rows = np.concatenate([values[x].reshape(-1, values[x].shape[-1]) for values in passes])
                activations = Activations(np.abs(rows).max(axis=0), _some(rows))
                mine[name] = mine[name].and_(activations) if name in mine else activations
            states = [{**state, **values} for state, values in zip(states, passes, strict=True)]
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
