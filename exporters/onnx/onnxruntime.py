"""The ONNX Runtime target: one ONNX file per segment. Layers that share their weights share the file. The word
embedding table is stored in a separate file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy.typing as npt
import onnx

from berxit.exporters.onnx.activations import EMBEDDINGS, matmul_inputs
from berxit.exporters.onnx.fp16_weights import store_weights_fp16
from berxit.exporters.onnx.graph import OnnxSegment, embeddings_graph, externalize_tables, layer_graph
from berxit.exporters.onnx.int8_cpu import QUANTIZED_WEIGHTS, quantized
from berxit.exporters.segments import Segments
from berxit.exporters.targets import Settings, WrittenSegments
from berxit.runtime.backends.onnxruntime import open_backend
from berxit.runtime.bundle import Manifest, Segment, TensorFile, sha256
from berxit.runtime.loop import Backend
from berxit.runtime.progress import Bar
from berxit.runtime.tokenization import TokenBatch


def write_segments(
    segments: Segments, folder: Path, settings: Settings, samples: Sequence[TokenBatch], bar: Bar
) -> WrittenSegments:
    """As ``Writer.write_segments``."""
    segments, precision = segments.repeating(), settings.precision.name
    graphs = _int8_graphs(segments, samples) if precision == "int8" else _graphs(segments)
    if precision == "fp16":
        graphs = map(store_weights_fp16, graphs)
    return WrittenSegments(write_graphs(segments, _with_external_tables(graphs), folder, bar))


def checking_backend(folder: Path, manifest: Manifest, threads: int | None) -> Backend:
    """The runtime's own backend."""
    return open_backend(folder, manifest, threads)


def _graphs(segments: Segments) -> Iterator[OnnxSegment]:
    yield embeddings_graph(segments)
    for segment in segments.layers:
        yield layer_graph(segments, segment, short_end=True, masked_keys=True)


def _int8_graphs(segments: Segments, samples: Sequence[TokenBatch]) -> Iterator[OnnxSegment]:
    """Two passes over the graphs, because layers that share a file also share the scales of its matmuls."""
    embeddings, *layers = _graphs(segments)
    pairs = zip(segments.layers, layers, strict=True)
    inputs = matmul_inputs(embeddings, pairs, samples, QUANTIZED_WEIGHTS)
    yield quantized(embeddings, inputs[EMBEDDINGS])
    for segment, graph in zip(segments.layers, layers, strict=True):
        yield quantized(graph, inputs[segment.body])


def _with_external_tables(graphs: Iterator[OnnxSegment]) -> Iterator[OnnxSegment]:
    """Stores the word embedding table in a separate file (int8: two, rows and scales), which a device memory-maps: only
    the rows that are looked up take memory. From the graph, ONNX Runtime would read the whole table, 90 MiB at d = 768.
    """
    yield externalize_tables(next(graphs))
    yield from graphs


def write_graphs(segments: Segments, graphs: Iterable[OnnxSegment], folder: Path, bar: Bar) -> tuple[Segment, ...]:
    """Writes the graphs, the embeddings first. Layers that share their weights share a file."""
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
