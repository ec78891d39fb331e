"""Positions in the attention of a CoreML layer: rotary positions, relative terms, and the window of the bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.exporters.coreml.layouts import Layout, Var
from berxit.exporters.coreml.silenced_coremltools import mb
from berxit.exporters.segments import MASKED, rotations
from berxit.train.backbones import LayerWeights


@dataclass(frozen=True)
class Length:
    """Number of tokens S of the inputs of a function: a number, or a tensor (1,) if it varies."""

    value: int | Var
    longest: int

    def first(self, table: npt.NDArray, axes: tuple[int, ...], weight: Any = None) -> Var:
        """The first S entries of a table along ``axes``. The whole table is stored, so that all lengths share it.

        ``weight``: the table as an array or op, if it is not stored as it is.
        """
        x = table if weight is None else weight
        if self.value == self.longest:
            return mb.const(val=x) if isinstance(x, np.ndarray) else x
        return mb.slice_by_size(x=x, begin=[0] * table.ndim, size=self.shape(table.shape, axes))

    def shape(self, shape: tuple[int, ...], axes: tuple[int, ...], scale: int = 1) -> Any:
        """``shape`` with ``scale`` S along ``axes``."""
        if isinstance(self.value, int):
            return [scale * self.value if axis in axes else size for axis, size in enumerate(shape)]
        length = self.value if scale == 1 else mb.mul(x=self.value, y=np.array([scale], np.int32))
        return mb.concat(
            values=[length if axis in axes else np.array([size], np.int32) for axis, size in enumerate(shape)], axis=0
        )


@dataclass(frozen=True)
class LayerPositions:
    """As ``layouts.Positions``, for one layer."""

    layer: LayerWeights
    layout: Layout
    length: Length

    def rotate(self, x: Var) -> Var:
        if self.layer.rotary is None:
            return x
        tokens_first = self.layout.channels == -1  # (1, heads, S, size), or (1, heads, size, S)
        cosine, sine = (
            self.length.first(self._stored(table if tokens_first else table.T), (0 if tokens_first else 1,))
            for table in rotations(self.layer, self.length.longest)
        )
        axis = -1 if tokens_first else 2
        first, second = mb.split(x=x, num_splits=2, axis=axis)
        swapped = mb.concat(values=[second, first], axis=axis)
        return mb.add(x=mb.mul(x=x, y=cosine), y=mb.mul(x=swapped, y=sine))

    def window(self, bias: Var) -> Var:
        """The bias in which tokens outside of the window are masked, too."""
        if self.layer.window is None:
            return bias
        places = np.arange(self.length.longest)
        outside = np.abs(places[None] - places[:, None]) > self.layer.window
        table = self._stored(np.where(outside, MASKED, 0)[None, None])
        return mb.add(x=bias, y=self.length.first(table, (2, 3)))

    def add_terms(self, scores: Var, queries: Var, keys: Var) -> Var:
        relative = self.layer.relative
        if relative is None:
            return scores
        first = self._by_distance(queries, relative.keys)
        second = self._by_distance(keys, relative.queries[:, ::-1] * self.layer.scale)
        return mb.add(x=mb.add(x=scores, y=first), y=mb.transpose(x=second, perm=[0, 1, 3, 2]))

    def _by_distance(self, x: Var, table: npt.NDArray) -> Var:
        """(1, heads, S, S), as ``_by_distance`` of the ONNX graphs: one matmul for all distances from 1 - S to S, whose
        rows are then shifted by reading them with one column less."""
        heads, rows, size = table.shape
        longest, unused = self.length.longest, (rows + 1) // 2 - self.length.longest
        near = table[:, max(unused, 0) : rows - max(unused, 0)]
        columns = self._stored(np.pad(near.transpose(0, 2, 1), ((0, 0), (0, 0), (0, 1)))[None])
        value = self.length.value
        if isinstance(value, int):
            begin: Any = [0, 0, 0, longest - value]
            skipped: Any = [0, 0, value - 1]
            shape: Any = [1, heads, value, 2 * value - 1]
            entries: Any = [1, heads, value * (2 * value - 1)]
        else:
            one, zeros = np.array([1], np.int32), np.zeros(1, np.int32)
            head = [one, np.array([heads], np.int32)]
            width = mb.sub(x=mb.mul(x=value, y=np.array([2], np.int32)), y=one)
            begin = mb.concat(values=[zeros, zeros, zeros, mb.sub(x=np.array([longest], np.int32), y=value)], axis=0)
            skipped = mb.concat(values=[zeros, zeros, mb.sub(x=value, y=one)], axis=0)
            shape = mb.concat(values=[*head, value, width], axis=0)
            entries = mb.concat(values=[*head, mb.mul(x=value, y=width)], axis=0)
        kept = mb.slice_by_size(x=columns, begin=begin, size=self.length.shape((1, heads, size, 0), (3,), scale=2))
        product = mb.matmul(x=x, y=kept, transpose_x=self.layout.channels != -1)
        flat = mb.reshape(x=product, shape=[1, heads, -1])
        shifted = mb.reshape(x=mb.slice_by_size(x=flat, begin=skipped, size=entries), shape=shape)
        return mb.slice_by_size(x=shifted, begin=[0] * 4, size=self.length.shape((1, heads, 0, 0), (2, 3)))

    def _stored(self, table: npt.NDArray) -> npt.NDArray:
        return self.layout.weights.plain(table)
