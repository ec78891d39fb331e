"""ONNX Runtime on the CPU: shared sessions, lazy loading, memory."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from berxit.runtime.backends import BACKENDS, host, onnxruntime, open_backend
from berxit.runtime.bundle import Manifest, TensorFile, read_manifest, sha256
from berxit.runtime.bundle_files import BundleFile
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.golden import read_golden
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tokenization import TokenBatch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.mark.parametrize("content", [b"", b"no model at all"])
def test_open_names_segment_that_cannot_be_loaded(bundle: Path, tmp_path: Path, content: bytes) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    file = copy / "segments" / "layer_02.onnx"
    file.write_bytes(content)
    data = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    data["segments"][2]["sha256"] = sha256(file)
    (copy / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BerxitError, match=r"cannot load .*layer_02\.onnx: .*Export again") as failure:
        EarlyExitRunner.load(copy)
    assert "\n" not in str(failure.value)


def test_open_names_constant_of_wrong_size(bundle: Path, manifest: Manifest, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "weight.bin").write_bytes(b"\0" * 8)
    constants = {"token_weights": TensorFile("weight.bin", sha256(copy / "weight.bin"), "float32", (3,))}
    segments = (
        *manifest.segments[:1],
        dataclasses.replace(manifest.segments[1], constants=constants),
        *manifest.segments[2:],
    )
    with pytest.raises(BerxitError, match=r"weight\.bin: 2 values, expected 3"):
        open_backend(copy, dataclasses.replace(manifest, segments=segments))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files for which a session is created, in order. No session exists when the test starts."""
    files: list[str] = []

    def counted(file: BundleFile, *arguments: object) -> object:
        files.append(file.path.stem)
        return real(file, *arguments)

    gc.collect()
    real = onnxruntime.open_session
    monkeypatch.setattr(onnxruntime, "open_session", counted)
    monkeypatch.setattr(host, "_opened", type(host._opened)())
    return files


def test_layers_with_same_file_share_session(bundle: Path, manifest: Manifest, opened: list[str]) -> None:
    again = dataclasses.replace(manifest.segments[1], layer=2)
    shared = dataclasses.replace(manifest, segments=(*manifest.segments[:2], again, manifest.segments[3]))
    backend = open_backend(bundle, shared, 1)
    assert opened == ["embeddings", "layer_01", "layer_03"]
    state, first, _ = backend.layer(1, backend.embed(read_golden(bundle, manifest).batch(0)))
    _, second, _ = backend.layer(2, state)
    assert first.shape == second.shape
    assert (first != second).any()


def test_lazy_open_of_shared_file_opens_all_its_layers(bundle: Path, manifest: Manifest, opened: list[str]) -> None:
    again = dataclasses.replace(manifest.segments[1], layer=2)
    shared = dataclasses.replace(manifest, segments=(*manifest.segments[:2], again, manifest.segments[3]))
    lazy = open_backend(bundle, shared, 1, lazy=True)
    lazy.layer(1, lazy.embed(read_golden(bundle, manifest).batch(0)))
    assert opened == ["embeddings", "layer_01"]
    assert lazy.opening_seconds(2) == 0.0
    assert lazy.opening_seconds(3) > 0.0


def test_runners_of_same_bundle_share_sessions(bundle: Path, manifest: Manifest, opened: list[str]) -> None:
    backends = [open_backend(bundle, manifest, 1) for _ in range(3)]
    assert opened == ["embeddings", "layer_01", "layer_02", "layer_03"]
    backends.append(open_backend(bundle, manifest, 2))
    assert len(opened) == 8  # another thread count needs other sessions
    backends.clear()
    gc.collect()
    open_backend(bundle, manifest, 1)
    assert len(opened) == 12  # the sessions were closed with the last runner that used them


def test_sessions_are_shared_by_content(bundle: Path, manifest: Manifest, tmp_path: Path, opened: list[str]) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    before = open_backend(copy, manifest, 1)
    shutil.copyfile(copy / "segments" / "layer_03.onnx", copy / "segments" / "layer_02.onnx")
    third = manifest.segments[3]
    changed = (*manifest.segments[:2], dataclasses.replace(manifest.segments[2], sha256=third.sha256), third)
    after = open_backend(copy, dataclasses.replace(manifest, segments=changed), 1)
    assert opened[4:] == []
    state, _, _ = before.layer(1, before.embed(read_golden(bundle, manifest).batch(0)))
    np.testing.assert_array_equal(after.layer(2, state)[1], before.layer(3, state)[1])


