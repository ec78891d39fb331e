"""Int8 inputs of the large matmuls (W8A8), for chips that multiply int8 faster (A17 Pro, M4 and later).

The scale of an input is one number for all tokens and channels, measured on the golden inputs. A few of BERT's channels
(outlier channels) have much larger values than the others, and one scale for all would be too coarse for the others.
Inputs are therefore divided by smoothing scales, and the weights multiplied by them (SmoothQuant, Xiao et al. 2023,
equations 3 and 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.exporters.segments import Segments, scaled_queries
from berxit.exporters.smoothing import limited, smoothing_scales
from berxit.train.backbones import LayerWeights

MATMULS = ("qkv", "output", "up", "down")
"""Matmuls of a layer whose inputs are int8. Exits stay in float16: they are small."""
MIGRATION_STRENGTH = 0.85
"""SmoothQuant's alpha: the share of the channels' differences that moves to the weights."""
STEPS = 127
"""Steps from 0 to the largest value."""


@dataclass(frozen=True)
class Int8Activation:
    """Quantization of the input of one matmul: round(x / smoothing / step), saturated to -128..127."""

    smoothing: npt.NDArray[np.float32]
    """(in,)"""
    step: float

    @classmethod
    def choose(cls, largest: npt.NDArray, weight: npt.NDArray) -> Int8Activation:
        """``largest`` (in,): largest absolute value of each channel of the input. ``weight`` (in, out)."""
        channels, rows = (limited(values).astype(np.float64) for values in (largest, np.abs(weight).max(axis=1)))
        scales = smoothing_scales(channels, rows, MIGRATION_STRENGTH)
        return cls(scales.astype(np.float32), float((channels / scales).max()) / STEPS)


def int8_activations(segments: Segments, largest: Mapping[str, npt.NDArray]) -> dict[str, Int8Activation]:
    """Name of a linear layer -> quantization of its input, from the largest values of the channels of its input.

    Layers that share their weights share the quantization: otherwise their smoothed weights would differ.
    """
    layers = [encoder for segment in segments.layers for encoder in (*segment.before, segment.encoder)]
    found: dict[tuple[int, str], Int8Activation] = {}
    for encoder in {id(layer): layer for layer in layers}.values():
        names = [f"layer_{i:02d}" for i, layer in enumerate(layers, start=1) if layer is encoder]
        for part, weight in _weights(encoder, segments.hidden_size).items():
            channels = np.max([largest[f"{name}_{part}"] for name in names], axis=0)
            found[id(encoder), part] = Int8Activation.choose(channels, weight)
    return {
        f"layer_{i:02d}_{part}": found[id(layer), part] for i, layer in enumerate(layers, start=1) for part in MATMULS
    }


def _weights(layer: LayerWeights, hidden_size: int) -> dict[str, npt.NDArray]:
    matrices = (scaled_queries(layer, hidden_size), layer.output, layer.up, layer.down)
    return {part: linear.weight for part, linear in zip(MATMULS, matrices, strict=True)}
