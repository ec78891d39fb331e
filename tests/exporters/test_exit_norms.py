"""Exits with a norm of their own that label words: every target against PyTorch at every exit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quick_and_slow
from test_export import checkpoint_of

from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.exporters.targets import TARGETS
from berxit.runtime.backends import open_backend
from berxit.runtime.json_data import write_json
from berxit.runtime.loop import every_exit
from berxit.runtime.tokenization import TokenBatch
from berxit.train.checkpoint import load_checkpoint

TAGS = ("O", "B-animal", "I-animal", "B-color", "I-color")
LENGTHS = (19, 1, 7)
"""Tokens of the rows; a local window of the tiny encoder contains 9 tokens."""


RUNS = {
    "onnxruntime": ("onnxruntime", "onnxruntime", ExportOptions("fp32")),
    "openvino": ("onnxruntime", "openvino", ExportOptions("fp32")),
    "tensorrt": ("tensorrt", None, ExportOptions("fp32")),
    "coreml-tokens": ("coreml", None, ExportOptions("fp32", layout="tokens")),
    "coreml-ane": ("coreml", None, ExportOptions("fp32", (8, 32), layout="ane")),
}
"""Target, backend and options. Without a backend, the segments run in ONNX Runtime (TensorRT) or numpy (CoreML)."""
QUICK = [("onnxruntime", "mean"), ("openvino", "first"), ("tensorrt", "first"), ("coreml-tokens", "first"),
         ("coreml-ane", "mean")]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, backbone_folders: dict[str, Path]) -> dict[str, Path]:
    """Pooling -> a tokens model whose exits have different norms."""
    found = {}
    for pooling in ("mean", "first"):
        folder = found[pooling] = tmp_path_factory.mktemp("norms") / "checkpoint"
        labels = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: number for number, tag in enumerate(TAGS)}}
        options: dict[str, Any] = {
            "problem_type": "token_classification",
            "metric": "span-f1",
            "pooling": pooling,
            **labels,
        }
        checkpoint_of(backbone_folders["modernbert"], folder, **options)
        write_json({"texts": ["the cat sat", "a big red dog ran on under the tree"]}, folder / "samples.json")
        model, _ = load_checkpoint(folder)
        with torch.no_grad():
            for parameter in model.heads.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(folder)
    return found


@pytest.mark.parametrize(("run", "pooling"), quick_and_slow([(r, p) for r in RUNS for p in ("mean", "first")], QUICK))
def test_words_of_exits_with_norms_equal_pytorch(
    run: str, pooling: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    target, backend, options = RUNS[run]
    if backend or target == "coreml":
        pytest.importorskip(backend or "coremltools", reason="not installed here")
    manifest = export(checkpoints[pooling], target, tmp_path / "bundle", options=options)
    if backend:
        opened = open_backend(tmp_path / "bundle", manifest, 1, backend=backend)
    else:
        opened = TARGETS[target].load_writer().checking_backend(tmp_path / "bundle", manifest, None)
    model, _ = load_checkpoint(checkpoints[pooling])
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 27, length).tolist() for length in LENGTHS]
    for ids in [[row] for row in rows] if manifest.max_batch == 1 else [rows]:
        batch = TokenBatch.pad(ids, [[0] * len(row) for row in ids], manifest.model.pad_token_id)
        tensors = [torch.from_numpy(np.array(each)).long() for each in (batch.input_ids, batch.attention_mask)]
        with torch.no_grad():
            expected = model(*tensors)
        for layer, logits, lte, _ in every_exit(opened, batch):
            pairs = zip(logits, expected.exit_logits[:, layer - 1].numpy(), batch.lengths, strict=True)
            assert max(np.abs(a[:length] - b[:length]).max() for a, b, length in pairs) <= 1e-5
            assert lte == pytest.approx(expected.certainties[:, layer - 1].numpy(), abs=1e-5)
