"""Files that the contenders of the side-by-side benchmark load, all exported from one checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openvino as ov
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.side_by_side.bars import MACHINE, POOL
from benchmarks.side_by_side.contenders import Spec, has_bf16
from benchmarks.side_by_side.products import Shape
from benchmarks.side_by_side.whole_graph import write_whole_graph
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime.bundle import Manifest
from berxit.runtime.json_data import write_json
from berxit.runtime.progress import Progress


def random_checkpoint(folder: Path, layers: int, hidden: int, longest: int) -> Path:
    """BERT with random weights, which is as fast as a trained model."""
    import torch
    from transformers import BertConfig, BertTokenizer

    from berxit.train.checkpoint import SAMPLES_FILE
    from berxit.train.configuration import MultiExitConfig
    from berxit.train.modeling import MultiExitModel

    torch.manual_seed(0)
    backbone = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(512, longest),
    )
    config = MultiExitConfig(backbone=backbone, lte=False, max_length=longest)
    MultiExitModel(config).save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the"]
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    write_json(
        {"texts": ["the a " * words for words in (1, 4, 16)]}, folder / SAMPLES_FILE
    )  # the int8 export needs texts
    return folder


def prepare(checkpoint: Path, scratch: Path, progress: Progress) -> tuple[Manifest, list[Spec]]:
    """Writes all files below ``scratch``. Returns the manifest of the fp32 bundle and the contenders, of which the
    first is that bundle."""
    bundle, int8 = scratch / "fp32", scratch / "int8"
    graph, int8_graph, our_int8_graph = (scratch / f"{name}.onnx" for name in ("fp32", "int8", "our_int8"))
    manifest = export(checkpoint, "onnxruntime", bundle, progress=progress)
    options = ExportOptions(precision="int8")
    our_int8 = export(checkpoint, "onnxruntime", int8, options=options, scores=False, progress=progress)
    write_whole_graph(bundle, manifest.segments, graph)
    write_whole_graph(int8, our_int8.segments, our_int8_graph)
    with _without_hints():
        quantize_dynamic(graph, int8_graph, per_channel=True, weight_type=QuantType.QInt8)
    half = has_bf16(ov.Core())
    shape = shape_of(checkpoint, manifest)
    specs = [
        Spec("segments", "ours, ONNX Runtime fp32", bundle, "fp32", "onnxruntime"),
        Spec("segments", "ours, ONNX Runtime int8", int8, "int8", "onnxruntime"),
        Spec("segments", POOL.format("fp32"), bundle, "fp32", "onnxruntime", {"shared_pool": True}),
        Spec("segments", POOL.format("int8"), int8, "int8", "onnxruntime", {"shared_pool": True}),
        Spec("segments", "ours, OpenVINO fp32", bundle, "fp32", "openvino"),
        Spec("segments", "ours, OpenVINO int8", int8, "int8", "openvino"),
        *([Spec("segments", "ours, OpenVINO bf16", bundle, "bf16", "openvino", {"bf16": True})] if half else []),
        Spec("onnxruntime", "one graph, ONNX Runtime fp32", graph, "fp32"),
        Spec("onnxruntime", "one graph, ONNX Runtime fp32, our options", graph, "fp32", tuned=True),
        Spec("onnxruntime", "one graph, ONNX Runtime int8", int8_graph, "int8"),
        Spec("onnxruntime", "one graph, ONNX Runtime int8, our options", int8_graph, "int8", tuned=True),
        Spec("onnxruntime", "one graph, ONNX Runtime, our int8 and options", our_int8_graph, "int8", tuned=True),
        Spec("openvino", "one graph, OpenVINO fp32", graph, "fp32"),
        *([Spec("openvino", "one graph, OpenVINO bf16", graph, "bf16")] if half else []),
        Spec("openvino", "one graph, OpenVINO int8", our_int8_graph, "int8"),
    ]
    if manifest.model.family in ("bert", "roberta"):  # the eager exit loop supports these families only
        specs.append(Spec("eager", "PyTorch eager", checkpoint, "fp32"))
    precisions = ("fp32", "bf16", "int8") if half else ("fp32", "int8")
    return manifest, [
        *specs,
        *(Spec("products", MACHINE.format(precision), shape, precision) for precision in precisions),
    ]


@contextmanager
def _without_hints() -> Iterator[None]:
    """Silences a hint about preprocessing, which has no effect here. ONNX Runtime logs it to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def shape_of(checkpoint: Path, manifest: Manifest) -> Shape:
    """Shape of the model. If the last segment writes no hidden state, it computes only the first token."""
    return Shape.of(checkpoint, last_alone=all(output.role != "hidden" for output in manifest.segments[-1].outputs))
