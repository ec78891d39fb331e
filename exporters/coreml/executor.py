"""Execution of a saved CoreML package in numpy. It verifies an export on machines without CoreML.

The package is read from disk: its MIL program is decoded, its weights are read (and decompressed) from its weight file.
Each op computes in float32 and rounds its result to the dtype of the result in the program. A float16 program therefore
passes float16 errors from op to op; inside one op (the sum of a matmul, a norm, a softmax) nothing is rounded.
This verifies graph and weights. It does not verify Apple's runtime, which may round differently: ``Arithmetic`` shows
how much a coarser rounding matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf, expit

from berxit.exporters.coreml.silenced_coremltools import MLModel, decode_program, types
from berxit.runtime.errors import BerxitError

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Watch = Callable[[str, dict[str, Any]], None]
"""Receives the name of each op and its arguments, before it runs."""


@dataclass(frozen=True)
class Arithmetic:
    """Rounding of the ops with a float16 result. The default is the arithmetic of the export's check."""

    float16_sums: bool = False
    """True: every partial sum (matmul, norm, softmax, mean) is rounded to float16, one term after the other. No device
    is known to sum more coarsely."""
    flush_to_zero: bool = False
    """True: float16 numbers below SMALLEST_NORMAL become 0, weights included."""

    def compute(self, op: str) -> Callable[..., Any]:
        return FLOAT16_SUMS.get(op, OPS[op]) if self.float16_sums else OPS[op]

    def rounded(self, value: Any) -> Any:
        """A float16 result, as float32 for the next op: the same values, and numpy computes faster with them."""
        value = value.astype(np.float32)
        return np.where(np.abs(value) < SMALLEST_NORMAL, np.float32(0), value) if self.flush_to_zero else value


DEFAULT = Arithmetic()
SMALLEST_NORMAL = 2.0**-14
"""Smallest normal number of float16."""


class MilFunction:
    """One function of a package: inputs by name -> outputs by name."""

    def __init__(self, function: Any, description: Any, arithmetic: Arithmetic = DEFAULT) -> None:
        self.inputs = {feature.name: feature.type.multiArrayType for feature in description.input}
        self.outputs = [(var.name, var, _numpy_type(var)) for var in function.outputs]
        self._feeds = [(var, name) for name, var in function.inputs.items()]
        self._arithmetic = arithmetic
        self._constants: dict[Any, Any] = {}
        self._steps: list[_Step] = []
        for op in function.operations:
            if op.op_type == "const":
                self._constants[op.outputs[0]] = self._in_float32(op.outputs[0].val)
            elif op.op_type.startswith("constexpr_"):
                self._constants[op.outputs[0]] = self._in_float32(op.materialized_val_inference())
            elif op.op_type in OPS:
                arguments = {name: value for name, value in op.inputs.items() if value is not None}
                self._steps.append(_Step(op.op_type, arguments, tuple(op.outputs)))
            else:
                raise BerxitError(f"cannot verify the package: no numpy for its op '{op.op_type}'")

    def __call__(self, feeds: Arrays, watch: Watch | None = None) -> Arrays:
        """Raises BerxitError for an input whose name or shape the package does not declare."""
        self._check(feeds)
        values = dict(self._constants)
        values.update({var: self._in_float32(feeds[name]) for var, name in self._feeds})
        for step in self._steps:
            values.update(self._run(step, values, watch))
        return {name: values[var].astype(dtype) for name, var, dtype in self.outputs}

    def types(self) -> dict[str, Any]:
        """Name of each computed tensor -> its dtype in numpy."""
        return {var.name: _numpy_type(var) for step in self._steps for var in step.outputs}

    def _run(self, step: _Step, values: dict[Any, Any], watch: Watch | None) -> Iterator[tuple[Any, Any]]:
        arguments = {
            name: [values[v] for v in var] if isinstance(var, tuple | list) else values[var]
            for name, var in step.arguments.items()
        }
        if watch:
            watch(step.outputs[0].name, arguments)
        in_float16 = _numpy_type(step.outputs[0]) == np.float16
        found = (self._arithmetic if in_float16 else DEFAULT).compute(step.op)(**arguments)
        for var, value in zip(step.outputs, found if len(step.outputs) > 1 else (found,), strict=True):
            yield var, self._in_float32(np.asarray(value).astype(_numpy_type(var)))

    def _in_float32(self, value: Any) -> Any:
        return self._arithmetic.rounded(value) if getattr(value, "dtype", None) == np.float16 else value

    def _check(self, feeds: Arrays) -> None:
        if set(feeds) != set(self.inputs):
            raise BerxitError(f"the function takes {', '.join(self.inputs)}, not {', '.join(feeds)}")
        for name, array in feeds.items():
            if not _allows(self.inputs[name], array.shape):
                raise BerxitError(f"input '{name}' of shape {array.shape} is not one that the package declares")


