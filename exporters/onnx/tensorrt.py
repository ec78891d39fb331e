"""The TensorRT target: plain ONNX files that its parser takes, from which engines are built on the device.

Engines belong to one GPU and one TensorRT, so a bundle holds none: ``berxit-build`` makes them where they will run. The
precision lies in the files, since TensorRT 11 has no other place for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from berxit.devices import default_threads
from berxit.exporters.onnx.activations import product_inputs, samples_of
from berxit.exporters.onnx.bfloat16 import RoundingBackend, with_float32_borders
from berxit.exporters.onnx.graph import OnnxSegment, embeddings_graph, layer_graph
from berxit.exporters.onnx.int8_qdq import DEQUANTIZED_WEIGHTS, QDQ_WEIGHTS, quantize_for_tensorrt
from berxit.exporters.onnx.onnxruntime import write_graphs
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments
from berxit.runtime.backends.onnxruntime import open_backend
from berxit.runtime.bundle import Manifest, Segment
from berxit.runtime.errors import InputError
from berxit.runtime.loop import Backend
from berxit.runtime.progress import Bar

PRECISIONS = {"fp16": 5e-2, "fp32": 1e-4, "bf16": 5e-1, "int8": 2.0}
"""Precision -> how far an exit may be from the checkpoint's (logits relative to their scale, and LTE), in ONNX Runtime
here and in TensorRT on the device. docs/tensorrt.md has what was found, and why these."""
LEAST_PSNR = {"fp16": 40.0, "bf16": 20.0, "int8": 20.0}
"""Precision -> dB, whatever the size of the logits: an exit that answers something else is below 10."""
SCORED = frozenset({"int8"})
"""What may change an answer: its scores are measured, and its thresholds chosen from its own answers."""
OPTIONS = frozenset({"lengths", "max_batch", "target_version", "exits"})

OPSETS = {"jetpack5": 16, "tensorrt8.6": 17, "jetpack6": 19, "tensorrt10": 19, "tensorrt11": 19, "tensorrt-rtx": 19}
"""The oldest TensorRT that must read the files -> their opset. JetPack 5 has TensorRT 8.5, which knows
no LayerNormalization (opset 17); JetPack 6 has 10.3. Opset 19 brings QuantizeLinear on float16."""
WITHOUT_BFLOAT16 = ("jetpack5", "tensorrt8.6")
PROOF = (
    "checked: the very files, in ONNX Runtime on this CPU; of bf16, which it cannot compute, the same graphs in float32"
    " with every result rounded to bfloat16. TensorRT's own numbers are checked on the device, by bench"
)
LENGTHS = (16, 32, 64, 128, 256, 512)
MAX_BATCH = 8


def with_defaults(options: ExportOptions, segments: Segments) -> ExportOptions:
    """Lengths up to the model's own, batches up to 8, for JetPack 6. Raises InputError for what cannot be."""
    version = options.target_version or "jetpack6"
    if version not in OPSETS:
        raise InputError(f"--target-version '{version}': target tensorrt knows {', '.join(OPSETS)}")
    if options.precision == "bf16" and version in WITHOUT_BFLOAT16:
        raise InputError(
            f"--precision bf16: TensorRT 8 has no bfloat16, --target-version {version} takes fp16, fp32 or int8"
        )
    longest = segments.max_length
    lengths = options.lengths or (*(length for length in LENGTHS if length < longest), longest)
    batch = MAX_BATCH if options.max_batch is None else options.max_batch
    if batch < 1:
        raise InputError(f"--max-batch {batch}: it must be at least 1")
    return replace(options, lengths=lengths, max_batch=batch, target_version=version)


def write_segments(segments: Segments, folder: Path, options: ExportOptions, bar: Bar) -> tuple[Segment, ...]:
    """Writes the segment files below ``folder`` and returns what the manifest says of them."""
    segments = segments.repeating()
    return write_graphs(segments, graphs_of(segments, options, folder), folder, bar)


def graphs_of(segments: Segments, options: ExportOptions, folder: Path) -> Iterator[OnnxSegment]:
    """The embeddings, then layer after layer. int8 is calibrated on the golden inputs that lie in ``folder``; what
    surrounds its matrix products is float16 where the opset can say so."""
    opset = OPSETS[str(options.target_version)]
    int8 = options.precision == "int8"
    half = options.precision == "fp16" or (int8 and opset >= DEQUANTIZED_WEIGHTS)
    bfloat16 = options.precision == "bf16"
    dtype = "bfloat16" if bfloat16 else "float16" if half else "float32"
    plain = ((segment, layer_graph(segments, segment)) for segment in segments.layers)
    inputs = product_inputs(embeddings_graph(segments), plain, samples_of(folder), QDQ_WEIGHTS) if int8 else {}
    embeddings = embeddings_graph(segments, opset=opset, dtype=dtype)
    yield with_float32_borders(embeddings) if bfloat16 else embeddings
    for segment in segments.layers:
        graph = layer_graph(segments, segment, opset=opset, dtype=dtype)
        yield (
            quantize_for_tensorrt(graph, inputs[segment.body])
            if int8
            else with_float32_borders(graph)
            if bfloat16
            else graph
        )


def checking_backend(folder: Path, manifest: Manifest, threads: int | None) -> Backend:
    """What runs the files here and now: ONNX Runtime, or for bf16 what comes nearest to them on a CPU."""
    if manifest.precision == "bf16":
        return RoundingBackend(folder, manifest, threads or default_threads())
    return open_backend(folder, manifest, threads)
