"""Matrix multiplications of a model without any other operator, with the fastest available implementation.

They are a lower bound for the latency on this machine. The report shows how close each contender is to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.runtime.policies import Floats
from berxit.runtime.tokenization import TokenBatch

Pass = Callable[[], object]
"""Function that runs a pass on prepared operands and discards the results."""


class Product(NamedTuple):
    """Matrix multiplication (rows, deep) @ (deep, wide), in a batch of ``pairs``."""

    rows: int
    deep: int
    wide: int
    pairs: int = 1
    weights: bool = True
    """True if the second operand is a weight; False if both are activations (attention)."""

    @property
    def flops(self) -> int:
        """Floating-point operations; two per multiply-add."""
        return 2 * self.pairs * self.rows * self.deep * self.wide


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that determine its matrix multiplications."""

    layers: int
    hidden: int
    wide: int
    heads: int
    last_alone: bool = False
    """True if the last layer computes only the token that its exit reads, after the keys and values of all tokens."""

    @classmethod
    def of(cls, checkpoint: Path, *, last_alone: bool = False) -> Shape:
        from berxit.train.checkpoint import read_config

        c = read_config(checkpoint)["backbone"]
        names = (  # the names in most families, and in DistilBERT
            ("num_hidden_layers", "n_layers"),
            ("hidden_size", "dim"),
            ("intermediate_size", "hidden_dim"),
            ("num_attention_heads", "n_heads"),
        )
        layers, hidden, wide, heads = (int(next(c[name] for name in pair if name in c)) for pair in names)
        return cls(layers, hidden, wide, heads, last_alone)

    def products(self, rows: int, tokens: int) -> Iterator[Product]:
        """Matrix multiplications for ``rows`` inputs of ``tokens`` tokens at full depth, in order."""
        d, size, heads = self.hidden, self.hidden // self.heads, rows * self.heads
        for layer in range(1, self.layers + 1):
            queries = 1 if self.last_alone and layer == self.layers else tokens
            if queries == tokens:
                yield Product(rows * tokens, d, 3 * d)
            else:
                yield Product(rows * tokens, d, 2 * d)
                yield Product(rows, d, d)
            yield Product(queries, size, tokens, heads, weights=False)
            yield Product(queries, tokens, size, heads, weights=False)
            yield Product(rows * queries, d, d)
            yield Product(rows * queries, d, self.wide)
            yield Product(rows * queries, self.wide, d)

    def flops(self, tokens: int) -> int:
        """Floating-point operations of the matrix multiplications for one row at full depth."""
        return sum(product.flops for product in self.products(1, tokens))


class MatrixProducts:
    """Contender that runs all matrix multiplications of a pass, with separate weights for every layer.

    Weights are packed before the measurement if the implementation supports it. Every implementation is tried at each
    shape, and the fastest is measured.
    """

    def __init__(self, shape: Shape, threads: int, precision: str) -> None:
        self.shape, self.threads, self.precision = shape, threads, precision
        self.fastest: dict[tuple[int, int], tuple[str, Pass]] = {}

    def full(self, batch: TokenBatch) -> Floats:
        self._at(*batch.input_ids.shape)[1]()
        return np.zeros((len(batch), 1), dtype=np.float32)

    def way(self, batch: TokenBatch) -> str:
        """Name of the fastest implementation for a batch of this shape."""
        return self._at(*batch.input_ids.shape)[0]

    def _at(self, rows: int, tokens: int) -> tuple[str, Pass]:
        if (rows, tokens) not in self.fastest:
            found: dict[str, tuple[float, Pass]] = {}
            for name, way in WAYS[self.precision].items():
                with suppress(AttributeError, RuntimeError):  # not supported by this CPU or version of torch
                    run = way(tuple(self.shape.products(rows, tokens)), self.threads)
                    run()  # warm-up
                    found[name] = min(_seconds(run) for _ in range(2)), run
            name = min(found, key=lambda each: found[each][0])
            self.fastest[rows, tokens] = name, found[name][1]
        return self.fastest[rows, tokens]


def _seconds(run: Pass) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _plain(dtype: str, products: Sequence[Product], threads: int) -> Pass:
    """Pass with torch.mm, or torch._int_mm for int8."""
    torch = _torch(threads)
    mm = torch._int_mm if dtype == "int8" else torch.mm

    def make(product: Product) -> Pass:
        return partial(mm, *_operands(torch, product, dtype))

    return _in_turn(torch, products, dtype, make)


