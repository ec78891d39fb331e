"""Compressed weights of a CoreML model: stored in few bits, and decompressed to float16 when the device loads or uses
them."""

from __future__ import annotations

from typing import Any

from berxit.exporters.coreml.silenced_coremltools import ct
from berxit.exporters.targets import CompressedWeights, Precision

SMALLEST = 2048
"""Number of elements; smaller tensors (norms, biases, most exits) are not compressed."""


def weights_pass(precision: Precision) -> ct.PassPipeline:
    """The graph passes of a conversion: one that stores weights shared by several layers once (ALBERT), and one that
    compresses matrices and tables. coremltools' other passes are not used: there is nothing to fuse, and one of them
    would add a check for ids below 0 to every embedding lookup."""
    once = "common::const_deduplication"
    if not isinstance(precision, CompressedWeights):
        return ct.PassPipeline(pass_names=[once], pipeline_name=precision.name)
    tools = ct.optimize.coreml
    how: Any
    if precision.palette:
        name = "compression::palettize_weights"
        how = tools.OpPalettizerConfig(mode="kmeans", nbits=precision.bits, weight_threshold=SMALLEST)
    else:
        name = "compression::linear_quantize_weights"
        how = tools.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=SMALLEST)
    pipeline = ct.PassPipeline(pass_names=[once, name], pipeline_name=precision.name)
    pipeline.set_options(name, {"config": tools.OptimizationConfig(global_config=how)})
    return pipeline