def open_package(path: Path, arithmetic: Arithmetic = DEFAULT) -> dict[str, MilFunction]:
    """Name -> function. The only function of a package is named ``main``."""
    model = MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    program = decode_program(spec, spec.specificationVersion, model.weights_dir)
    described = {feature.name: feature for feature in spec.description.functions} or {"main": spec.description}
    return {name: MilFunction(function, described[name], arithmetic) for name, function in program.functions.items()}


def ops_of(path: Path) -> dict[str, list[str]]:
    """Function -> types of its ops, in order, for inspection."""
    spec = MLModel(str(path), skip_model_load=True).get_spec()
    return {
        name: [op.type for block in function.block_specializations.values() for op in block.operations]
        for name, function in spec.mlProgram.functions.items()
    }


def types_of(path: Path) -> dict[str, dict[str, Any]]:
    """Function -> name of each tensor that its ops return -> its dtype."""
    return {name: function.types() for name, function in open_package(path).items()}


@dataclass(frozen=True)
class _Step:
    op: str
    arguments: dict[str, Any]
    """Parameter -> a variable of the program, or a tuple of variables."""
    outputs: tuple[Any, ...]


def _numpy_type(var: Any) -> Any:
    return types.nptype_from_builtin(var.dtype)


def _allows(declared: Any, shape: tuple[int, ...]) -> bool:
    flexibility = declared.WhichOneof("ShapeFlexibility")
    if flexibility == "enumeratedShapes":
        return any(tuple(other.shape) == shape for other in declared.enumeratedShapes.shapes)
    if flexibility == "shapeRange":
        ranges = declared.shapeRange.sizeRanges
        return len(ranges) == len(shape) and all(
            r.lowerBound <= size <= r.upperBound for r, size in zip(ranges, shape, strict=True)
        )
    return tuple(declared.shape) == shape


def _slice_by_index(  # MIL's masks: begin_mask ignores a begin, squeeze_mask removes the axis
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    def masked(mask: Array | None, axis: int) -> bool:
        return mask is not None and bool(mask[axis])

    return x[
        tuple(
            int(begin[axis])
            if masked(squeeze_mask, axis)
            else slice(
                None if masked(begin_mask, axis) else int(begin[axis]),
                None if masked(end_mask, axis) else int(end[axis]),
                1 if stride is None else int(stride[axis]),
            )
            for axis in range(x.ndim)
        )
    ]


def _slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    return x[tuple(slice(int(b), None if s == -1 else int(b + s)) for b, s in zip(begin, size, strict=True))]


def _layer_norm(x: Array, axes: Array, gamma: Array, beta: Array, epsilon: Any) -> Array:
    axis = int(axes[0])
    shape = [1] * x.ndim
    shape[axis] = -1
    centred = x - x.mean(axis=axis, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=axis, keepdims=True) + np.float32(epsilon))
    return centred / deviation * gamma.reshape(shape) + beta.reshape(shape)


def _conv(x: Array, weight: Array, bias: Array | None = None, groups: Any = 1, **_: Any) -> Array:
    """A linear layer as a 1x1 convolution: x (1, C, 1, S)."""
    if weight.shape[2:] != (1, 1) or groups != 1:
        raise BerxitError(f"cannot verify the package: no numpy for a convolution of shape {weight.shape}")
    bias = np.zeros(len(weight), np.float32) if bias is None else bias
    return (weight[:, :, 0, 0] @ x[0, :, 0] + bias[:, None])[None, :, None]


def _matmul(x: Array, y: Array, transpose_x: Any = False, transpose_y: Any = False) -> Array:
    return (x.swapaxes(-1, -2) if transpose_x else x) @ (y.swapaxes(-1, -2) if transpose_y else y)


def _softmax(x: Array, axis: Any) -> Array:
    powers = np.exp(x - x.max(axis=int(axis), keepdims=True))
    return powers / powers.sum(axis=int(axis), keepdims=True)


