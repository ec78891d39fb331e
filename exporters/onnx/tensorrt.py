"""The TensorRT target: plain ONNX files that its parser accepts, from which engines are built on the device.

An engine works with one GPU and one TensorRT version only, so a bundle contains none: ``berxit-build`` builds them on
the device. The precision is stored in the files, because TensorRT 11 has no flag for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from berxit.devices import default_threads
from berxit.exporters.onnx.activations import matmul_inputs
from berxit.exporters.onnx.bfloat16 import RoundingBackend, with_float32_borders
from berxit.exporters.onnx.graph import OnnxSegment, embeddings_graph, layer_graph
from berxit.exporters.onnx.int8_qdq import QDQ_WEIGHTS, quantize_for_tensorrt
from berxit.exporters.onnx.onnxruntime import write_graphs
from berxit.exporters.segments import Segments
from berxit.exporters.targets import Settings, TensorRTVersion, WrittenSegments
from berxit.runtime.backends.onnxruntime import open_backend
from berxit.runtime.bundle import Manifest
from berxit.runtime.loop import Backend
from berxit.runtime.progress import Bar
from berxit.runtime.tokenization import TokenBatch


def write_segments(
    segments: Segments, folder: Path, settings: Settings, samples: Sequence[TokenBatch], bar: Bar
) -> WrittenSegments:
    """As ``Writer.write_segments``."""
    segments = segments.repeating()
    return WrittenSegments(write_graphs(segments, graphs_of(segments, settings, samples), folder, bar))


def graphs_of(segments: Segments, settings: Settings, samples: Sequence[TokenBatch]) -> Iterator[OnnxSegment]:
    """The embeddings, then layer after layer. Int8 is calibrated on ``samples``; the operators around its matmuls have
    the dtype that the version quantizes."""
    assert isinstance(settings.version, TensorRTVersion)
    version, precision = settings.version, settings.precision.name
    opset, int8, bfloat16 = version.opset, precision == "int8", precision == "bf16"
    dtype = {"fp16": "float16", "bf16": "bfloat16", "int8": version.int8_dtype}.get(precision, "float32")
    plain = ((segment, layer_graph(segments, segment)) for segment in segments.layers)
    inputs = matmul_inputs(embeddings_graph(segments), plain, samples, QDQ_WEIGHTS) if int8 else {}
    embeddings = embeddings_graph(segments, opset=opset, dtype=dtype)
    yield with_float32_borders(embeddings) if bfloat16 else embeddings
    for segment in segments.layers:
        graph = layer_graph(segments, segment, opset=opset, dtype=dtype)
        if int8:
            graph = quantize_for_tensorrt(graph, inputs[segment.body], int8_weights=version.int8_weights)
        yield with_float32_borders(graph) if bfloat16 else graph


def checking_backend(folder: Path, manifest: Manifest, threads: int | None) -> Backend:
    """ONNX Runtime on the files; for bf16, on a float32 copy whose results are rounded to bfloat16."""
    if manifest.precision == "bf16":
        return RoundingBackend(folder, manifest, threads or default_threads())
    return open_backend(folder, manifest, threads)
