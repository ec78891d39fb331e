"""CoreML backend, with the real coremltools and a stand-in for its native library, which exists on macOS only.

The stand-in runs the saved package in numpy, and rejects the inputs that CoreML rejects.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from berxit import devices
from berxit.runtime.backends import coreml as backend_module
from berxit.runtime.backends import open_backend
from berxit.runtime.backends.coreml import Tensors
from berxit.runtime.bench_report import report_text
from berxit.runtime.benchmark import bench
from berxit.runtime.bundle import Manifest, read_manifest, sha256
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.policies import certainties, exit_layers
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tokenization import TokenBatch

ct = pytest.importorskip("coremltools", reason="coremltools is not installed here: pip install -e '.[coreml]'")

MAC = devices.Machine("Darwin", "arm64", "Apple M2", 8, 16.0, "", "")


class Proxy:
    """Stand-in for ``_MLModelProxy`` (coremltools 9.0, libcoremlpython): a compiled model, or one of its functions.

    Errors are RuntimeError, as pybind raises them. Inputs and outputs are float32: coremltools converts float16 inputs
    to float32, and CoreML accepts and returns both.
    """

    compiled: ClassVar[list[str]] = []
    loaded: ClassVar[list[tuple[str, str, str]]] = []
    calls: ClassVar[list[tuple[str, dict[str, tuple[int, ...]]]]] = []
    packages: ClassVar[dict[str, Any]] = {}

    @staticmethod
    def compileModel(package: str) -> str:  # noqa: N802
        """Compiles a .mlpackage to a .mlmodelc in a temporary folder, which contains a copy of the package."""
        if not (Path(package) / "Manifest.json").is_file():
            raise RuntimeError(f'Error compiling model: "{package} is not a package.".\nsecond line')
        made = Path(tempfile.mkdtemp(), "model.mlmodelc")
        shutil.copytree(package, made / "source" / Path(package).name)
        Proxy.compiled.append(package)
        return str(made)

    def __init__(self, path: str, units: str, function: str, hints: dict[str, str], asset: Any) -> None:
        from berxit.exporters.coreml.executor import open_package

        assert (hints, asset) == ({}, None)
        try:
            package = str(next((Path(path) / "source").iterdir()))
            Path(package, "Manifest.json").read_bytes()
        except OSError:
            raise RuntimeError(f"Error loading model: {path}: no such file\nsecond line") from None
        content = sha256(Path(package))
        if content not in self.packages:
            self.packages[content] = open_package(Path(package))
        functions = self.packages[content]
        if function and function not in functions:
            raise RuntimeError(f"Error loading model: no function {function}")
        self.name = function
        self.function = functions[function] if function else next(iter(functions.values()))
        self.busy = threading.Lock()
        self.loaded.append((package, function, units))

    def predict(self, feeds: Tensors, state: Any) -> Tensors:
        assert state is None
        if not self.busy.acquire(blocking=False):
            raise RuntimeError("two predictions at once on one model")
        try:
            assert all(array.dtype in (np.float32, np.int32) for array in feeds.values())
            self.calls.append((self.name, {name: array.shape for name, array in feeds.items()}))
            return {name: array.astype(np.float32) for name, array in self.function(feeds).items()}
        finally:
            self.busy.release()


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions

    folder = tmp_path_factory.mktemp("coreml")
    export(checkpoint, "coreml", folder / "any", options=ExportOptions("fp32"))
    export(checkpoint, "coreml", folder / "fixed", options=ExportOptions(lengths=(8, 16), layout="ane"))
    export(checkpoint, "coreml", folder / "ios16", options=ExportOptions(target_version="ios16"))
    variants = ("fixed-shapes", "full-depth", "float16-exits")
    options = ExportOptions(lengths=(8, 16), layout="ane", target_options=variants)
    export(checkpoint, "coreml", folder / "variants", options=options)
    return {name: folder / name for name in ("any", "fixed", "ios16", "variants")}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Proxy]:
    """Makes this machine look like a Mac. Only the native library of coremltools is replaced."""
    from coremltools.models import _compiled_model, utils

    monkeypatch.setattr(devices, "this_machine", lambda: MAC)
    monkeypatch.setattr(backend_module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(backend_module.platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "cache"))
    native = types.ModuleType("coremltools.libcoremlpython")
    native._MLModelProxy = Proxy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, native.__name__, native)
    monkeypatch.setattr(_compiled_model, "_MLModelProxy", Proxy)
    for module in (_compiled_model, utils):
        monkeypatch.setattr(module, "_macos_version", lambda: (15, 1))
    for noted in (Proxy.compiled, Proxy.loaded, Proxy.calls):
        noted.clear()
    return Proxy


@pytest.mark.parametrize("name", ["any", "fixed", "ios16", "variants"])
def test_predictions_match_evaluation(
    name: str, bundles: dict[str, Path], mac: type[Proxy], checkpoint: Path, data_folder: Path
) -> None:
    from berxit.train.checkpoint import load_checkpoint
    from berxit.train.evaluation import predict
    from berxit.train.tasks import task_of

    model, tokenizer = load_checkpoint(checkpoint)
    examples = task_of(model.config).read(data_folder, "dev").head(16)
    stored = predict(model, tokenizer, examples)
    runner = EarlyExitRunner.load(bundles[name])
    assert runner.device is not None
    assert runner.device.name == "mac"
    layers = exit_layers(runner.policy, certainties(runner.policy, stored.logits, stored.lte))
    answers = stored.predicted()[np.arange(len(examples)), layers - 1]
    found = runner.predict_batch(examples.texts)
    assert [answer.exit_layer for answer in found] == layers.tolist()
    assert [model.config.labels.index(str(answer.label)) for answer in found] == answers.tolist()
    assert 1 < layers.mean() < model.layers  # otherwise the comparison would prove little


@pytest.mark.parametrize("name", ["any", "fixed", "ios16", "variants"])
def test_golden_outputs_are_reproduced(name: str, bundles: dict[str, Path], mac: type[Proxy]) -> None:
    manifest = read_manifest(bundles[name])
    backend = open_backend(bundles[name], manifest)
    golden = read_golden(bundles[name], manifest)
    assert max(differences(backend, golden, manifest.model.pad_token_id)) <= manifest.parity.atol


def test_functions_of_package_are_loaded_by_name(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    open_backend(bundles["any"], read_manifest(bundles["any"]))
    assert [Path(path).name for path in mac.compiled] == ["model.mlpackage"]
    assert {Path(path).name for path, _, _ in mac.loaded} == {"model.mlpackage"}
    assert [function for _, function, _ in mac.loaded] == ["embeddings", "layer_01", "layer_02", "layer_03"]
    profile = devices.find("mac")
    assert profile is not None
    assert {units for _, _, units in mac.loaded} == {profile.compute_units}


@pytest.mark.parametrize(("value", "units"), [("ne", "CPU_AND_NE"), ("gpu", "CPU_AND_GPU"), ("cpu", "CPU_ONLY")])
def test_coreml_option_units_selects_the_compute_units(
    value: str, units: str, bundles: dict[str, Path], mac: type[Proxy]
) -> None:
    runner = EarlyExitRunner.load(bundles["any"], backend_options={"units": value})
    assert {used for _, _, used in mac.loaded} == {units}
    assert runner.backend.label == f"coreml (units={value})"


def test_compiled_package_is_cached(
    bundles: dict[str, Path], mac: type[Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(bundles["any"])
    kept = tmp_path / "cache" / "coreml" / "macOS-15.1"
    for _ in range(2):
        open_backend(bundles["any"], manifest)
        assert [path.name for path in kept.iterdir()] == [f"{manifest.segments[0].sha256}.mlmodelc"]
    assert len(mac.compiled) == 1
    monkeypatch.setattr(backend_module.platform, "mac_ver", lambda: ("15.2", ("", "", ""), "arm64"))
    open_backend(bundles["any"], manifest)  # another version of macOS compiles again
    assert len(mac.compiled) == 2


def test_single_function_package_is_loaded_without_name(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    open_backend(bundles["ios16"], read_manifest(bundles["ios16"]))
    assert [Path(path).stem for path in mac.compiled] == ["embeddings", "layer_01", "layer_02", "layer_03"]
    assert [Path(path).stem for path, _, _ in mac.loaded] == ["embeddings", "layer_01", "layer_02", "layer_03"]
    assert {function for _, function, _ in mac.loaded} == {""}


def test_load_warms_up_every_segment_and_length(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    open_backend(bundles["fixed"], read_manifest(bundles["fixed"]))
    run = {(name, shapes["attention_bias"][-1]) for name, shapes in mac.calls if "attention_bias" in shapes}
    assert run == {(f"layer_{layer:02d}", length) for layer in (1, 2, 3) for length in (8, 16)}


def test_rows_are_padded_to_next_length(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    manifest = read_manifest(bundles["fixed"])
    backend = open_backend(bundles["fixed"], manifest)
    rows = [[2, 6, 3], [2, 6, 7, 8, 9, 10, 11, 3], [2, *[6] * 7, 3]]
    mac.calls.clear()
    state = backend.embed(TokenBatch.pad(rows, [[0] * len(row) for row in rows], manifest.model.pad_token_id))
    assert [shapes["input_ids"] for _, shapes in mac.calls] == [(1, 8), (1, 8), (1, 16)]
    assert [row.tensors["hidden"].shape for row in state.rows] == [(1, 32, 1, 8), (1, 32, 1, 8), (1, 32, 1, 16)]


def test_predict_rejects_row_longer_than_all_lengths(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    backend = open_backend(bundles["fixed"], read_manifest(bundles["fixed"]))
    with pytest.raises(InputError, match=r"17 tokens is longer than the bundle takes \(16\)"):
        backend.embed(TokenBatch.pad([[2] * 17], [[0] * 17], 0))
    runner = EarlyExitRunner.load(bundles["fixed"])  # the tokenizer truncates to the longest length
    assert runner.predict("the cat sat on the mat " * 8).truncated


def test_keep_removes_exited_rows(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    backend = open_backend(bundles["any"], read_manifest(bundles["any"]))
    rows = [[2, 6, 7, 3], [2, 6, 7, 8, 9, 10, 11, 3], [2, 9, 3]]
    state, _, _ = backend.layer(1, backend.embed(TokenBatch.pad(rows, [[0] * len(row) for row in rows], 0)))
    _, all_logits, all_lte = backend.layer(2, state)
    _, logits, lte = backend.layer(2, backend.keep(state, np.array([True, False, True])))
    assert all_lte is not None
    assert lte is not None
    np.testing.assert_array_equal(logits, all_logits[[0, 2]])
    np.testing.assert_array_equal(lte, all_lte[[0, 2]])


def test_model_is_locked_between_threads(bundles: dict[str, Path], mac: type[Proxy]) -> None:
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


def test_open_names_package_that_cannot_be_compiled(bundles: dict[str, Path], mac: type[Proxy], tmp_path: Path) -> None:
    manifest = read_manifest(bundles["any"])
    bundle = shutil.copytree(bundles["any"], tmp_path / "bundle")
    package = bundle / manifest.segments[0].file
    (package / "Manifest.json").unlink()
    with pytest.raises(BerxitError, match=r"model\.mlpackage: checksum differs"):
        open_backend(bundle, manifest)
    damaged = [dataclasses.replace(segment, sha256=sha256(package)) for segment in manifest.segments]
    manifest = dataclasses.replace(manifest, segments=tuple(damaged))
    with pytest.raises(
        BerxitError, match=r"CoreML cannot compile .*model\.mlpackage: Error compiling.*ios16"
    ) as failure:
        open_backend(bundle, manifest)
    assert "\n" not in str(failure.value)
    assert not list((tmp_path / "cache").rglob("*.mlmodelc"))


def test_open_names_function_that_cannot_be_loaded(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    manifest = read_manifest(bundles["any"])
    open_backend(bundles["any"], manifest)
    *others, last = manifest.segments
    wrong = dataclasses.replace(manifest, segments=(*others, dataclasses.replace(last, function="layer_09")))
    with pytest.raises(
        BerxitError, match=r"CoreML cannot load .*, function layer_09: Error loading model: no function"
    ):
        open_backend(bundles["any"], wrong)


def test_open_compiles_a_damaged_compiled_package_again(
    bundles: dict[str, Path], mac: type[Proxy], tmp_path: Path
) -> None:
    manifest = read_manifest(bundles["any"])
    open_backend(bundles["any"], manifest)
    kept = next((tmp_path / "cache").rglob("*.mlmodelc"))
    next(kept.rglob("Manifest.json")).unlink()
    open_backend(bundles["any"], manifest)
    assert len(mac.compiled) == 2
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    open_backend(bundles["any"], manifest)
    assert len(mac.compiled) == 2


def test_open_compiles_a_package_at_most_twice(
    bundles: dict[str, Path], mac: type[Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Proxy, *arguments: Any) -> None:
        raise RuntimeError("Error loading model: no room on the device\nsecond line")

    monkeypatch.setattr(Proxy, "__init__", fails)
    with pytest.raises(BerxitError, match=r"CoreML cannot load .*embeddings: Error loading model: no room") as failure:
        open_backend(bundles["any"], read_manifest(bundles["any"]))
    assert "\n" not in str(failure.value)
    assert len(mac.compiled) == 2


@pytest.mark.parametrize("name", ["any", "fixed", "variants"])
def test_tensors_are_passed_on_without_conversion(name: str, bundles: dict[str, Path], mac: type[Proxy]) -> None:
    """coremltools returns float16 outputs as float32 and accepts them so: the arrays themselves are passed on."""
    returned: list[dict[str, Any]] = []
    predict = Proxy.predict

    def watched(self: Proxy, feeds: Tensors, state: Any) -> Tensors:
        if returned and "hidden_in" in feeds:
            before = returned[-1]
            assert feeds["hidden_in"] is before.get("hidden_out", before.get("hidden"))
        returned.append(predict(self, feeds, state))
        return returned[-1]

    backend = open_backend(bundles[name], read_manifest(bundles[name]))
    state = backend.embed(TokenBatch.pad([[2, 6, 7, 3]], [[0] * 4], 0))  # loads the functions of its length
    returned.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Proxy, "predict", watched)
        state = backend.embed(TokenBatch.pad([[2, 6, 7, 3]], [[0] * 4], 0))
        for layer in backend.exits:
            state, logits, lte = backend.layer(layer, state)
            assert lte is not None
            assert logits.dtype == lte.dtype == np.float32
    assert len(returned) == 4


def test_functions_of_a_length_are_loaded_by_its_first_input(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    backend = open_backend(bundles["variants"], read_manifest(bundles["variants"]))
    assert mac.loaded == []
    for length, loaded in ((3, ["s8"]), (8, ["s8"]), (12, ["s8", "s16"])):
        backend.embed(TokenBatch.pad([[2] * length], [[0] * length], 0))
        names = [f"{name}_{suffix}" for suffix in loaded for name in ("embeddings", "layer_01", "layer_02", "layer_03")]
        assert [function for _, function, _ in mac.loaded] == names
    warm = {name for name, _ in mac.calls}
    assert warm == set(names)  # each ran before the first prediction with it


def test_one_graph_is_loaded_by_its_first_input(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    manifest = read_manifest(bundles["variants"])
    one_graph = open_backend(bundles["variants"], manifest).one_graph()
    assert one_graph is not None
    assert mac.loaded == []
    golden = read_golden(bundles["variants"], manifest)
    assert max(differences(one_graph, golden, manifest.model.pad_token_id)) <= manifest.parity.atol
    assert {function for _, function, _ in mac.loaded} <= {"full_s8", "full_s16"}


@pytest.mark.parametrize("kept", [True, False], ids=["beside", "instead"])
def test_compiled_package_of_the_bundle_is_loaded(
    kept: bool, bundles: dict[str, Path], mac: type[Proxy], tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundles["any"], tmp_path / "bundle")
    compiled = Path(Proxy.compileModel(str(bundle / "segments/model.mlpackage")))
    shutil.move(compiled, bundle / "segments/model.mlmodelc")
    entry = {"file": "segments/model.mlmodelc", "sha256": sha256(bundle / "segments/model.mlmodelc")}
    data = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    for segment in data["segments"]:
        segment["compiled"] = entry
    (bundle / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    if not kept:
        shutil.rmtree(bundle / "segments/model.mlpackage")
    mac.compiled.clear()
    EarlyExitRunner.load(bundle).predict("the cat sat")
    assert mac.compiled == []
    assert not (tmp_path / "cache").exists()
    next((bundle / "segments/model.mlmodelc").rglob("weight.bin")).write_bytes(b"damaged")
    with pytest.raises(BerxitError, match=r"model\.mlmodelc: checksum differs"):
        EarlyExitRunner.load(bundle)


def test_export_on_a_mac_writes_the_compiled_package(
    checkpoint: Path, mac: type[Proxy], tmp_path: Path, data_folder: Path
) -> None:
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions

    options = ExportOptions(target_options=("compiled", "full-depth"))
    export(checkpoint, "coreml", tmp_path / "bundle", options=options)
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.full is not None
    compiled = {segment.compiled.file for segment in (*manifest.segments, manifest.full) if segment.compiled}
    assert compiled == {"segments/model.mlmodelc"}
    mac.compiled.clear()
    EarlyExitRunner.load(tmp_path / "bundle").predict("the cat sat")
    assert mac.compiled == []


def test_embeddings_on_cpu_runs_only_the_embeddings_there(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    options = {"embeddings_on_cpu": True, "units": "ne"}
    runner = EarlyExitRunner.load(bundles["any"], backend_options=options)
    units = {function: units for _, function, units in mac.loaded}
    assert units.pop("embeddings") == "CPU_ONLY"
    assert set(units.values()) == {"CPU_AND_NE"}
    assert runner.backend.label == "coreml (embeddings-on-cpu, units=ne)"


def test_finder_metadata_does_not_change_a_bundle(bundles: dict[str, Path], mac: type[Proxy], tmp_path: Path) -> None:
    bundle = shutil.copytree(bundles["any"], tmp_path / "bundle")
    package = bundle / read_manifest(bundle).segments[0].file
    for folder in (bundle, package, package / "Data"):
        for name in (".DS_Store", "._Data"):
            (folder / name).write_bytes(b"Finder")
    EarlyExitRunner.load(bundle).predict("the cat sat")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith(".")]


def test_bench_reports_full_depth_as_one_graph(bundles: dict[str, Path], mac: type[Proxy]) -> None:
    result = bench(bundles["variants"], queries=1, seconds=0, thresholds=2, warmup=1)
    assert result.one_graph is not None
    assert result.one_graph.histogram == (0, 0, result.one_graph.queries)
    assert "one graph (without exits): " in report_text(result)
    assert bench(bundles["any"], queries=1, seconds=0, thresholds=2, warmup=1).one_graph is None


def test_failed_prediction_raises_one_line_error(
    bundles: dict[str, Path], mac: type[Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Proxy, feeds: Tensors, state: Any) -> Tensors:
        raise RuntimeError("Unable to compute the prediction\nsecond line")

    monkeypatch.setattr(Proxy, "predict", fails)
    with pytest.raises(
        BerxitError, match=r"function embeddings on ALL: Unable to compute.*--backend-option units=cpu"
    ) as failure:
        open_backend(bundles["any"], read_manifest(bundles["any"]))
    assert "\n" not in str(failure.value)


def test_open_reports_unwritable_cache(
    bundles: dict[str, Path], mac: type[Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(BerxitError, match="Set BERXIT_CACHE to a folder with room"):
        open_backend(bundles["any"], read_manifest(bundles["any"]))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["segments"][1]["functions"].pop(), "segment of layer 1: it has 1 functions, expected 2"),
        (lambda data: data["segments"][1].pop("functions"), "segment of layer 1: it has 0 functions, expected 2"),
        (
            lambda data: data["segments"][2].update(function="layer_02"),
            "segment of layer 2: it has a function for all lengths and functions for each",
        ),
        (lambda data: data["full"].update(layer=2), "full: its layer is 2, expected 3"),
        (lambda data: data["full"]["inputs"].pop(), "full: it does not read what the embeddings segment reads"),
        (lambda data: data["full"]["outputs"].pop(), "full: it does not write what the segment of layer 3 writes"),
        (lambda data: data["full"].update(functions=["full"]), "full: it has 1 functions, expected 2"),
        (
            lambda data: data["full"]["outputs"][0].update(shape=[1, 5]),
            r"full: 'logits' of role logits has shape \(1, 5\)",
        ),
    ],
)
def test_read_manifest_rejects_inconsistent_functions(
    edit: Callable[[dict[str, Any]], object], message: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundles["variants"], tmp_path / "bundle")
    data = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    edit(data)
    (bundle / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BerxitError, match=message):
        read_manifest(bundle)


def test_manifest_without_options_has_no_new_key(bundles: dict[str, Path]) -> None:
    """Older readers reject keys that they do not know."""
    data = json.loads((bundles["fixed"] / "manifest.json").read_text(encoding="utf-8"))
    assert "full" not in data
    assert not {"functions", "compiled"} & {key for segment in data["segments"] for key in segment}


def test_open_outside_macos_names_missing_requirement(
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
    with pytest.raises(
        InputError, match=r"exported for 'coreml', and device 'cpu' runs onnxruntime\. For mac: run this"
    ):
        EarlyExitRunner.load(bundles["any"])
