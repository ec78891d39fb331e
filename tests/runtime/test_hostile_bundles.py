"""Bundles that were changed on purpose, with checksums that match: each is refused in one line, and nothing hangs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from berxit.runtime.bundle import read_manifest
from berxit.runtime.errors import BerxitError
from berxit.runtime.onnx_files import OPERATORS, check_onnx
from berxit.runtime.runner import EarlyExitRunner

Data = dict[str, Any]


@pytest.fixture
def hostile(bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the bundle, changes one of its files, and writes the file's new checksum to the manifest."""

    def make(file: str, change: Callable[[Path], object]) -> Path:
        copy = Path(shutil.copytree(bundle, tmp_path / "hostile", dirs_exist_ok=True))
        before = hashlib.sha256((copy / file).read_bytes()).hexdigest()
        change(copy / file)
        after = hashlib.sha256((copy / file).read_bytes()).hexdigest()
        text = (copy / "manifest.json").read_text(encoding="utf-8")
        (copy / "manifest.json").write_text(text.replace(before, after), encoding="utf-8")
        return copy

    return make


def edited(change: Callable[[Any], object]) -> Callable[[Path], object]:
    """A change of a JSON file's data."""

    def apply(path: Path) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        path.write_text(json.dumps(data), encoding="utf-8")

    return apply


def model_with(node: onnx.NodeProto | None = None, **fields: Any) -> bytes:
    """An ONNX file with one node, or with further fields."""
    graph = helper.make_graph([node] if node else [], "g", [], [])
    model = helper.make_model(graph)
    for name, values in fields.items():
        getattr(model.graph if name == "initializer" else model, name).extend(values)
    return bytes(model.SerializeToString())


