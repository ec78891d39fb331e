"""Weights stored in float16 and computed in float32: half the download size, for CPUs that do not compute in float16.

Each matrix is followed by a Cast, which a runtime folds when it loads the file. Of an embedding table, only the rows
that are looked up are cast.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from berxit.exporters.onnx.graph import OnnxSegment
from berxit.runtime.errors import BerxitError

FLOAT32_WEIGHTS = ("classifier.weight", "lte.weight", "cosine", "sine")
"""Weights that stay float32: they are few. The values of exits depend on the unit of a regression."""


def store_weights_fp16(graph: OnnxSegment) -> OnnxSegment:
    """The segment with its float32 matrices stored in float16: same inputs, same outputs.

    Raises BerxitError for a weight beyond the range of float16.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    tables = {node.input[0] for node in model.graph.node if node.op_type in ("Gather", "Slice")}
    casts: list[onnx.NodeProto] = []
    looked_up: set[str] = set()
    for tensor in model.graph.initializer:
        if (
            tensor.data_type != TensorProto.FLOAT
            or len(tensor.dims) < 2
            or tensor.name.rpartition("/")[2] in FLOAT32_WEIGHTS
        ):
            continue
        name = tensor.name
        with np.errstate(over="ignore"):
            half = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(half).all():
            raise BerxitError(f"weight {name} has values that float16 cannot hold: export in fp32")
        tensor.CopyFrom(numpy_helper.from_array(half, name))
        if name in tables:
            looked_up.add(name)
            continue
        tensor.name = f"{name}.half"
        casts.append(_to_float32(tensor.name, name))
    nodes = [*casts]
    for node in model.graph.node:
        if node.input[0] in looked_up:
            rows, found = f"{node.output[0]}.half", node.output[0]
            node.output[0] = rows
            nodes += [node, _to_float32(rows, found)]
        else:
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # freed by the deletion below
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    return OnnxSegment(model, graph.inputs, graph.outputs, graph.constants)


def _to_float32(x: str, output: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [x], [output], name=f"{output}.cast", to=TensorProto.FLOAT)
