"""coremltools without its log lines and progress bars: import it from here.

On Linux, ``import coremltools`` prints a dozen warnings about the runtime that exists only on a Mac.
"""

from __future__ import annotations

import functools
import logging

logging.getLogger("coremltools").setLevel(logging.ERROR)

import coremltools as ct  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.converter import ConverterRegistry, mil_convert_to_proto  # noqa: E402
from coremltools.converters.mil.frontend._utils import (  # noqa: E402
    _construct_constexpr_dequant_op as integers_op,
)
from coremltools.converters.mil.frontend._utils import (  # noqa: E402
    _construct_constexpr_lut_op as palette_op,
)
from coremltools.converters.mil.frontend.milproto.load import load as decode_program  # noqa: E402
from coremltools.converters.mil.mil import Function, Program, get_new_symbol, types  # noqa: E402
from coremltools.converters.mil.mil.passes import pass_pipeline  # noqa: E402
from coremltools.models import MLModel  # noqa: E402
from coremltools.optimize.coreml import _quantization_passes  # noqa: E402
from coremltools.optimize.coreml._quantization_passes import (  # noqa: E402
    linear_quantize_weights,
    palettize_weights,
)

for with_bar in (pass_pipeline, _quantization_passes):
    with_bar.tqdm = functools.partial(with_bar.tqdm, disable=True)

__all__ = [
    "ConverterRegistry",
    "Function",
    "MLModel",
    "Program",
    "ct",
    "decode_program",
    "get_new_symbol",
    "integers_op",
    "linear_quantize_weights",
    "mb",
    "mil_convert_to_proto",
    "palette_op",
    "palettize_weights",
    "types",
]
