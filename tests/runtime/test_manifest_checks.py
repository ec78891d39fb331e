"""Loading a bundle rejects manifests that are well-typed but inconsistent or differ from the segment files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from berxit.runtime import EarlyExitRunner
from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import read_manifest, sha256
from berxit.runtime.errors import BerxitError
from berxit.runtime.golden import read_golden
from berxit.runtime.manifest_checks import Port, check_ports

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit_json(file: Path, edit: Edit) -> None:
    data = json.loads(file.read_text(encoding="utf-8"))
    edit(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def tensor(segment: int, kind: str, place: int, **changes: object) -> Edit:
    return lambda data: data["segments"][segment][kind][place].update(changes)


def model(**changes: object) -> Edit:
    return lambda data: data["model"].update(changes)


REFUSED: dict[str, tuple[Edit, str]] = {
    "unknown input role": (
        tensor(1, "inputs", 0, role="hiddem"),
        "layer 1: 'hidden_in' has the unknown role",
    ),
    "unknown output role": (tensor(1, "outputs", 1, role="logit"), "unknown role 'logit'"),
    "a role of another place": (tensor(1, "inputs", 1, role="input_ids"), "layer 1: "),
    "a role twice": (tensor(1, "inputs", 1, role="hidden"), "role 'hidden' is listed twice among the inputs"),
    "a name twice": (tensor(1, "inputs", 1, name="hidden_in"), "input 'hidden_in' is listed twice"),
    "no logits": (lambda data: data["segments"][2]["outputs"].pop(1), "layer 2: it writes no logits"),
    "no hidden": (lambda data: data["segments"][1]["inputs"].pop(0), "layer 1: it reads no hidden"),
    "no mask": (lambda data: data["segments"][0]["inputs"].pop(2), "layer 0: it reads no attention_mask"),
    "no attention bias": (lambda data: data["segments"][0]["outputs"].pop(1), "layer 0: it writes no attention_bias"),
    "LTE that the model lacks": (model(lte=False), "it writes lte, which is not allowed at its position"),
    "LTE logits outside CoreML": (
        lambda data: next(o for o in data["segments"][1]["outputs"] if o["role"] == "lte").update(role="lte_logit"),
        "unknown role 'lte_logit'",
    ),
    "functions outside CoreML": (
        lambda data: data["segments"][1].update(functions=["a"]),
        "layer 1: functions and compiled are allowed for target coreml only",
    ),
    "dtype of logits": (tensor(1, "outputs", 1, dtype="float64"), "has dtype 'float64', expected float32"),
    "dtype of ids": (tensor(0, "inputs", 0, dtype="int64"), "has dtype 'int64', expected int32"),
    "dtype that is none": (tensor(1, "inputs", 0, dtype="x"), "has dtype 'x'"),
    "dtype that changes between layers": (tensor(2, "inputs", 0, dtype="float16"), "layer 2: 'hidden_in' is float16"),
    "rank": (tensor(1, "outputs", 1, shape=["batch"]), r"has shape \(batch\), expected \(batch, 2\)"),
    "name of a size": (tensor(1, "inputs", 0, shape=["batch", "lenght", 32]), "expected .batch, length, 32"),
    "hidden size": (model(hidden_size=64), r"expected \(batch, length, 64\)"),
    "a fixed batch": (tensor(0, "inputs", 0, shape=[1, "length"]), r"has shape \(1, length\)"),
    "shape of a constant": (tensor(0, "inputs", 3, shape=[30, 32]), "'words' is float32 .30, 32., but its constant"),
    "a constant without a tensor": (lambda data: data["segments"][0]["constants"].clear(), "constants must list"),
    "a tensor without a constant": (
        lambda data: data["segments"][1]["constants"].update(data["segments"][0]["constants"]),
        "constants lists 'words', which is not an input",
    ),
    "more labels than logits": (model(labels=["a", "b", "c"]), r"expected \(batch, 3\)"),
    "one label": (model(labels=["a"]), "'confidence' needs class probabilities"),
    "a label twice": (model(labels=["cat", "cat"]), "model.labels contains 'cat' twice"),
    "labels of a regression": (
        lambda data: (data["model"].update(kind="regression"), data["policy"].update(criterion="lte")),
        "a regression model must have none",
    ),
    "unknown kind": (model(kind="ranking"), "model.kind is 'ranking'"),
    "no metric": (model(metric=""), "model.metric is empty"),
    "three texts": (model(text_columns=["a", "b", "c"]), "model.text_columns has 3 entries"),
    "no tokens": (model(max_length=0), "model.max_length is 0"),
    "padding that is no int32": (model(pad_token_id=2**31), "model.pad_token_id is 2147483648"),
    "a segment that repeats too often": (lambda data: data["segments"][1].update(repeat=10**9), "repeat is 1000000000"),
    "threads": (lambda data: data.update(threads=2**63), "threads is 9223372036854775808"),
    "lengths": (lambda data: data.update(lengths=[64, 32]), "lengths is .64, 32.: it must be in ascending order"),
    "tolerance": (lambda data: data["policy"].update(tolerance=float("nan")), "tolerance is nan"),
    "parity of other exits": (
        lambda data: data["parity"].update(max_diff=[0.0]),
        "parity.max_diff has 1 entries",
    ),
    "parity that nothing meets": (lambda data: data["parity"].update(atol=float("nan")), "parity.atol is nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_read_manifest_rejects_inconsistent_manifest(copy: Path, name: str) -> None:
    edit, message = REFUSED[name]
    edit_json(copy / "manifest.json", edit)
    with pytest.raises(BerxitError, match=rf"manifest\.json: .*{message}.*Export the bundle again") as failure:
        read_manifest(copy)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (tensor(1, "outputs", 1, name="logit"), "layer_01.onnx: the file has no output 'logit'"),
        (tensor(2, "inputs", 0, name="hidden"), "layer_02.onnx: the file needs an input 'hidden_in'"),
    ],
)
def test_open_backend_rejects_name_missing_in_file(copy: Path, backend: str, edit: Edit, message: str) -> None:
    pytest.importorskip(backend)
    edit_json(copy / "manifest.json", edit)
    with pytest.raises(BerxitError, match=message):
        EarlyExitRunner.load(copy, backend=backend)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_open_backend_rejects_dtype_that_differs_from_file(copy: Path, backend: str) -> None:
    """A manifest with float16 everywhere is consistent, but every array would have the wrong size."""
    pytest.importorskip(backend)
    text = (copy / "manifest.json").read_text(encoding="utf-8")
    data = json.loads(text)
    for segment in data["segments"]:
        for tensor in (*segment["inputs"], *segment["outputs"]):
            if tensor["role"] in ("hidden", "attention_bias", "token_weights"):
                tensor["dtype"] = "float16"
    (copy / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    manifest = read_manifest(copy)
    with pytest.raises(BerxitError, match=r"'hidden' is float32 .* in the file and float16 .* in the manifest"):
        open_backend(copy, manifest, backend=backend)


def test_lazy_runner_checks_layer_when_opened(copy: Path) -> None:
    edit_json(copy / "manifest.json", tensor(3, "outputs", 0, name="nothing"))
    runner = EarlyExitRunner.load(copy, backend="onnxruntime", lazy=True)
    with pytest.raises(BerxitError, match=r"layer_03\.onnx: the file has no output 'nothing'"):
        list(runner.stream("the cat"))


def test_read_golden_rejects_shape_mismatch(copy: Path) -> None:
    edit_json(copy / "golden.json", lambda data: data["logits"][0].pop())
    edit_json(copy / "manifest.json", lambda data: data["golden"].update(sha256=sha256(copy / "golden.json")))
    with pytest.raises(BerxitError, match=r"golden\.json: the entries do not match \d+ samples, and 3 layers"):
        read_golden(copy, read_manifest(copy))


def test_check_ports_compares_unknown_ports_by_name_only(bundle: Path) -> None:
    segment = read_manifest(bundle).segments[1]
    inputs, outputs = ([Port(t.name, None, None) for t in side] for side in (segment.inputs, segment.outputs))
    check_ports(segment, inputs, [*outputs, Port("more", "float32", ())], "here")
    fixed = [Port(t.name, None, (2, 2) if t.name == "logits" else None) for t in segment.outputs]
    with pytest.raises(BerxitError, match=r"here: output 'logits' is a tensor \(2, 2\) in the file and float32"):
        check_ports(segment, inputs, fixed, "here")
