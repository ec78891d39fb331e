"""OpenVINO backend for bundles of the ONNX Runtime target."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from berxit.runtime.backends import allowed_difference, open_backend
from berxit.runtime.bench_report import report_text
from berxit.runtime.benchmark import bench
from berxit.runtime.bundle import Manifest, read_manifest, sha256
from berxit.runtime.errors import BerxitError
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tokenization import TokenBatch

pytest.importorskip("openvino", reason="OpenVINO is not installed here: pip install -e '.[openvino]'")

from berxit.runtime.backends.openvino import the_core

TEXTS = ["the cat sat on the mat", "a dog", "the big red dog ran under the tree and it was not a cat"]
HAS_BF16 = "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture(scope="module")
def family_bundle(tmp_path_factory: pytest.TempPathFactory, backbone_folders: dict[str, Path]):  # type: ignore[no-untyped-def]
    """Factory: model family -> bundle of an untrained model of the family."""
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions
    from berxit.train.fine_tuning import TrainingOptions, fine_tune
    from berxit.train.tasks import custom_task

    def make(family: str, data: Path, exits: tuple[int, ...] = ()) -> Path:
        folder = tmp_path_factory.mktemp(f"openvino-{family}")
        options = TrainingOptions(str(backbone_folders[family]), max_steps=2, batch_size=4, max_length=32)
        fine_tune(custom_task(data, ("text",), "label"), data, options, folder / "checkpoint")
        export(folder / "checkpoint", "onnxruntime", folder / "bundle", options=ExportOptions(exits=exits))
        return folder / "bundle"

    return make


@pytest.mark.parametrize("family", ["bert", "albert", "mpnet"])
def test_exits_match_checkpoint(family: str, family_bundle, data_folder: Path) -> None:  # type: ignore[no-untyped-def]
    """ALBERT has a shared body and external head weights; MPNet has a relative position bias."""
    bundle = family_bundle(family, data_folder)
    manifest = read_manifest(bundle)
    backend = open_backend(bundle, manifest, 1, backend="openvino")
    golden = read_golden(bundle, manifest)
    assert max(differences(backend, golden, manifest.model.pad_token_id)) < 1e-5
    if family == "albert":
        assert len({id(step.file.open()) for step in backend._layers.values()}) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_embedding_table_is_compiled_into_model(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    """As an external input, the table would be converted for each input, and every runner would need a copy."""
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions

    manifest = export(checkpoint, "onnxruntime", tmp_path / "b", options=ExportOptions(precision=precision))
    backend = open_backend(tmp_path / "b", manifest, 1, backend="openvino")
    compiled = backend._files[0].open()  # type: ignore[attr-defined]
    assert "words" in manifest.segments[0].constants
    assert "words" not in {name for port in compiled.inputs for name in port.get_names()}
    off = max(differences(backend, read_golden(tmp_path / "b", manifest), manifest.model.pad_token_id))
    assert off <= manifest.parity.atol


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_repeated_segment_uses_separate_buffers(family_bundle, data_folder: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    bundle = family_bundle("albert", data_folder, exits=(1, 3))
    manifest = read_manifest(bundle)
    assert [segment.repeat for segment in manifest.segments[1:]] == [1, 2]
    backend = open_backend(bundle, manifest, 1, backend=name)
    assert max(differences(backend, read_golden(bundle, manifest), manifest.model.pad_token_id)) < 1e-5


def test_runners_share_compiled_models_and_support_lazy(bundle: Path, manifest: Manifest) -> None:
    first, second = (open_backend(bundle, manifest, 1, backend="openvino", lazy=True) for _ in range(2))
    batch = read_golden(bundle, manifest).batch(0)
    _, logits, _ = first.layer(1, first.embed(batch))
    layers = [first._layers[i] for i in (1, 2, 3)]  # type: ignore[attr-defined]
    assert [step.file.is_open for step in layers] == [True, False, False]
    np.testing.assert_array_equal(second.layer(1, second.embed(batch))[1], logits)
    assert second._layers[1].file.open() is layers[0].file.open()  # type: ignore[attr-defined]


def test_predictions_match_onnxruntime_with_early_exits(bundle: Path) -> None:
    one, other = (EarlyExitRunner.load(bundle, backend=name, threads=1) for name in ("onnxruntime", "openvino"))
    first = sorted(next(one.stream(text)).certainty for text in TEXTS)
    threshold = (first[-1] + first[-2]) / 2  # one row exits at the first layer, the others later
    expected = one.predict_batch(TEXTS, threshold=threshold)
    found = other.predict_batch(TEXTS, threshold=threshold)
    assert len({answer.exit_layer for answer in expected}) > 1
    for a, b in zip(expected, found, strict=True):
        assert (a.label, a.exit_layer) == (b.label, b.exit_layer)
        assert b.certainty == pytest.approx(a.certainty, abs=1e-5)


def test_outputs_are_not_overwritten_by_next_input(bundle: Path, manifest: Manifest) -> None:
    """The next run of a segment overwrites its output buffers."""
    backend = open_backend(bundle, manifest, 1, backend="openvino")
    state, logits, lte = backend.layer(1, backend.embed(read_golden(bundle, manifest).batch(0)))
    assert lte is not None
    before = logits.copy(), lte.copy()
    del state
    backend.layer(1, backend.embed(TokenBatch.pad([[2, 9, 3]], [[0, 0, 0]], 0)))
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(lte, before[1])
    assert len(backend._idle) == 1  # type: ignore[attr-defined]


def test_interleaved_calls_do_not_interfere(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, backend="openvino", threads=1)
    expected = [answer.scores for answer in runner.stream(TEXTS[0])]
    stream = runner.stream(TEXTS[0])
    found = [next(stream).scores]
    runner.answer(TEXTS, runner.policy.at_depth(3))
    assert [*found, *(answer.scores for answer in stream)] == expected


def test_keep_removes_rows_and_unneeded_padding(bundle: Path, manifest: Manifest) -> None:
    backend = open_backend(bundle, manifest, 1, backend="openvino")
    rows = [[2, 6, 7, 3], [2, 6, 7, 8, 9, 10, 11, 3], [2, 9, 3]]
    batch = TokenBatch.pad(rows, [[0] * len(row) for row in rows], manifest.model.pad_token_id)
    state, _, _ = backend.layer(1, backend.embed(batch))
    _, expected, _ = backend.layer(2, state)
    state, _, _ = backend.layer(1, backend.embed(batch))
    kept = backend.keep(state, np.array([True, False, True]))
    assert tuple(kept.tensors["hidden"].shape) == (2, 4, 32)
    np.testing.assert_allclose(backend.layer(2, kept)[1], expected[[0, 2]], atol=1e-5)


def test_concurrent_threads_share_runner(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, backend="openvino", threads=1)

    def ask(_worker: int) -> list[tuple[str | float, float]]:
        return [(a.label, round(a.certainty, 5)) for _ in range(10) for a in map(runner.predict, TEXTS)]

    alone = ask(0)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [alone] * 4


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16")
def test_bf16_differs_within_its_own_tolerance(bundle: Path, manifest: Manifest) -> None:
    backend = open_backend(bundle, manifest, 1, backend="openvino", backend_options={"bf16": True})
    assert backend.label == "openvino (bf16)"
    largest = max(differences(backend, read_golden(bundle, manifest), manifest.model.pad_token_id))
    assert manifest.parity.atol < largest < allowed_difference(manifest, backend)
    assert allowed_difference(manifest, open_backend(bundle, manifest, 1, backend="openvino")) == manifest.parity.atol


def test_open_rejects_bf16_on_cpu_without_bf16(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldCore:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32"]

    monkeypatch.setattr("berxit.runtime.backends.openvino.the_core", OldCore)
    with pytest.raises(BerxitError, match="this CPU has no bf16: omit the backend option bf16"):
        open_backend(bundle, manifest, 1, backend="openvino", backend_options={"bf16": True})


INTERRUPTED = """
import gc, os, signal, sys
from pathlib import Path
from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import read_manifest

