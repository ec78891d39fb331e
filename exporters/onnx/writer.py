"""Writer of ONNX graphs: collects nodes and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import ml_dtypes  # noqa: F401 - with it numpy knows "bfloat16"
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from berxit.runtime.bundle import FLOAT32_NODES, TensorInfo
from berxit.runtime.errors import BerxitError, InputError
from berxit.train.backbones.weights import Linear, Norm

OPSET = 17
"""The first opset with LayerNormalization; ONNX Runtime 1.12 and TensorRT 8.6 support it."""

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
}


@dataclass
class GraphWriter:
    """Collects nodes and weights. Every method adds an operator and returns the name of its output."""

    opset: int = OPSET
    dtype: str = "float32"
    """Dtype of weights and operators."""
    prefix: str = ""
    """Start of the names of the nodes."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, npt.NDArray] = field(default_factory=dict)
    constants: dict[str, npt.NDArray] = field(default_factory=dict)
    """Constant inputs: weights in which layers that share the file differ."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Outputs that several layers of a graph read, by key."""

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{self.prefix}{output}", **attributes))
        return output

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """The nodes that are added within compute in float32 in every precision, which their names state."""
        before = self.dtype, self.prefix
        self.dtype, self.prefix = "float32", FLOAT32_NODES
        yield
        self.dtype, self.prefix = before

    def weight(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = None) -> str:
        with np.errstate(over="ignore"):  # raises below, with the name
            stored = np.asarray(value, dtype=dtype or self.dtype, order="C")
        if not np.isfinite(stored).all():
            raise BerxitError(f"weight {name} has values that {stored.dtype} cannot hold: export in fp32")
        self.weights[name] = stored
        return name

    def cast(self, x: str, dtype: str) -> str:
        """A Cast to ``dtype``; x itself if the graph has that dtype."""
        return x if self.dtype == dtype else self.op("Cast", x, to=TYPES[dtype])

    def constant(self, name: str, value: npt.NDArray) -> str:
        self.constants[name] = np.asarray(value, dtype=np.float32, order="C")
        return name

    def linear(self, name: str, x: str, linear: Linear, *, external: bool = False) -> str:
        add = self.constant if external else self.weight
        product = self.op("MatMul", x, add(f"{name}.weight", linear.weight))
        return product if linear.bias is None else self.op("Add", product, add(f"{name}.bias", linear.bias))

    def norm(self, name: str, x: str, norm: Norm, output: str = "") -> str:
        if self.opset < 17:
            return self._norm_in_parts(name, x, norm, output)
        parameters = [self.weight(f"{name}.scale", norm.scale)]
        if norm.shift is not None:
            parameters.append(self.weight(f"{name}.shift", norm.shift))
        return self.op("LayerNormalization", x, *parameters, axis=-1, epsilon=norm.epsilon, output=output)

    def _norm_in_parts(self, name: str, x: str, norm: Norm, output: str) -> str:
        """LayerNormalization in basic operators, in float32: squares of outliers exceed the range of float16."""
        x, same = self.cast(x, "float32"), self.dtype == "float32"
        with self.in_float32():
            centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1], keepdims=1))
            variance = self.op("ReduceMean", self.op("Mul", centred, centred), axes=[-1], keepdims=1)
            deviation = self.op("Sqrt", self.op("Add", variance, self.weight(f"{name}.epsilon", norm.epsilon)))
            last, divided = output if same else "", self.op("Div", centred, deviation)
            scale = self.weight(f"{name}.scale", norm.scale)
            total = self.op("Mul", divided, scale, output="" if norm.shift is not None else last)
            if norm.shift is not None:
                total = self.op("Add", total, self.weight(f"{name}.shift", norm.shift), output=last)
        return total if same else self.op("Cast", total, to=TYPES[self.dtype], output=output)

    def split(self, x: str, names: Sequence[str], sizes: Sequence[int]) -> list[str]:
        """Parts of these ``sizes`` along the last axis."""
        parts = [f"{x}_{name}" for name in names]
        stored = self.weight(f"parts_of_{'_'.join(map(str, sizes))}", sizes, np.int64)
        node = helper.make_node("Split", [x, stored], parts, name=f"{self.prefix}{x}_split", axis=-1)
        self.nodes.append(node)
        return parts

    def once(self, key: str, add: Callable[[], str]) -> str:
        """The output of ``add``, which is called once per graph and key."""
        if key not in self.outputs:
            self.outputs[key] = add()
        return self.outputs[key]

    def length(self, x: str) -> str:
        """(1,) number of tokens S of a tensor (B, S, ...)."""

        def add() -> str:
            first, one, two = (
                self.weight(name, [value], np.int64)
                for name, value in (("rows", 0), ("length_axis", 1), ("after_length", 2))
            )
            return self.op("Slice", self.op("Shape", x), one, two, first)  # TensorRT 8.5 may not support Shape's start

        return self.once("length", add)

    def first(self, table: str, length: str) -> str:
        """The first ``length`` rows of a table."""
        return self.op("Slice", table, self.weight("zero", [0], np.int64), length, self.weight("rows", [0], np.int64))

    def activation(self, name: str, x: str) -> str:
        half, one = self.weight("half", 0.5), self.weight("one", 1.0)
        if name == "relu":
            return self.op("Relu", x)
        if name == "gelu":  # x / 2 (1 + erf(x / sqrt 2)), in the form that ONNX Runtime fuses
            gate = self.op("Erf", self.op("Div", x, self.weight("sqrt_2", np.sqrt(2.0))))
        elif name in ("gelu_new", "gelu_pytorch_tanh"):  # x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
            cube = self.op("Mul", self.op("Pow", x, self.weight("three", 3.0)), self.weight("gelu_cubic", 0.044715))
            inner = self.op("Mul", self.op("Add", x, cube), self.weight("gelu_scale", np.sqrt(2.0 / np.pi)))
            gate = self.op("Tanh", inner)
        else:
            raise InputError(f"activation '{name}' is not supported: the backbone must use gelu, gelu_new or relu")
        return self.op("Mul", self.op("Mul", x, self.op("Add", gate, one)), half)

    def finish(self, name: str, inputs: list[TensorInfo], outputs: list[TensorInfo]) -> onnx.ModelProto:
        used = {i for node in self.nodes for i in node.input}
        graph = helper.make_graph(
            self.nodes,
            name,
            [_value(info) for info in inputs],
            [_value(info) for info in outputs],
            [numpy_helper.from_array(array, key) for key, array in self.weights.items() if key in used],
        )
        opset = helper.make_opsetid("", self.opset)
        ir_version = 8 if self.opset < 19 else 9
        model = helper.make_model(graph, opset_imports=[opset], ir_version=ir_version, producer_name="berxit")
        onnx.checker.check_model(model, full_check=True)
        return model


def _value(info: TensorInfo) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(info.name, TYPES[info.dtype], info.shape)
