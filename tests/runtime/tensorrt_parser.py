"""The rules of TensorRT's ONNX parser, from the sources of onnx-tensorrt (tags release/8.5-GA, 8.6-GA and 10.1-GA) and
TensorRT's headers (NvInfer.h, addQuantize and addDequantize). Rules that no segment can break are left out.

TensorRT-RTX's real parser confirms those of 10: see tests/exporters/onnx/test_tensorrt_export.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

Version = tuple[int, int]

_ADDED: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "tensorrt_operators.json").read_text(encoding="utf-8")
)
"""Version -> operators that it added to those of earlier ones."""
_TYPES: dict[Version, set[int]] = {
    (8, 5): {
        TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32,
        TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE,
    },
    (10, 0): {TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4},
}  # fmt: skip
"""Version -> element types that it added."""
_AXES = {"Squeeze": 1, "ReduceSum": 1, "Unsqueeze": 1, "Slice": 3}
"""Operator -> its input that must be an initializer."""


class UndefinedError(AssertionError):
    """The parser accepts the file and the engine computes something else, or reads memory that is not the file's."""


@dataclass
class Parser:
    """Parser of a version, for one file."""

    version: Version
    model: onnx.ModelProto

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        self.types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *inferred.value_info, *graph.output)}
        self.types |= {name: tensor.data_type for name, tensor in self.weights.items()}

    @property
    def operators(self) -> set[str]:
        return {name for version, names in _ADDED.items() if _number(version) <= self.version for name in names}

    @property
    def elements(self) -> set[int]:
        return {kind for version, kinds in _TYPES.items() if version <= self.version for kind in kinds}

    def errors(self) -> list[str]:
        """Why the parser rejects the file; empty if it accepts it. Raises UndefinedError if it should not accept it."""
        graph = self.model.graph
        found = [
            f"Failed to import initializer {tensor.name}"
            for tensor in graph.initializer
            if tensor.data_type not in self.elements
        ]
        found += [
            f"Failed to convert the ONNX data type of {value.name}"
            for value in (*graph.input, *graph.output)
            if value.type.tensor_type.elem_type not in self.elements
        ]
        return found + [f"In node {node.name}: {error}" for node in graph.node for error in self._node(node)]

    def _node(self, node: onnx.NodeProto) -> Iterator[str]:
        if node.domain not in ("", "ai.onnx") or node.op_type not in self.operators:
            yield f"Plugin not found for {node.op_type}, are the plugin name, version, and namespace correct?"
            return
        if node.op_type == "Cast" and node.attribute[0].i not in self.elements:
            yield "Unsupported data type for the Cast operator!"
        axes = _AXES.get(node.op_type)
        if axes is not None and len(node.input) > axes and node.input[axes] not in self.weights:
            yield f"{node.op_type} axes input must be an initializer!"
        if node.op_type == "ReduceMean" and len(node.input) > 1 and self.version < (10, 0):
            raise UndefinedError(f"TensorRT 8 ignores the input axes of {node.name} and reduces all axes")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from self._quantization(node)

    def _quantization(self, node: onnx.NodeProto) -> Iterator[str]:
        if len(node.input) < 3:
            if self.version < (8, 6):
                yield f"This version of TensorRT requires 3 inputs for the {node.op_type} operator."
            return
        data, scale, zero = node.input
        if TensorProto.UINT8 in (self.types.get(data), self.types[zero]):
            yield "Found invalid input type of UINT8"
        if node.op_type == "DequantizeLinear" and self.types.get(data) == TensorProto.INT32:
            yield "DequantizeLinear has an input of type INT32"
        if np.any(self._array(zero)):
            yield "TensorRT only supports symmetric quantization. The zero point must be all zeros."
        if self._array(zero).size != self._array(scale).size:
            yield "The scale and zero point must have the same volume."
        if self.version < (10, 0) and self.types[scale] != TensorProto.FLOAT:
            raise UndefinedError(f"TensorRT 8 reads the scale of {node.name} as float32, past the end of its buffer")
        if not np.all(self._array(scale) > 0):
            yield "Scale coefficients must all be positive"
        axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
        if self._array(scale).size > 1 and data in self.weights:
            shape = self.weights[data].dims
            if shape[axes[0] if axes else 0] != self._array(scale).size:
                yield "The number of scales is not equal to the number of output channels."

    def _array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.weights[name])


def _number(version: str) -> Version:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def rules_of(version: str) -> Version:
    """The version whose rules a TensorRT has: rtx1.7 has those of 10."""
    return (10, 0) if version.startswith("rtx") else _number(version)