def external(**entries: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


TENSOR = helper.make_graph([], "inner", [], [])
REFUSED = {
    "memory": (model_with(initializer=[external(location="*/_ORT_MEM_ADDR_/*", offset="4096")]), "outside"),
    "file": (model_with(initializer=[external(location="../../secret")]), "outside"),
    "constant": (model_with(helper.make_node("Constant", [], ["c"], value=external(location="x"))), "outside"),
    "unknown operator": (model_with(helper.make_node("ReadFile", [], ["y"])), "operator 'ReadFile'"),
    "other domain": (model_with(helper.make_node("Add", ["a", "b"], ["y"], domain="mine")), "operator 'mine.Add'"),
    "subgraph": (model_with(helper.make_node("If", ["c"], ["y"], then_branch=TENSOR, else_branch=TENSOR)), "graphs"),
    "function": (
        model_with(functions=[helper.make_function("mine", "F", [], [], [], [helper.make_opsetid("", 17)])]),
        "operators of its own",
    ),
    "text": (b"no protobuf at all", "not an ONNX file"),
    "cut": (model_with(helper.make_node("Add", ["a", "b"], ["y"]))[:-3], "not an ONNX file"),
    "a group": (b"\x0b" + b"\x00" * 9, "not an ONNX file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_check_onnx_refuses_what_no_segment_needs(name: str) -> None:
    content, message = REFUSED[name]
    with pytest.raises(BerxitError, match=message) as refusal:
        check_onnx(content, "segments/layer_01.onnx")
    assert "\n" not in str(refusal.value)
    assert "segments/layer_01.onnx" in str(refusal.value)


def test_check_onnx_reads_a_duplicate_graph() -> None:
    """Protobuf merges repeated messages, so a second graph counts as much as the first."""
    safe, hidden = model_with(helper.make_node("Add", ["a", "b"], ["y"])), REFUSED["unknown operator"][0]
    check_onnx(safe, "x.onnx")
    with pytest.raises(BerxitError, match="ReadFile"):
        check_onnx(safe + hidden, "x.onnx")


def test_known_operators_are_operators_of_onnx() -> None:
    for operator in OPERATORS:
        schema = onnx.defs.get_schema(operator)
        assert not any(a.type == onnx.defs.OpSchema.AttrType.GRAPH for a in schema.attributes.values()), operator


def test_runner_refuses_external_data_before_a_backend_reads_it(hostile: Callable[..., Path]) -> None:
    def point_outside(path: Path) -> None:
        model = onnx.load(str(path))
        model.graph.initializer.extend([external(location="*/_ORT_MEM_ADDR_/*", offset="4096", length="16")])
        path.write_bytes(model.SerializeToString())

    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(BerxitError, match=r"layer_01\.onnx: the file reads weights from outside"):
            EarlyExitRunner.load(hostile("segments/layer_01.onnx", point_outside), backend=backend)


MANIFESTS: dict[str, Callable[[str], str]] = {
    "NUL": lambda text: text.replace('"tokenizer.json"', '"a\\u0000b"', 1),
    "newline": lambda text: text.replace('"tokenizer.json"', '"a\\nb"', 1),
    "overlong name": lambda text: text.replace('"tokenizer.json"', f'"{"a" * 300}"', 1),
    "lone surrogate": lambda text: text.replace('"tokenizer.json"', '"\\ud800"', 1),
    "nested": lambda text: text.replace(
        '"calibration": {', '"calibration": {"z":' + "[" * 10**5 + "]" * 10**5 + ",", 1
    ),
    "5000 digits": lambda text: text.replace('"layers": 3', '"layers": ' + "9" * 5000, 1),
    "line break in a key": lambda text: text.replace('"policy"', '"pol\\nicy"', 1),
    "pad_token_id": lambda text: text.replace('"pad_token_id": 0', '"pad_token_id": 1000', 1),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_read_manifest_refuses_hostile_manifest_in_one_line(name: str, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    before = (copy / "manifest.json").read_text(encoding="utf-8")
    after = MANIFESTS[name](before)
    assert after != before
    (copy / "manifest.json").write_text(after, encoding="utf-8")
    with pytest.raises(BerxitError, match=r"manifest\.json") as refusal:
        read_manifest(copy)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def replacement(pattern: Data, content: str) -> Data:
    return {"type": "Replace", "pattern": pattern, "content": content}


DOUBLING = {"type": "Sequence", "normalizers": [replacement({"String": "a"}, "aa")] * 40}
TOKENIZERS: dict[str, tuple[Callable[[Data], object], str]] = {
    "id beyond the table": (lambda data: data["model"]["vocab"].update(cat=99999), "token id 99999 is not in the word"),
    "regex that backtracks": (
        lambda data: data.update(normalizer=replacement({"Regex": "(a+)+$"}, "x")),
        "retry-limit-in-match",
    ),
    "added token on which the regex backtracks": (
        lambda data: data.update(
            normalizer=replacement({"Regex": "(a+)+$"}, "x"),
            added_tokens=[
                *data["added_tokens"],
                {**data["added_tokens"][0], "content": "a" * 40 + "!", "id": 6, "normalized": True, "special": False},
            ],
        ),
        "retry-limit-in-match",
    ),
    "text that doubles": (lambda data: data.update(normalizer=DOUBLING), "makes texts grow"),
    "no token": (
        lambda data: data.update(post_processor=None, normalizer=replacement({"Regex": "."}, "")),
        "a text has no tokens",
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_predict_refuses_hostile_tokenizer_in_one_line(name: str, hostile: Callable[..., Path]) -> None:
    change, message = TOKENIZERS[name]
    bundle = hostile("tokenizer.json", edited(change))
    with pytest.raises(BerxitError, match=message) as refusal:
        EarlyExitRunner.load(bundle, backend="onnxruntime").predict("the cat " + "a" * 40 + "!")
    assert "\n" not in str(refusal.value)
    assert "tokenizer.json" in str(refusal.value)


AFTER_FAILURE = """
import sys
from berxit.runtime.errors import BerxitError
from berxit.runtime.runner import EarlyExitRunner

bad, good = (EarlyExitRunner.load(folder, backend="openvino", threads=1) for folder in sys.argv[1:])
before = good.predict("the cat").scores
for _ in range(3):
    try:
        bad.predict("cat " * 60)
    except BerxitError as error:
        print(str(error))
    assert bad.predict("the cat").scores == before
del bad
assert good.predict("the cat").scores == before
good.predict("cat " * 20)
"""


def test_runner_stays_usable_after_its_backend_failed(bundle: Path, hostile: Callable[..., Path]) -> None:
    """With one thread, OpenVINO would neither report the failure nor survive the unloading of the model."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed here: pip install -e '.[openvino]'")
    longer = hostile("manifest.json", edited(lambda data: data["model"].update(max_length=1000)))
    command = [sys.executable, "-c", AFTER_FAILURE, str(longer), str(bundle)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 3
    assert all("failed at the embeddings segment" in line for line in lines)


def test_on_failure_returns_the_last_exit(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The texts that have not exited before the failing layer get the prediction of the layer above it."""
    runner = EarlyExitRunner.load(bundle, backend="onnxruntime", on_failure="last_exit")
    texts = ["the cat sat on the mat", "a dog"]
    full_depth = runner.policy.at_depth(runner.backend.layers)
    at_two = runner.answer(texts, runner.policy.at_depth(2))
    works = runner.backend.layer

    def fails_at_three(layer: int, state: Any) -> Any:
        if layer == 3:
            raise RuntimeError("the device is gone")
        return works(layer, state)

    runner.backend.layer = fails_at_three  # type: ignore[method-assign]
    found = runner.answer(texts, full_depth)
    assert [(p.exit_layer, p.stopped_by, p.scores) for p in found] == [(2, "failure", p.scores) for p in at_two]
    assert "the device is gone" in caplog.text
    runner.on_failure = "raise"
    with pytest.raises(BerxitError, match="the device is gone"):
        runner.answer(texts, full_depth)
    runner.backend.layer = works  # type: ignore[method-assign]
    assert runner.answer(texts, full_depth)[0].exit_layer == 3
