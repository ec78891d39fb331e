"""The ONNX Runtime target: one ONNX file per segment; layers that share their weights share the file."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy.typing as npt
import onnx

from exporters.onnx_graph import OnnxSegment, embeddings_graph, layer_graph
from exporters.options import ExportOptions
from exporters.quantize_dynamic import quantized
from exporters.segments import Segments
from runtime.backends.onnxruntime import open_backend as checking_backend  # noqa: F401 - part of what a target is
from runtime.bundle import Segment, TensorFile, sha256
from runtime.progress import Bar

PRECISIONS = {"fp32": 1e-4, "int8": 2.0}
"""What the target can be exported in -> how far an exit may be from the checkpoint's (absolute, logits and LTE). Int8
moves logits by up to 1.1 on the real models we tried, and scores by less than a point; 2 lets that pass and stops a
segment that answers something else. What it costs in score, ``benchmarks/bundles.py`` tells."""
OPTIONS: frozenset[str] = frozenset({"exits", "threads"})
"""Which of ExportOptions the target takes, beside precision."""


def write_segments(segments: Segments, folder: Path, options: ExportOptions, bar: Bar) -> tuple[Segment, ...]:
    """Writes the segment files below ``folder`` and returns what the manifest says of them."""
    graphs = chain([embeddings_graph(segments)], (layer_graph(segments, segment) for segment in segments.layers))
    return write_graphs(segments, map(quantized, graphs) if options.precision == "int8" else graphs, folder, bar)


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
        written.append(_write(graph, layer, name, folder))
        bar.update(1)
    return tuple(written)


def _write(graph: OnnxSegment, layer: int, name: str, folder: Path) -> Segment:
    file = f"segments/{name}.onnx"
    if not (folder / file).exists():
        onnx.save(graph.model, str(folder / file))
    constants = {
        tensor: _write_tensor(value, f"segments/layer_{layer:02d}.{tensor}.bin", folder)
        for tensor, value in graph.constants.items()
    }
    return Segment(layer, file, sha256(folder / file), graph.inputs, graph.outputs, constants)


def _write_tensor(value: npt.NDArray, file: str, folder: Path) -> TensorFile:
    value.astype(value.dtype.newbyteorder("<")).tofile(folder / file)
    return TensorFile(file, sha256(folder / file), str(value.dtype), value.shape)
