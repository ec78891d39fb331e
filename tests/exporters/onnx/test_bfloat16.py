"""bfloat16 segments: stored dtypes, inputs and outputs, and the rounding of the parity check."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ENCODERS, tiny_backbone
from onnx import TensorProto, helper, numpy_helper

from berxit.exporters.onnx.bfloat16 import rounded_in_float32, with_float32_borders
from berxit.exporters.onnx.graph import OnnxSegment, embeddings_graph, layer_graph
from berxit.exporters.segments import Segments, split_segments
from berxit.train.modeling import MultiExitModel


@pytest.fixture(params=ENCODERS)
def segments(request: pytest.FixtureRequest, tmp_path: Path) -> Segments:
    tiny_backbone(request.param).save_pretrained(tmp_path)
    model = MultiExitModel.from_backbone(tmp_path, num_labels=3, lte=True, pooling="mean", max_length=32)
    return split_segments(model.eval())


def graphs_of(segments: Segments, dtype: str) -> list[OnnxSegment]:
    layers = [layer_graph(segments, segment, opset=19, dtype=dtype) for segment in segments.layers]
    graphs = [embeddings_graph(segments, opset=19, dtype=dtype), *layers]
    return [with_float32_borders(graph) for graph in graphs] if dtype == "bfloat16" else graphs


def outputs_of(model: onnx.ModelProto, graph: OnnxSegment, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: tensors[i.role] for i in graph.inputs if i.role != "constant"}
    values = session.run([o.name for o in graph.outputs], {**feeds, **graph.constants})
    return dict(zip([o.role for o in graph.outputs], values, strict=True))


def on_the_grid(value: np.ndarray) -> bool:
    return bool((value == value.astype(ml_dtypes.bfloat16).astype(np.float32)).all())


def test_weights_are_bfloat16_and_inputs_outputs_and_exits_float32(segments: Segments) -> None:
    for graph in graphs_of(segments, "bfloat16"):
        assert {tensor.dtype for tensor in (*graph.inputs, *graph.outputs)} <= {"float32", "int32"}
        types = {tensor.name: tensor.data_type for tensor in graph.model.graph.initializer}
        for name, kind in types.items():
            wide = name.startswith(("classifier", "lte", "pooler", "numbers", "window"))
            if kind not in (TensorProto.INT64, TensorProto.INT32):
                assert kind == (TensorProto.FLOAT if wide else TensorProto.BFLOAT16), name
        onnx.checker.check_model(graph.model, full_check=True)
        names = [node.name for node in rounded_in_float32(graph.model).graph.node]
        assert len(names) == len(set(names))


def test_rounded_in_float32_rounds_between_nodes_and_not_in_the_exits(segments: Segments) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "input_ids": rng.integers(5, 27, (3, 9), dtype=np.int32),
        "token_type_ids": np.zeros((3, 9), np.int32),
        "attention_mask": np.ones((3, 9), np.int32),
    }
    exact, rounded = dict(tensors), dict(tensors)
    for graph, half in zip(graphs_of(segments, "float32"), graphs_of(segments, "bfloat16"), strict=True):
        exact |= outputs_of(graph.model, graph, exact)
        rounded |= outputs_of(rounded_in_float32(half.model), half, rounded)
        assert on_the_grid(rounded["hidden"])
        off = np.abs(rounded["hidden"] - exact["hidden"]).max() / np.abs(exact["hidden"]).max()
        assert 1e-4 < off < 0.1  # 8 bits are 4e-3 of a number
    assert not on_the_grid(rounded["logits"])
    assert not on_the_grid(rounded["lte"])


def test_rounded_in_float32_rounds_every_result_once() -> None:
    """(x + y) * y: rounding both results differs from rounding only the last one, and from rounding none."""
    value = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [64]) for name in ("sum", "total")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [64])
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.BFLOAT16),
        helper.make_node("Add", ["half", "y"], ["sum"]),
        helper.make_node("Mul", ["sum", "y"], ["total"]),
        helper.make_node("Cast", ["total"], ["out"], to=TensorProto.FLOAT),
    ]
    y = numpy_helper.from_array(np.array([1.0078125], ml_dtypes.bfloat16), "y")
    graph = helper.make_graph(nodes, "sum", [x], [out], [y], value_info=value)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(
        rounded_in_float32(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = np.linspace(1, 9, 64, dtype=np.float32)

    def bfloat16(number: np.ndarray) -> np.ndarray:
        return np.asarray(number, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)

    factor = np.float32(1.0078125)
    expected = bfloat16(bfloat16(bfloat16(given) + factor) * factor)
    assert (expected != bfloat16((given + factor) * factor)).any()
    np.testing.assert_array_equal(session.run(None, {"x": given})[0], expected)