def test_lazy_opens_layer_at_first_use(bundle: Path, manifest: Manifest, opened: list[str]) -> None:
    lazy = EarlyExitRunner.load(bundle, threads=1, lazy=True)
    assert opened == ["embeddings"]
    text = "the cat sat on the mat"
    shallow = lazy.answer([text], lazy.policy.at_depth(1))
    assert opened == ["embeddings", "layer_01"]
    deep = lazy.answer([text], lazy.policy.at_depth(3))
    assert opened == ["embeddings", "layer_01", "layer_02", "layer_03"]
    lazy.answer([text], lazy.policy.at_depth(3))
    assert len(opened) == 4
    eager = EarlyExitRunner.load(bundle, threads=1)
    assert [a.scores for a in shallow] == [a.scores for a in eager.answer([text], eager.policy.at_depth(1))]
    assert [a.scores for a in deep] == [a.scores for a in eager.answer([text], eager.policy.at_depth(3))]


def test_lazy_opens_layer_once_from_several_threads(bundle: Path, manifest: Manifest, opened: list[str]) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1, lazy=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: runner.answer(["a dog"], runner.policy.at_depth(3)), range(8)))
    assert sorted(opened) == ["embeddings", "layer_01", "layer_02", "layer_03"]


def test_open_backend_rejects_lazy_if_the_backend_cannot(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "onnxruntime", (dataclasses.replace(BACKENDS["onnxruntime"][0], lazy=False),))
    with pytest.raises(InputError, match="backend 'onnxruntime' opens all layers at once: omit lazy"):
        open_backend(bundle, manifest, lazy=True)


GROWTH = """
import sys
from pathlib import Path
from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import read_manifest
from berxit.runtime.tokenization import TokenBatch
from berxit.runtime.tuning import full_depth

def resident():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))

def rows(count, length):
    return TokenBatch.pad([[2] * length] * count, [[0] * length] * count, 0)

backend = open_backend(Path(sys.argv[1]), read_manifest(sys.argv[1]), 1)
full_depth(backend, rows(1, 32))
before = resident()
for length in range(2, 33):
    full_depth(backend, rows(1000, length))
varied = resident() - before
full_depth(backend, rows(1, 32))
after = resident() - before
full_depth(backend, rows(1000, 32))
print(varied, after, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_memory_is_bounded_over_lengths_and_freed_after_large_batch(bundle: Path) -> None:
    """Runs in a separate process, because all sessions of a process share the memory arena."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(bundle)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    varied, after, longest = map(float, done.stdout.split())
    assert longest > 16  # MiB, large enough to be measured
    assert varied < 3 * longest
    assert after < longest / 2


def rows_of(manifest: Manifest, lengths: Sequence[int]) -> TokenBatch:
    rows = [[2, *(6 + (place + row) % 20 for place in range(length - 2)), 3] for row, length in enumerate(lengths)]
    return TokenBatch.pad(rows, [[0] * len(row) for row in rows], manifest.model.pad_token_id)


