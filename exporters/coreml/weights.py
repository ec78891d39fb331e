"""Compressed weights of a CoreML model: stored small, made float16 again when the device loads or uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from berxit.exporters.coreml.silenced_coremltools import ct


@dataclass(frozen=True)
class Compression:
    tolerance: float
    """Largest difference of an exit from the checkpoint's: logits relative to their scale, and LTE."""
    bits: int
    palette: bool
    """Each weight an index into a table of 2^bits values, found by k-means; else an integer times its row's scale."""


COMPRESSIONS = {
    "int8": Compression(0.25, 8, palette=False),
    "palette6": Compression(0.75, 6, palette=True),
    "palette4": Compression(2.0, 4, palette=True),
}
"""--precision -> how the weights are stored."""
SMALLEST = 2048
"""Elements; smaller tensors (norms, biases, most exits) stay as they are."""


def weights_pass(precision: str) -> ct.PassPipeline:
    """What a conversion does beside writing the program down: keeps what several layers share once (ALBERT), and
    compresses matrices and tables. (None of coremltools' other passes: there is nothing to fuse, and one of them would
    guard every look-up against ids below 0.)"""
    once = "common::const_deduplication"
    if precision not in COMPRESSIONS:
        return ct.PassPipeline(pass_names=[once], pipeline_name=precision)
    chosen, tools = COMPRESSIONS[precision], ct.optimize.coreml
    how: Any
    if chosen.palette:
        name = "compression::palettize_weights"
        how = tools.OpPalettizerConfig(mode="kmeans", nbits=chosen.bits, weight_threshold=SMALLEST)
    else:
        name = "compression::linear_quantize_weights"
        how = tools.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=SMALLEST)
    pipeline = ct.PassPipeline(pass_names=[once, name], pipeline_name=precision)
    pipeline.set_options(name, {"config": tools.OptimizationConfig(global_config=how)})
    return pipeline