def _packed(dtype: str, products: Sequence[Product], threads: int) -> Pass:
    """Pass with oneDNN on packed weights, as torch.compile generates it."""
    torch = _torch(threads)

    def make(product: Product) -> Pass:
        x, weight = _operands(torch, product, dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous(), product.rows)
        return partial(torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], "")

    def make_int8(product: Product) -> Pass:
        x, weight = _operands(torch, product, "int8")
        x = (x.to(torch.int16) + 128).to(torch.uint8)
        ops = torch.ops.onednn
        packed = ops.qlinear_prepack(weight.t().contiguous(), [product.rows, product.deep])
        scales, zeros = torch.ones(product.wide), torch.zeros(product.wide, dtype=torch.int32)
        fixed: tuple[Any, ...] = (packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
        return partial(ops.qlinear_pointwise, x, 0.01, 128, *fixed)

    return _in_turn(torch, products, dtype, make_int8 if dtype == "int8" else make)


def _torch(threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    return torch


def _operands(torch: Any, product: Product, dtype: str) -> list[Any]:
    lead = () if product.weights else (product.pairs,)
    sizes = (*lead, product.rows, product.deep), (*lead, product.deep, product.wide)
    kind = np.dtype(np.int8 if dtype == "int8" else np.float32)
    operands = [torch.from_numpy(_filled(size, kind)) for size in sizes]
    return [operand.bfloat16() for operand in operands] if dtype == "bf16" else operands


def _in_turn(torch: Any, products: Sequence[Product], dtype: str, make: Callable[[Product], Pass]) -> Pass:
    """Runs the multiplications one after the other. Attention always uses torch.bmm, because it is a few percent of the
    time and no contender computes it in int8."""
    runs: list[Pass] = []
    for product in products:
        if product.weights:
            runs.append(make(product))
        else:
            runs.append(partial(torch.bmm, *_operands(torch, product, "fp32" if dtype == "int8" else dtype)))

    def run() -> None:
        for each in runs:
            each()

    return run


def _onnxruntime(dtype: str, products: Sequence[Product], threads: int) -> Pass:
    """Pass as one graph of MatMul or MatMulInteger operators. ONNX Runtime packs the weights when it loads the graph.
    Results of equal size share one buffer."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, inputs, outputs = [], [], {}, {}
    for i, product in enumerate(products):
        int8 = dtype == "int8" and product.weights
        lead = () if product.weights else (product.pairs,)
        left, right = (*lead, product.rows, product.deep), (*lead, product.deep, product.wide)
        names = [_name("left", left, int8), f"weight_{i}" if product.weights else _name("right", right, False)]
        inputs[names[0]] = _filled(left, np.uint8 if int8 else np.float32)
        if product.weights:
            weights.append(numpy_helper.from_array(_filled(right, np.int8 if int8 else np.float32), names[1]))
        else:
            inputs[names[1]] = _filled(right, np.float32)
        outputs[f"out_{i}"] = ((*lead, product.rows, product.wide), np.int32 if int8 else np.float32)
        nodes.append(helper.make_node("MatMulInteger" if int8 else "MatMul", names, [f"out_{i}"]))
    types = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int32): TensorProto.INT32}

    def declared(name: str, kind: Any, size: Sequence[int]) -> Any:
        return helper.make_tensor_value_info(name, types.get(np.dtype(kind), TensorProto.FLOAT), size)

    graph = helper.make_graph(
        nodes,
        "products",
        [declared(name, value.dtype, value.shape) for name, value in inputs.items()],
        [declared(name, kind, size) for name, (size, kind) in outputs.items()],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    bound = session.io_binding()
    places: dict[tuple[Any, ...], Any] = {}
    for name, value in inputs.items():
        bound.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
    for name, sized in outputs.items():
        if sized not in places:
            places[sized] = ort.OrtValue.ortvalue_from_numpy(np.zeros(*sized))
        bound.bind_ortvalue_output(name, places[sized])
    return partial(session.run_with_iobinding, bound)


def _name(side: str, size: tuple[int, ...], int8: bool) -> str:
    return "_".join([side, *map(str, size), *(["bytes"] if int8 else [])])


def _filled(size: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray:
    """Array of repeated random numbers, because drawing millions of them takes longer than multiplying them."""
    rng = np.random.default_rng(0)
    block = rng.integers(0, 64, 1 << 16) if np.dtype(kind).kind in "iu" else rng.standard_normal(1 << 16)
    return np.resize(block.astype(kind), size)


WAYS: dict[str, dict[str, Callable[[Sequence[Product], int], Pass]]] = {
    "fp32": {
        "torch.mm": partial(_plain, "fp32"),
        "oneDNN, packed": partial(_packed, "fp32"),
        "ONNX Runtime": partial(_onnxruntime, "fp32"),
    },
    "bf16": {"torch.mm": partial(_plain, "bf16"), "oneDNN, packed": partial(_packed, "bf16")},
    "int8": {
        "torch._int_mm": partial(_plain, "int8"),
        "oneDNN, packed": partial(_packed, "int8"),
        "ONNX Runtime": partial(_onnxruntime, "int8"),
    },
}
"""Precision -> implementations of matrix multiplication, by name."""