def every_exit(backend: Any, state: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    found = []
    for layer in backend.exits:
        state, logits, lte = backend.layer(layer, state)
        found.append((logits, lte))
    return found


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_weights_are_freed_with_last_runner(bundle: Path, manifest: Manifest, name: str) -> None:
    """The weights are freed without a garbage collection, because tuning opens one candidate after another."""
    if name == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed here: pip install -e '.[openvino]'")
    gc.collect()
    gc.disable()
    try:
        backend: Any = open_backend(bundle, manifest, 5, backend=name)
        every_exit(backend, backend.embed(rows_of(manifest, [5, 7])))
        opened = weakref.ref(backend._files[1].open())
        assert opened() is not None
        del backend
        assert opened() is None
    finally:
        gc.enable()


HALF_READ = (
    GROWTH.partition("backend = ")[0]
    + """
from berxit.runtime.runner import EarlyExitRunner

runner = EarlyExitRunner.load(sys.argv[1], threads=1)
state = runner.backend.embed(rows(1, 32))
full_depth(runner.backend, rows(1, 32))
before = resident()
stream = runner.stream("the cat sat on the mat")
next(stream)
full_depth(runner.backend, rows(1000, 32))
grown = resident() - before
stream.close()
for _ in range(3):
    full_depth(runner.backend, rows(1, 32))
print(grown, resident() - before)
"""
)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_large_batch_during_open_stream_is_freed(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HALF_READ, str(bundle)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    grown, after = map(float, done.stdout.split())
    assert grown > 16  # MiB, large enough to be measured
    assert after < grown / 2


TABLE = """
import sys
from pathlib import Path
import numpy as np
from berxit.runtime.backends.onnxruntime import _constant
from berxit.runtime.bundle import TensorFile, sha256

def resident():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))

before = resident()
table = _constant(Path(sys.argv[1]), TensorFile("table.bin", sys.argv[2], "float32", (1 << 16, 256)))
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_embedding_table_is_not_resident_before_lookup(tmp_path: Path) -> None:
    np.zeros((1 << 16, 256), np.float32).tofile(tmp_path / "table.bin")
    done = subprocess.run(
        [sys.executable, "-c", TABLE, str(tmp_path), sha256(tmp_path / "table.bin")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 8  # MiB; the embedding table has 64 MiB


def test_keep_removes_rows_and_unneeded_padding(bundle: Path, manifest: Manifest) -> None:
    backend = open_backend(bundle, manifest, 1)
    batch = rows_of(manifest, [4, 8, 3])
    (_, (expected, expected_lte), *_) = every_exit(backend, backend.embed(batch))
    state, _, _ = backend.layer(1, backend.embed(batch))
    kept = backend.keep(state, np.array([True, False, True]))
    hidden = kept.buffers.array(manifest.segments[1].outputs[0], kept.side)
    assert hidden.shape == (2, 4, 32)
    assert kept.lengths.tolist() == [4, 3]

    _, logits, lte = backend.layer(2, kept)
    assert lte is not None
    np.testing.assert_allclose(logits, expected[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(lte, expected_lte[[0, 2]], atol=1e-5)


def test_keep_of_all_rows_changes_nothing(bundle: Path, manifest: Manifest) -> None:
    backend = open_backend(bundle, manifest, 1)
    expected = every_exit(backend, backend.embed(rows_of(manifest, [5, 7])))
    kept = backend.keep(backend.embed(rows_of(manifest, [5, 7])), np.array([True, True]))
    for (logits, lte), (again, lte_again) in zip(expected, every_exit(backend, kept), strict=True):
        np.testing.assert_array_equal(logits, again)
        np.testing.assert_array_equal(lte, lte_again)


def test_outputs_do_not_depend_on_previous_inputs(bundle: Path, manifest: Manifest) -> None:
    """Runs more shapes than the binding cache has room for, in ascending and descending order, in one workspace."""
    backend = open_backend(bundle, manifest, 1)
    cases = [[length] for length in range(3, 16)] + [[rows % 9 + 3] * rows for rows in range(1, 80)]
    cases += [[30] * 64, [4], [30] * 3, [5, 9, 14]]
    first = [every_exit(backend, backend.embed(rows_of(manifest, case))) for case in cases]
    for case, expected in reversed(list(zip(cases, first, strict=True))):
        fresh = every_exit(backend, backend.embed(rows_of(manifest, case)))
        for (logits, lte), (again, lte_again) in zip(expected, fresh, strict=True):
            np.testing.assert_array_equal(logits, again)
            np.testing.assert_array_equal(lte, lte_again)
    assert len(backend._idle) == 1  # type: ignore[attr-defined]


def test_outputs_are_not_overwritten_by_next_input(bundle: Path, manifest: Manifest) -> None:
    backend = open_backend(bundle, manifest, 1)
    _, logits, lte = backend.layer(1, backend.embed(rows_of(manifest, [6])))
    before = logits.copy(), np.array(lte)
    every_exit(backend, backend.embed(rows_of(manifest, [6, 6]).take(np.array([1]))))
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(lte, before[1])


def test_interleaved_calls_do_not_interfere(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    expected = [answer.scores for answer in runner.stream("the cat sat on the mat")]
    stream = runner.stream("the cat sat on the mat")
    found = [next(stream).scores]
    for text in ("a dog", "the dog ran over the mat", "the cat sat on the mat"):
        runner.answer([text], runner.policy.at_depth(3))
    assert [*found, *(answer.scores for answer in stream)] == expected


def test_concurrent_threads_do_not_interfere(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    texts = [" ".join(["the cat"] * (1 + i % 7)) for i in range(40)]
    expected = [runner.answer([text], runner.policy.at_depth(3))[0].scores for text in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: runner.answer([text], runner.policy.at_depth(3))[0].scores, texts))
    assert found == expected


def test_outputs_have_expected_shapes(bundle: Path, manifest: Manifest) -> None:
    backend = open_backend(bundle, manifest, 1)
    batch = read_golden(bundle, manifest).batch(0)
    _, logits, lte = backend.layer(1, backend.embed(batch))
    assert logits.shape == (len(batch), 2)
    assert lte is not None
    assert lte.shape == (len(batch),)
