"""Model folders for Triton: config.pbtxt in Triton's own schema, and model.py on a stand-in of the Python backend."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from berxit.exporters.triton_server.model_folder import TritonOptions, config_text, write_model_folder
from berxit.runtime import EarlyExitRunner, InputError
from berxit.runtime.bundle import Manifest, read_manifest
from berxit.toolkit.serving.wire import prediction_fields

HERE = Path(__file__).parent
TEXTS = ["the cat sat on the mat", "a dog", "stop the music", "turn on the big red light"]


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load(HERE / "triton_standin.py", "triton_python_backend_utils")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return module


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def parsed(text: str) -> Any:
    """config.pbtxt as Triton's ModelConfig."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="no tritonclient with gRPC here")
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig())


def as_json(config: Any) -> str:
    """The configuration as Triton passes it to ``initialize``."""
    from google.protobuf import json_format

    return json_format.MessageToJson(config, preserving_proto_field_name=True)


class Served:
    """The model of a folder, initialized as Triton does."""

    def __init__(self, folder: Path, utils: ModuleType) -> None:
        self.utils = utils
        self.config = parsed((folder / "config.pbtxt").read_text(encoding="utf-8"))
        self.model = load(folder / "1" / "model.py", "model").TritonPythonModel()
        self.model.initialize({"model_config": as_json(self.config), "model_name": folder.name})

    def request(self, *columns: Sequence[str | bytes], **settings: Any) -> Any:
        encoded = [[[text.encode() if isinstance(text, str) else text] for text in column] for column in columns]
        tensors = [
            self.utils.Tensor(spec.name, np.array(column, dtype=np.object_))
            for spec, column in zip(self.config.input, encoded, strict=True)
        ]
        return self.utils.InferenceRequest(tensors, **settings)

    def execute(self, *requests: Any) -> list[Any]:
        """Responses, whose tensors have the dtypes and shapes of the configuration."""
        responses = self.model.execute(list(requests))
        assert len(responses) == len(requests)
        for request, response in zip(requests, responses, strict=True):
            if response.has_error():
                continue
            rows = request.inputs()[0].shape()[0]
            schema = {spec.name: spec for spec in self.config.output}
            assert {tensor.name() for tensor in response.output_tensors()} == set(schema)
            for tensor in response.output_tensors():
                spec = schema[tensor.name()]
                kind = type(spec).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[spec.data_type].name
                assert tensor.as_numpy().dtype == self.utils.DTYPES[kind]
                assert tensor.shape() == [rows, *spec.dims]
        return responses


def outputs(response: Any) -> dict[str, Any]:
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


@pytest.fixture
def served(bundle: Path, tmp_path: Path, utils: ModuleType) -> Iterator[Served]:
    write_model_folder(bundle, tmp_path / "intents", TritonOptions(threads=1))
    served = Served(tmp_path / "intents", utils)
    yield served
    served.model.finalize()


def test_config_is_a_valid_model_configuration(manifest: Manifest) -> None:
    config = parsed(config_text('in"tents', manifest, TritonOptions(max_batch=16, threads=2, threshold=0.9)))
    assert (config.name, config.backend, config.max_batch_size) == ('in"tents', "python", 16)
    assert config.HasField("dynamic_batching")
    assert [(spec.name, list(spec.dims)) for spec in config.input] == [("TEXT", [1])]
    assert {spec.name: list(spec.dims) for spec in config.output} == {
        "LABEL": [1],
        "PROBS": [2],
        "EXIT_LAYER": [1],
        "CERTAINTY": [1],
        "TRUNCATED": [1],
    }
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, type(group).KIND_CPU)
    assert {name: entry.string_value for name, entry in config.parameters.items()} == {
        "threads": "2",
        "threshold": "0.9",
    }


def test_config_of_a_regression_on_pairs_for_a_gpu(manifest: Manifest) -> None:
    model = dataclasses.replace(manifest.model, kind="regression", labels=(), text_columns=("a", "b"))
    config = parsed(config_text("stsb", dataclasses.replace(manifest, model=model, target="tensorrt"), TritonOptions()))
    assert [spec.name for spec in config.input] == ["TEXT", "TEXT_PAIR"]
    assert [spec.name for spec in config.output] == ["VALUE", "EXIT_LAYER", "CERTAINTY", "TRUNCATED"]
    assert config.instance_group[0].kind == type(config.instance_group[0]).KIND_GPU
    assert not config.parameters


