"""Graph joined from segments: equal outputs, and shared weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.side_by_side.whole_graph import write_whole_graph
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime import EarlyExitRunner
from berxit.train.fine_tuning import TrainingOptions, fine_tune
from berxit.train.tasks import custom_task

TEXTS = ["the cat sat on the mat", "a dog"]


def check_outputs(bundle: Path, graph: Path) -> None:
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    assert len(session.get_outputs()) == 1
    runner = EarlyExitRunner.load(bundle, threads=1)
    batch = runner.tokenizer(TEXTS)
    state = runner.backend.embed(batch)
    for layer in runner.backend.exits:
        state, logits, _ = runner.backend.layer(layer, state)
    found = session.run(None, {i.name: getattr(batch, i.name) for i in session.get_inputs()})[0]
    np.testing.assert_allclose(found, logits, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_whole_graph_outputs_equal_last_exit(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    manifest = export(checkpoint, "onnxruntime", tmp_path / "bundle", options=ExportOptions(precision=precision))
    write_whole_graph(tmp_path / "bundle", manifest.segments, tmp_path / "whole.onnx")
    check_outputs(tmp_path / "bundle", tmp_path / "whole.onnx")


@pytest.fixture(scope="module")
def albert(backbone_folders: dict[str, Path], data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = tmp_path_factory.mktemp("albert") / "checkpoint"
    options = TrainingOptions(str(backbone_folders["albert"]), max_steps=2, batch_size=4, max_length=32)
    fine_tune(custom_task(data_folder, ("text",), "label"), data_folder, options, checkpoint)
    return checkpoint


@pytest.mark.parametrize("exits", [(), (2, 3)], ids=["every layer", "a body that is run twice"])
def test_whole_graph_shares_weights_of_layers_with_same_file(
    albert: Path, tmp_path: Path, exits: tuple[int, ...]
) -> None:
    manifest = export(albert, "onnxruntime", tmp_path / "bundle", options=ExportOptions(exits=exits))
    write_whole_graph(tmp_path / "bundle", manifest.segments, tmp_path / "whole.onnx")
    names = [tensor.name for tensor in onnx.load(str(tmp_path / "whole.onnx")).graph.initializer]
    assert [name for name in names if name.endswith("/up.weight")] == ["body_01/up.weight"]
    check_outputs(tmp_path / "bundle", tmp_path / "whole.onnx")
