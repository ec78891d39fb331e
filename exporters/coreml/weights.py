"""Weights of a CoreML package: as arrays, or compressed to few bits, which the device decompresses to float16."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.exporters.coreml.silenced_coremltools import (
    integers_op,
    linear_quantize_weights,
    palette_op,
    palettize_weights,
)
from berxit.exporters.targets import CompressedWeights, Precision

SMALLEST = 2048
"""Number of elements; smaller matrices and tables (most exits) are not compressed."""


class Weights:
    """Weights of the functions of one bundle, in the dtype of its precision. Equal weights are compressed once."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.dtype: type[np.floating] = np.float32 if precision.name == "fp32" else np.float16
        """The arithmetic of CompressedWeights is float16."""
        self._arrays: dict[str, npt.NDArray] = {}
        self._compressed: dict[str, Any] = {}

    def plain(self, value: npt.NDArray) -> npt.NDArray:
        """A weight that is not compressed. The functions share equal arrays in memory, too."""
        array = np.asarray(value, dtype=self.dtype, order="C")
        return self._arrays.setdefault(content_key(array), array)

    def matrix(self, value: npt.NDArray) -> Any:
        """A matrix or table whose first axis has the channels: an array, or the constexpr op that decompresses it.

        Call it while the function that uses the weight is being written.
        """
        array, precision = self.plain(value), self.precision
        if not isinstance(precision, CompressedWeights) or array.size < SMALLEST:
            return array
        key = content_key(array)
        if key not in self._compressed:
            self._compressed[key] = _compressed(array, precision)
        made = self._compressed[key]
        if precision.palette:
            return palette_op(made.indices, made.lut)
        return integers_op(made.data, made.offset, made.scale)


def _compressed(array: npt.NDArray, precision: CompressedWeights) -> Any:
    """coremltools' parameters of the compressed array."""
    rest = [0] * (array.ndim - 1)
    if not precision.palette:
        # Of a row of zeros, such as the embedding of padding, coremltools divides 0 by a scale of 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            found = linear_quantize_weights.blockwise_compress_by_dtype(array, "int8", "LINEAR_SYMMETRIC", [1, *rest])
        if found is not None and not found.scale.all():
            zeros = found.scale == 0
            integers, scales = np.where(zeros, 0, found.data), np.where(zeros, 1, found.scale)
            found = found._replace(data=integers.astype(np.int8), scale=scales.astype(array.dtype))
    else:
        group = precision.group if precision.group and len(array) % precision.group == 0 else 0
        found = palettize_weights.blockwise_compress(array, "KMEANS", precision.bits, [group, *rest])
    assert found is not None
    return found


def content_key(array: npt.NDArray) -> str:
    """Identity of an array's dtype, shape and content."""
    digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()
    return f"{array.dtype.str}{array.dtype.metadata or ''}{array.shape} {digest}"