def test_model_predicts_what_the_runner_predicts(served: Served, bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    responses = served.execute(served.request(TEXTS[:1]), served.request(TEXTS[1:]), served.request(TEXTS[:2]))
    rows = [TEXTS[:1], TEXTS[1:], TEXTS[:2]]
    for texts, response in zip(rows, map(outputs, responses), strict=True):
        expected = runner.predict_batch(texts)
        assert [label.decode() for label in response["LABEL"].ravel()] == [answer.label for answer in expected]
        assert response["EXIT_LAYER"].ravel().tolist() == [answer.exit_layer for answer in expected]
        probs = [list(answer.scores.values()) for answer in expected]
        assert response["PROBS"] == pytest.approx(np.array(probs), abs=1e-5)


def test_model_returns_spans_as_the_service(tmp_path: Path, utils: ModuleType) -> None:
    tokens = HERE.parents[1] / "runners" / "vectors" / "onnx" / "tokens"
    write_model_folder(tokens, tmp_path / "slots", TritonOptions(threads=1))
    served, runner = Served(tmp_path / "slots", utils), EarlyExitRunner.load(tokens, threads=1)
    texts = ["turn the kitchen lights off", "caf\u00e9", "don't stop!!!", "a dog"]
    (response,) = served.execute(served.request(texts))
    found, expected = outputs(response), runner.predict_batch(texts)
    fields = [prediction_fields(runner.manifest.model, prediction) for prediction in expected]
    assert [label.decode() for label in found["LABEL"].ravel()] == [each["label"] for each in fields]
    assert [json.loads(spans) for spans in found["SPANS"].ravel()] == [each["spans"] for each in fields]
    assert len({len(each["spans"]) for each in fields}) > 1
    served.model.finalize()


def test_model_runs_requests_with_equal_settings_as_one_batch(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    predict_batch = served.model._runner.predict_batch

    def counted(texts: Sequence[str], **settings: Any) -> Any:
        batches.append((list(texts), settings))
        return predict_batch(texts, **settings)

    monkeypatch.setattr(served.model._runner, "predict_batch", counted)
    deep = served.request([TEXTS[1]], parameters={"threshold": "1.0"})
    hurried = served.request([TEXTS[2]], parameters={"deadline_ms": 1e-6, "threshold": 1})
    responses = served.execute(served.request([TEXTS[0]]), deep, served.request([TEXTS[3]]), hurried)
    assert batches == [
        ([TEXTS[0], TEXTS[3]], {"threshold": None, "deadline_ms": None}),
        ([TEXTS[1]], {"threshold": 1.0, "deadline_ms": None}),
        ([TEXTS[2]], {"threshold": 1.0, "deadline_ms": 1e-6}),
    ]
    assert [outputs(responses[place])["EXIT_LAYER"].item() for place in (1, 3)] == [3, 1]


def test_model_fails_only_invalid_requests(served: Served) -> None:
    requests = [
        served.request(["a dog"]),
        served.request([" "]),
        served.request([b"\xff"]),
        served.request(["a dog"], parameters={"threshold": "high"}),
        served.request(["a dog"], parameters={"threshold": 7}),
        served.request(["a dog"], cancelled=True),
        served.request(["a cat"]),
    ]
    responses = served.execute(*requests)
    assert [response.has_error() for response in responses] == [False, True, True, True, True, True, False]
    errors = [response.error() for response in responses[1:6]]
    invalid, cancelled = served.utils.TritonError.INVALID_ARG, served.utils.TritonError.CANCELLED
    assert [error.code() for error in errors] == [invalid] * 4 + [cancelled]
    messages = ["the text is empty", "can't decode", "threshold is 'high'", "threshold 7.0", "cancelled"]
    for error, message in zip(errors, messages, strict=True):
        assert message in error.message()


def test_model_reports_a_failure_of_the_backend(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(batch: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(served.model._runner.backend, "embed", fails)
    responses = served.execute(served.request(["a dog"]), served.request(["a cat"]))
    assert [response.error().code() for response in responses] == [served.utils.TritonError.INTERNAL] * 2
    assert "no memory" in responses[0].error().message()


def test_parameters_of_the_configuration_are_the_defaults(bundle: Path, tmp_path: Path, utils: ModuleType) -> None:
    options = TritonOptions(threads=1, threshold=1.0, backend="onnxruntime", deadline_ms=1e6)
    write_model_folder(bundle, tmp_path / "deep", options)
    served = Served(tmp_path / "deep", utils)
    (default, early) = served.execute(
        served.request(["a dog"]), served.request(["a dog"], parameters={"threshold": 0.0})
    )
    assert (outputs(default)["EXIT_LAYER"].item(), outputs(early)["EXIT_LAYER"].item()) == (3, 1)
    served.model.finalize()


def test_write_model_folder_copies_the_files_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    own = shutil.copytree(bundle, tmp_path / "bundle")
    (own / "notes.txt").write_text("not a part of the bundle", encoding="utf-8")
    write_model_folder(own, tmp_path / "m", TritonOptions())
    copied = tmp_path / "m" / "1" / "bundle"
    expected = {file.relative_to(bundle) for file in bundle.rglob("*") if file.is_file()}
    assert {file.relative_to(copied) for file in copied.rglob("*") if file.is_file()} == expected
    assert read_manifest(copied) == read_manifest(bundle)


def test_write_model_folder_refuses_invalid_arguments(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "m"
    with pytest.raises(InputError, match="threshold 7"):
        write_model_folder(bundle, output, TritonOptions(threshold=7.0))
    with pytest.raises(InputError, match="deadline_ms is 0"):
        write_model_folder(bundle, output, TritonOptions(deadline_ms=0.0))
    own = shutil.copytree(bundle, tmp_path / "bundle")
    data = json.loads((own / "manifest.json").read_text(encoding="utf-8"))
    (own / "manifest.json").write_text(json.dumps({**data, "target": "coreml"}), encoding="utf-8")
    with pytest.raises(InputError, match="a bundle for coreml, which Triton cannot run"):
        write_model_folder(own, output, TritonOptions())
    assert not output.exists()
    write_model_folder(bundle, output, TritonOptions())
    with pytest.raises(InputError, match="exists: choose another --output"):
        write_model_folder(bundle, output, TritonOptions())
    write_model_folder(bundle, output, TritonOptions(), force=True)
