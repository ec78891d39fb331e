"""Smoothing scales of int8 (SmoothQuant, Xiao et al. 2023, equations 3 and 4), for all targets.

The channels of an activation are divided by the scales, the rows of the weight (in, out) multiplied by them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SMALLEST_CHANNEL = 1e-3
"""Lower limit of a channel's largest value, as a share of the largest channel's. float16 must represent the ratio."""


def limited(largest: npt.NDArray) -> npt.NDArray:
    """``largest`` (in,), the largest absolute value of each channel or row, with its lower limit; above 0."""
    return np.maximum(largest, SMALLEST_CHANNEL * (float(largest.max()) or 1.0))


def smoothing_scales(channels: npt.NDArray, rows: npt.NDArray, strength: float) -> npt.NDArray:
    """Smoothing scales (in,), whose geometric mean is 1.

    ``channels`` (in,), ``rows`` (in,): ``limited`` largest values of the activation's channels and of the weight's
    rows. ``strength``: SmoothQuant's alpha, the share of the channels' differences that moves to the weight.
    """
    scales = channels**strength / rows ** (1 - strength)
    return np.asarray(scales / np.exp(np.log(scales).mean()))
