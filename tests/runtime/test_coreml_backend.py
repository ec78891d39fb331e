"""CoreML's back end, with a stand-in for coremltools' MLModel that executes the saved package in numpy: its answers
must be right, and it refuses what CoreML would."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import devices
from runtime.backends import coreml as backend_module
from runtime.backends import open_backend
from runtime.backends.coreml import CoreMLBackend, Tensors
from runtime.bundle import Manifest, read_manifest
from runtime.errors import BerxitError, InputError
from runtime.golden import differences, read_golden
from runtime.policies import certainties, exit_layers
from runtime.runner import EarlyExitRunner
from runtime.tokenization import TokenBatch

ct = pytest.importorskip("coremltools", reason="coremltools is not installed here: pip install 'berxit[coreml]'")

MAC = devices.Machine("Darwin", "arm64", "Apple M2", 8, 16.0, "", "")


class NumpyModel:
    """What a Mac's MLModel does with a package, in numpy."""

    loaded: ClassVar[list[tuple[str, str | None, Any]]] = []
    calls: ClassVar[list[tuple[str | None, dict[str, tuple[int, ...]]]]] = []
    packages: ClassVar[dict[str, Any]] = {}

    def __init__(self, path: str, compute_units: Any, function_name: str | None = None) -> None:
        from exporters.mil_executor import open_package

        if path not in self.packages:
            self.packages[path] = open_package(Path(path))
        functions = self.packages[path]
        if function_name is None and len(functions) > 1:
            raise RuntimeError("a multifunction package needs a function name")
        self.name, self.function = function_name, functions[function_name or "main"]
        self.busy = threading.Lock()
        self.loaded.append((path, function_name, compute_units))

    def predict(self, feeds: Tensors) -> Tensors:
        if not self.busy.acquire(blocking=False):
            raise RuntimeError("two predictions at once on one model")
        try:
            self.calls.append((self.name, {name: array.shape for name, array in feeds.items()}))
            return self.function(feeds)
        finally:
            self.busy.release()


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from exporters.export import export
    from exporters.options import ExportOptions

    folder = tmp_path_factory.mktemp("coreml")
    export(checkpoint, "coreml", folder / "any", options=ExportOptions("fp32"))
    export(checkpoint, "coreml", folder / "fixed", options=ExportOptions(lengths=(8, 16), layout="ane"))
    export(checkpoint, "coreml", folder / "ios16", options=ExportOptions(target_version="ios16"))
    return {name: folder / name for name in ("any", "fixed", "ios16")}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> type[NumpyModel]:
    """This machine, taken for a Mac."""
    monkeypatch.setattr(devices, "this_machine", lambda: MAC)
    monkeypatch.setattr(backend_module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(ct.models, "MLModel", NumpyModel)
    NumpyModel.loaded.clear()
    NumpyModel.calls.clear()
    return NumpyModel


@pytest.mark.parametrize("name", ["any", "fixed", "ios16"])
def test_a_mac_answers_as_the_evaluation_said(
    name: str, bundles: dict[str, Path], mac: type[NumpyModel], checkpoint: Path, data_folder: Path
) -> None:
    from train.checkpoint import load_checkpoint
    from train.evaluation import predict
    from train.tasks import task_of

    model, tokenizer = load_checkpoint(checkpoint)
    examples = task_of(model.config).read(data_folder, "dev")
    stored = predict(model, tokenizer, examples)
    runner = EarlyExitRunner.load(bundles[name])
    assert runner.device is not None
    assert runner.device.name == "mac"
    layers = exit_layers(runner.policy, certainties(runner.policy, stored.logits, stored.lte))
    answers = stored.answers()[np.arange(len(examples)), layers - 1]
    found = runner.predict_batch(examples.texts)
    assert [answer.exit_layer for answer in found] == layers.tolist()
    assert [model.config.labels.index(str(answer.label)) for answer in found] == answers.tolist()
    assert 1 < layers.mean() < model.layers  # or the comparison would say little


@pytest.mark.parametrize("name", ["any", "fixed", "ios16"])
def test_golden_inputs_come_out_as_they_went_in(name: str, bundles: dict[str, Path], mac: type[NumpyModel]) -> None:
    manifest = read_manifest(bundles[name])
    backend = open_backend(bundles[name], manifest)
    golden = read_golden(bundles[name], manifest)
    assert max(differences(backend, golden, manifest.model.pad_token_id)) <= manifest.parity.atol


def test_functions_of_one_package_are_loaded_by_name(bundles: dict[str, Path], mac: type[NumpyModel]) -> None:
    open_backend(bundles["any"], read_manifest(bundles["any"]))
    assert {Path(path).name for path, _, _ in mac.loaded} == {"model.mlpackage"}
    assert [function for _, function, _ in mac.loaded] == ["embeddings", "layer_01", "layer_02", "layer_03"]
    profile = devices.find("mac")
    assert profile is not None
    assert {units.name for _, _, units in mac.loaded} == {profile.compute_units}


def test_packages_of_one_function_are_loaded_without_a_name(bundles: dict[str, Path], mac: type[NumpyModel]) -> None:
    open_backend(bundles["ios16"], read_manifest(bundles["ios16"]))
    assert [Path(path).stem for path, _, _ in mac.loaded] == ["embeddings", "layer_01", "layer_02", "layer_03"]
    assert {function for _, function, _ in mac.loaded} == {None}


def test_every_segment_and_length_is_warm_before_the_first_answer(
    bundles: dict[str, Path], mac: type[NumpyModel]
) -> None:
    open_backend(bundles["fixed"], read_manifest(bundles["fixed"]))
    run = {(name, shapes["attention_bias"][-1]) for name, shapes in mac.calls if "attention_bias" in shapes}
    assert run == {(f"layer_{layer:02d}", length) for layer in (1, 2, 3) for length in (8, 16)}


def test_a_row_is_padded_to_the_next_length(bundles: dict[str, Path], mac: type[NumpyModel]) -> None:
    manifest = read_manifest(bundles["fixed"])
    backend = open_backend(bundles["fixed"], manifest)
    rows = [[2, 6, 3], [2, 6, 7, 8, 9, 10, 11, 3], [2, *[6] * 7, 3]]
    mac.calls.clear()
    state = backend.embed(TokenBatch.pad(rows, [[0] * len(row) for row in rows], manifest.model.pad_token_id))
    assert [shapes["input_ids"] for _, shapes in mac.calls] == [(1, 8), (1, 8), (1, 16)]
    assert [row["hidden"].shape for row in state.rows] == [(1, 32, 1, 8), (1, 32, 1, 8), (1, 32, 1, 16)]


def test_a_row_longer_than_any_length_is_refused(bundles: dict[str, Path], mac: type[NumpyModel]) -> None:
    backend = open_backend(bundles["fixed"], read_manifest(bundles["fixed"]))
    with pytest.raises(InputError, match=r"17 tokens is longer than the bundle takes \(16\)"):
        backend.embed(TokenBatch.pad([[2] * 17], [[0] * 17], 0))
    runner = EarlyExitRunner.load(bundles["fixed"])  # whose tokenizer cuts to the longest of them
    assert runner.predict("the cat sat on the mat " * 8).truncated


def test_keep_drops_the_rows_that_left(bundles: dict[str, Path], mac: type[NumpyModel]) -> None:
    backend = open_backend(bundles["any"], read_manifest(bundles["any"]))
    rows = [[2, 6, 7, 3], [2, 6, 7, 8, 9, 10, 11, 3], [2, 9, 3]]
    state, _, _ = backend.layer(1, backend.embed(TokenBatch.pad(rows, [[0] * len(row) for row in rows], 0)))
    _, all_logits, all_lte = backend.layer(2, state)
    _, logits, lte = backend.layer(2, backend.keep(state, np.array([True, False, True])))
    assert all_lte is not None
    assert lte is not None
    np.testing.assert_array_equal(logits, all_logits[[0, 2]])
    np.testing.assert_array_equal(lte, all_lte[[0, 2]])


def test_several_threads_take_turns_on_a_model(bundles: dict[str, Path], mac: type[NumpyModel]) -> None:
    runner = EarlyExitRunner.load(bundles["any"])
    expected = runner.predict("the cat sat").scores
    found: list[Any] = []

    def work() -> None:
        for _ in range(10):
            try:
                found.append(runner.predict("the cat sat").scores)
            except Exception as error:
                found.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 40


def test_a_package_that_cannot_be_loaded_is_named(
    bundles: dict[str, Path], mac: type[NumpyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error compiling model\nsecond line")

    monkeypatch.setattr(ct.models, "MLModel", fails)
    with pytest.raises(
        BerxitError, match=r"cannot load .*model\.mlpackage, function embeddings: Error compil"
    ) as failure:
        open_backend(bundles["any"], read_manifest(bundles["any"]))
    assert "\n" not in str(failure.value)


def test_elsewhere_than_on_a_mac_one_line_says_what_is_missing(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module.platform, "system", lambda: "Linux")
    manifest: Manifest = read_manifest(bundles["any"])
    with pytest.raises(
        BerxitError, match="needs CoreML, which only Apple's systems have, and this is Linux"
    ) as failure:
        open_backend(bundles["any"], manifest)
    assert "\n" not in str(failure.value)
    monkeypatch.setattr(devices, "this_machine", lambda: dataclasses.replace(MAC, system="Linux"))
    with pytest.raises(InputError, match="exported for 'coreml', device 'cpu' runs onnxruntime"):
        EarlyExitRunner.load(bundles["any"])


def test_the_back_end_knows_its_name() -> None:
    assert CoreMLBackend.name == "coreml"
