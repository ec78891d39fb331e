"""coremltools without its log lines and progress bars: import it from here.

On Linux, ``import coremltools`` prints a dozen warnings about the runtime that exists only on a Mac.
"""

from __future__ import annotations

import functools
import logging

logging.getLogger("coremltools").setLevel(logging.ERROR)

import coremltools as ct  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.frontend.milproto.load import load as decode_program  # noqa: E402
from coremltools.converters.mil.mil import Function, Program, get_new_symbol, types  # noqa: E402
from coremltools.converters.mil.mil.passes import pass_pipeline  # noqa: E402
from coremltools.models import MLModel  # noqa: E402
from coremltools.optimize.coreml import _quantization_passes  # noqa: E402

for with_bar in (pass_pipeline, _quantization_passes):
    with_bar.tqdm = functools.partial(with_bar.tqdm, disable=True)

__all__ = ["Function", "MLModel", "Program", "ct", "decode_program", "get_new_symbol", "mb", "types"]