folder, manifest = Path(sys.argv[1]), read_manifest(sys.argv[1])
backends = [open_backend(folder, manifest, threads, backend="openvino") for threads in (1, 2)]
while backends:
    backends.pop(0)
    gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_keyboard_interrupt_works_after_runners_are_deleted(bundle: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(bundle)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted")


@pytest.mark.parametrize("content", [b"", b"no model at all"])
def test_open_names_segment_that_cannot_be_loaded(
    bundle: Path, manifest: Manifest, tmp_path: Path, content: bytes
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    file = copy / "segments" / "layer_02.onnx"
    file.write_bytes(content)
    damaged = dataclasses.replace(manifest.segments[2], sha256=sha256(file))
    manifest = dataclasses.replace(manifest, segments=(*manifest.segments[:2], damaged, *manifest.segments[3:]))
    with pytest.raises(BerxitError, match=r"cannot load .*layer_02\.onnx: .*--backend onnxruntime") as failure:
        open_backend(copy, manifest, 1, backend="openvino")
    assert "\n" not in str(failure.value)


def test_bench_reports_backend(bundle: Path) -> None:
    result = bench(bundle, backend="openvino", threads=1, thresholds=1, queries=1, seconds=0, warmup=1)
    assert result.backend == "openvino"
    assert "openvino" in result.versions
    assert "by openvino:" in report_text(result)
    assert dataclasses.asdict(result)["self_check"] < 1e-4
