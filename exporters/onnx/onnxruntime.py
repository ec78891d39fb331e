"""The ONNX Runtime target: one ONNX file per segment; layers that share their weights share the file, and the table of
words lies beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy.typing as npt
import onnx

from berxit.exporters.onnx.activations import product_inputs, samples_of
from berxit.exporters.onnx.fp16_weights import store_weights_fp16
from berxit.exporters.onnx.graph import OnnxSegment, embeddings_graph, externalize_weight, layer_graph
from berxit.exporters.onnx.int8_dynamic import PRODUCTS, quantized
from berxit.exporters.options import ExportOptions
from berxit.exporters.segments import Segments
from berxit.runtime.backends.onnxruntime import open_backend as checking_backend  # noqa: F401 - part of what a target is
from berxit.runtime.bundle import Segment, TensorFile, sha256
from berxit.runtime.progress import Bar

PRECISIONS = {"fp32": 1e-4, "int8": 2.0, "fp16": 1e-2}
"""Precision -> tolerance: the largest difference of an exit from the checkpoint's (logits relative to their scale, and
LTE). Int8 moves single logits by up to 1.1 on the real models we tried; what holds it is LEAST_PSNR, and its
measured score. fp16 is how weights are stored; computed is in float32."""
LEAST_PSNR = {"int8": 20.0}
"""Precision -> dB: rounding may make up a tenth of the largest logit, root mean square. Real models reach 30 to 46; an
exit that answers something else is below 10."""
SCORED = frozenset({"int8"})
"""What may change an answer: its scores are measured, and its thresholds chosen from its own answers."""
OPTIONS: frozenset[str] = frozenset({"exits", "threads"})
"""Which of ExportOptions the target takes, beside precision."""


def write_segments(segments: Segments, folder: Path, options: ExportOptions, bar: Bar) -> tuple[Segment, ...]:
    """Writes the segment files below ``folder`` and returns what the manifest says of them."""
    segments = segments.repeating()
    graphs = _int8_graphs(segments, folder) if options.precision == "int8" else _graphs(segments)
    return write_graphs(
        segments, _mapped(map(store_weights_fp16, graphs) if options.precision == "fp16" else graphs), folder, bar
    )


def _graphs(segments: Segments) -> Iterator[OnnxSegment]:
    yield embeddings_graph(segments)
    for segment in segments.layers:
        yield layer_graph(segments, segment, short_end=True)


def _int8_graphs(segments: Segments, folder: Path) -> Iterator[OnnxSegment]:
    """Two passes over the graphs, since layers that share a file must agree on what comes to its products."""
    embeddings, *layers = _graphs(segments)
    inputs = product_inputs(embeddings, zip(segments.layers, layers, strict=True), samples_of(folder), PRODUCTS)
    yield quantized(embeddings)
    for segment, graph in zip(segments.layers, layers, strict=True):
        yield quantized(graph, inputs[segment.body])


def _mapped(graphs: Iterator[OnnxSegment]) -> Iterator[OnnxSegment]:
    """The table of words gets a file of its own, which a device maps: of a vocabulary it then holds what it meets. (In
    the graph ONNX Runtime would read all of it, 90 MiB at d = 768.)"""
    yield externalize_weight(next(graphs), "words")
    yield from graphs


def write_graphs(segments: Segments, graphs: Iterable[OnnxSegment], folder: Path, bar: Bar) -> tuple[Segment, ...]:
    """Writes one graph after another, the embeddings first; layers that share their weights share a file."""
    (folder / "segments").mkdir()
    written: list[Segment] = []
    bodies: dict[tuple[int, ...], str] = {}
    for segment, graph in zip((None, *segments.layers), graphs, strict=True):
        layer = segment.layer if segment else 0
        name = f"layer_{layer:02d}" if segment else "embeddings"
        if segment and segments.shared(segment):
            name = bodies.setdefault(segment.body, f"body_{len(bodies) + 1:02d}")
        written.append(_write(graph, layer, name, folder, segment.repeat if segment else 1))
        bar.update(1)
    return tuple(written)


def _write(graph: OnnxSegment, layer: int, name: str, folder: Path, repeat: int) -> Segment:
    file = f"segments/{name}.onnx"
    if not (folder / file).exists():
        onnx.save(graph.model, str(folder / file))
    owner = f"layer_{layer:02d}" if layer else name  # layers that share a file differ in their constants
    constants = {
        tensor: _write_tensor(value, f"segments/{owner}.{tensor}.bin", folder)
        for tensor, value in graph.constants.items()
    }
    return Segment(layer, file, sha256(folder / file), graph.inputs, graph.outputs, constants, repeat=repeat)


def _write_tensor(value: npt.NDArray, file: str, folder: Path) -> TensorFile:
    value.astype(value.dtype.newbyteorder("<")).tofile(folder / file)
    return TensorFile(file, sha256(folder / file), str(value.dtype), value.shape)