def _gelu(x: Array, mode: str) -> Array:
    if mode == "EXACT":
        return 0.5 * x * (1 + erf(x / np.float32(np.sqrt(2))))
    return 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)))


def _of_x(function: np.ufunc) -> Callable[..., Array]:
    """The function with a parameter named x: MIL passes arguments by name, numpy's functions accept positions only."""
    return lambda x: function(x)  # noqa: PLW0108


def _quantize(input: Array, scale: Array, output_dtype: str) -> Array:
    limits = np.iinfo(output_dtype)
    return np.clip(np.rint(input / scale), limits.min, limits.max)


def _sizes(values: Array) -> list[int]:
    return [int(value) for value in np.atleast_1d(values)]


OPS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "quantize": _quantize,
    "dequantize": lambda input, scale: input * scale,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "reduce_sum": lambda x, axes, keep_dims: x.sum(axis=tuple(_sizes(axes)), keepdims=bool(keep_dims)),
    "identity": lambda x: x,
    "cast": lambda x, dtype: x,  # the rounding to the output's type is the cast
    "relu": lambda x: np.maximum(x, 0),
    "tanh": _of_x(np.tanh),
    "sigmoid": _of_x(expit),
    "gelu": _gelu,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "linear": lambda x, weight, bias=0: x @ weight.T + bias,
    "conv": _conv,
    "matmul": _matmul,
    "gather": lambda x, indices, axis, **_: x.take(indices, axis=int(axis)),
    "shape": lambda x: np.array(x.shape, np.int32),
    "concat": lambda values, axis, **_: np.concatenate([np.atleast_1d(value) for value in values], axis=int(axis)),
    "reshape": lambda x, shape: x.reshape(_sizes(shape)),
    "transpose": lambda x, perm: x.transpose(_sizes(perm)),
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(_sizes(axes))),
    "squeeze": lambda x, axes: np.squeeze(x, tuple(_sizes(axes))),
    "split": lambda x, num_splits, axis: np.split(x, int(num_splits), axis=int(axis)),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
}
"""Op -> implementation (MIL's specification, iOS 16 to 18), for the ops of our segments."""


def _float16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


def _sum(values: Array, axis: int) -> Array:
    """The sum along an axis, which keeps size 1."""
    terms = np.moveaxis(values, axis, 0)
    total = np.zeros_like(terms[0])
    for term in terms:
        total = _float16(total + term)
    return np.expand_dims(total, axis)


def _product(x: Array, y: Array) -> Array:
    """x (..., m, k) @ y (..., k, n)"""
    total = np.zeros((*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]), np.float32)
    for k in range(x.shape[-1]):
        total = _float16(total + x[..., :, k, None] * y[..., k, None, :])
    return total


def _layer_norm_in_float16(x: Array, axes: Array, gamma: Array, beta: Array, epsilon: Any) -> Array:
    axis, size = int(axes[0]), x.shape[int(axes[0])]
    shape = [1] * x.ndim
    shape[axis] = -1
    centred = _float16(x - _float16(_sum(x, axis) / size))
    variance = _float16(_sum(_float16(np.square(centred)), axis) / size)
    scaled = _float16(centred / _float16(np.sqrt(_float16(variance + np.float32(epsilon)))))
    return _float16(scaled * gamma.reshape(shape)) + beta.reshape(shape)


def _softmax_in_float16(x: Array, axis: Any) -> Array:
    powers = _float16(np.exp(_float16(x - x.max(axis=int(axis), keepdims=True))))
    return powers / _sum(powers, int(axis) % x.ndim)


FLOAT16_SUMS: dict[str, Callable[..., Any]] = {
    "linear": lambda x, weight, bias=0: _product(np.atleast_2d(x), weight.T).reshape(*x.shape[:-1], -1) + bias,
    "conv": lambda x, weight, bias=np.zeros(1), **_: (  # noqa: B008 - an array that nothing changes
        (_product(weight[:, :, 0, 0], x[0, :, 0]) + bias[:, None])[None, :, None]
    ),
    "matmul": lambda x, y, transpose_x=False, transpose_y=False: _product(
        x.swapaxes(-1, -2) if transpose_x else x, y.swapaxes(-1, -2) if transpose_y else y
    ),
    "layer_norm": _layer_norm_in_float16,
    "softmax": _softmax_in_float16,
    "reduce_sum": lambda x, axes, keep_dims: _sum(x, int(axes[0])),  # the exporter writes one axis, which is kept
}
"""Op -> implementation that rounds every partial sum to float16."""
