"""The runners for Python, C and JavaScript load bundles whose word embedding table has a fixed number of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import javascript
import native
import onnx
import pytest
from conftest import WORDS, MakeCheckpoint
from make_vectors import VECTORS
from older_bundles import with_fixed_table

from berxit.runtime import EarlyExitRunner

Predictions = list[tuple[str, int]]
"""Label and exit layer of each text."""
TEXTS = [" ".join(WORDS[start : start + 9]) for start in range(4)]


def python_predictions(bundle: Path, texts: Sequence[str], folder: Path) -> Predictions:
    with EarlyExitRunner.load(bundle, backend="onnxruntime", threads=1) as runner:
        return [(str(each.label), each.exit_layer) for each in runner.predict_batch(list(texts))]


def c_predictions(bundle: Path, texts: Sequence[str], folder: Path) -> Predictions:
    program = native.built("quick") / "berxit-vectors"
    output = native.run(program, "predict", bundle, native.library(), "1", str(len(texts)), cases=texts)
    rows = [line.split("\t") for line in output.splitlines()]
    return [(label, int(numbers.split()[1])) for numbers, label in rows]


def node_predictions(bundle: Path, texts: Sequence[str], folder: Path, backend: str = "node") -> Predictions:
    javascript.built()
    differences, found = javascript.predictions(bundle, list(texts), folder, backend)
    assert max(differences) < 1
    return [(each["label"], each["exit_layer"]) for each in found]


def wasm_predictions(bundle: Path, texts: Sequence[str], folder: Path) -> Predictions:
    return node_predictions(bundle, texts, folder, "wasm")


RUNNERS: list[Callable[..., Predictions]] = [python_predictions, c_predictions, node_predictions, wasm_predictions]


@pytest.mark.parametrize(
    "predictions", [*RUNNERS[:-1], pytest.param(RUNNERS[-1], marks=pytest.mark.slow)], ids=lambda each: each.__name__
)
def test_runner_predicts_with_a_table_of_fixed_rows(predictions: Callable[..., Predictions], tmp_path: Path) -> None:
    source = VECTORS / "onnx" / "confidence"
    bundle = with_fixed_table(source, tmp_path / "bundle")
    (table,) = [
        each for each in onnx.load(str(bundle / "segments/embeddings.onnx")).graph.input if each.name == "words"
    ]
    assert [size.dim_value for size in table.type.tensor_type.shape.dim] == [512, 8]
    answers = json.loads((source / "answers.json").read_text(encoding="utf-8"))
    expected = [(each["label"], each["exit_layer"]) for each in answers["batches"][0]["answers"]]
    assert predictions(bundle, [text for (text,) in answers["texts"]], tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize("predictions", RUNNERS, ids=lambda each: each.__name__)
def test_runner_predicts_with_an_int8_table_whose_scales_are_in_the_file(
    predictions: Callable[..., Predictions], made: MakeCheckpoint, tmp_path: Path
) -> None:
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions

    newer = tmp_path / "newer"
    export(made("bert"), "onnxruntime", newer, options=ExportOptions(precision="int8"), scores=False)
    older = with_fixed_table(newer, tmp_path / "older")
    assert not (older / "segments" / "embeddings.words.scale.bin").exists()
    expected = python_predictions(newer, TEXTS, tmp_path)
    assert predictions(older, TEXTS, tmp_path) == expected
