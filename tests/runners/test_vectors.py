"""Test vectors of all runners: they equal the outputs of the Python runtime, which also passes them itself."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from make_vectors import VECTORS, copy_tokenizers, write_vectors
from rejected import changed_bundle
from small_models import plain

from berxit.runtime import EarlyExitRunner
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.prediction import Prediction
from berxit.runtime.tokenization import Text

MODELS = sorted(path.name for path in (VECTORS / "onnx").iterdir())
ERRORS = json.loads((VECTORS / "errors.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Newly computed test vectors, from the committed tokenizers; newly trained ones may differ between versions."""
    folder = tmp_path_factory.mktemp("vectors")
    copy_tokenizers(VECTORS, folder)
    write_vectors(folder)
    return folder


def test_vectors_equal_runtime_outputs(today: Path) -> None:
    files = sorted(path.relative_to(VECTORS) for path in VECTORS.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(today) for path in today.rglob("*") if path.is_file())
    assert len(files) > 100
    different = [str(file) for file in files if not same(VECTORS / file, today / file)]
    assert different == [], "run tests/runners/make_vectors.py, then run the tests of all runners"


def same(a: Path, b: Path) -> bool:
    """Compares files byte by byte; computed numbers to six digits, because exp differs between CPUs in the last one."""
    if a.name not in ("policies.json", "newer_policies.json", "decisions.json", "answers.json", "deadlines.json"):
        return filecmp.cmp(a, b, shallow=False)
    return alike(*(json.loads(path.read_text(encoding="utf-8")) for path in (a, b)))


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == pytest.approx(b, rel=1e-6)) if isinstance(a, float) else bool(a == b)


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("pairs", "agreement", "learned", "tokens", "heads") else pytest.param(n, marks=pytest.mark.slow)
        for n in MODELS
    ],
)
def test_runtime_passes_the_vectors_of_a_bundle(name: str) -> None:
    cases = json.loads((VECTORS / "onnx" / name / "answers.json").read_text(encoding="utf-8"))
    texts: list[Text] = [tuple(text) if len(text) == 2 else text[0] for text in cases["texts"]]
    with EarlyExitRunner.load(VECTORS / "onnx" / name, backend="onnxruntime", threads=1) as runner:
        golden, manifest = read_golden(VECTORS / "onnx" / name, runner.manifest), runner.manifest
        assert max(differences(runner.backend, golden, manifest.model.pad_token_id)) == 0
        for batch in cases["batches"]:
            together = runner.predict_batch(texts, threshold=batch["threshold"], heads=batch.get("heads"))
            assert alike(as_json(together), batch["answers"])
        for text, expected in zip(cases["texts"], cases["streams"], strict=True):
            assert alike(as_json(runner.stream(*text)), expected)


def as_json(answers: Iterable[Prediction]) -> Any:
    return json.loads(json.dumps([plain(answer) for answer in answers]))


@pytest.mark.parametrize("case", [case for case in ERRORS if "at" in case], ids=lambda case: "-".join(case["names"]))
def test_runtime_rejects_the_bundles_of_errors(case: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BerxitError) as caught:
        EarlyExitRunner.load(
            changed_bundle(VECTORS / "onnx" / case["model"], tmp_path / "bundle", case["at"], case["value"])
        )
    assert_names(caught.value, case["names"])


def test_runtime_rejects_the_calls_of_errors() -> None:
    runners: dict[str, EarlyExitRunner] = {}
    for case in (case for case in ERRORS if "at" not in case):
        name = case["model"]
        if name not in runners:
            runners[name] = EarlyExitRunner.load(VECTORS / "onnx" / name, backend="onnxruntime", threads=1, lazy=True)
        texts: list[Text] = [tuple(text) if len(text) == 2 else text[0] for text in case["texts"]]
        with pytest.raises(InputError) as caught:
            runners[name].predict_batch(texts, threshold=case["threshold"], deadline_ms=case["deadline_ms"])
        assert_names(caught.value, case["names"])


def assert_names(error: BerxitError, names: list[str]) -> None:
    """The message has one line and contains the names."""
    assert "\n" not in str(error)
    assert [name for name in names if name not in str(error)] == []
