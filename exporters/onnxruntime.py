"""The ONNX Runtime target: one ONNX file per segment; layers that share their weights share the file."""

from __future__ import annotations

from pathlib import Path

import numpy.typing as npt
import onnx

from exporters.onnx_graph import OnnxSegment, embeddings_graph, layer_graph
from exporters.options import ExportOptions
from exporters.segments import Segments
from runtime.backends.onnxruntime import open_backend as checking_backend  # noqa: F401 - part of what a target is
from runtime.bundle import Segment, TensorFile, sha256
from runtime.progress import Bar

PRECISIONS = {"fp32": 1e-4}
"""What the target can be exported in -> how far an exit may be from the checkpoint's (absolute, logits and LTE)."""
OPTIONS: frozenset[str] = frozenset()
"""Which of ExportOptions the target takes, beside precision."""


def write_segments(segments: Segments, folder: Path, options: ExportOptions, bar: Bar) -> tuple[Segment, ...]:
    """Writes the segment files below ``folder`` and returns what the manifest says of them."""
    (folder / "segments").mkdir()
    written = [_write(embeddings_graph(segments), 0, "embeddings", folder)]
    bar.update(1)
    bodies: dict[int, str] = {}
    for segment in segments.layers:
        name = f"layer_{segment.layer:02d}"
        if segments.shared(segment):
            name = bodies.setdefault(id(segment.encoder), f"body_{len(bodies) + 1:02d}")
        written.append(_write(layer_graph(segments, segment), segment.layer, name, folder))
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
