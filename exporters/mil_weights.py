"""Compressed weights of a CoreML model: stored small, made float16 again when the device loads or uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exporters.quiet_coremltools import ct


@dataclass(frozen=True)
class Compression:
    tolerance: float
    """How far an exit may be from the checkpoint's, absolute, logits and LTE."""
    bits: int
    palette: bool
    """Each weight an index into a table of 2^bits values, found by k-means; else an integer times its row's scale."""


COMPRESSIONS = {
    "int8": Compression(0.1, 8, palette=False),
    "palette6": Compression(0.3, 6, palette=True),
    "palette4": Compression(1.0, 4, palette=True),
}
"""--precision -> how the weights are stored."""
SMALLEST = 2048
"""Elements; smaller tensors (norms, biases, most exits) stay as they are."""


def compress(model: ct.models.MLModel, precision: str) -> ct.models.MLModel:
    """The model with its matrices and tables compressed; itself for fp16 and fp32."""
    if precision not in COMPRESSIONS:
        return model
    chosen, tools = COMPRESSIONS[precision], ct.optimize.coreml
    if chosen.palette:
        how: Any = tools.OpPalettizerConfig(mode="kmeans", nbits=chosen.bits, weight_threshold=SMALLEST)
        return tools.palettize_weights(model, tools.OptimizationConfig(global_config=how))
    how = tools.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=SMALLEST)
    return tools.linear_quantize_weights(model, tools.OptimizationConfig(global_config=how))
