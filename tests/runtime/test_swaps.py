"""Replacement of a bundle while it is loaded or used: each prediction is computed from one bundle only."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from swaps import every_layer, other_bundle

import berxit.runtime.bundle
from berxit.runtime import bundle_files, storage
from berxit.runtime.backends import host, onnxruntime, open_backend
from berxit.runtime.bundle import read_manifest, sha256
from berxit.runtime.bundle_files import BundleFile, BundleFolder
from berxit.runtime.errors import BerxitError
from berxit.runtime.runner import EarlyExitRunner

TEXT = "the cat sat on the mat"
CPU = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def second(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle of another model with the same names, shapes and word embedding table."""
    return other_bundle(bundle, tmp_path_factory.mktemp("second") / "bundle")


@pytest.fixture
def live(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "live"))


@pytest.fixture(autouse=True)
def nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    monkeypatch.setattr(host, "_opened", type(host._opened)())


def scores(runner: EarlyExitRunner) -> np.ndarray:
    """(exits, classes)"""
    return np.array(every_layer(runner, TEXT))


def load(folder: Path, backend: str = "onnxruntime", **options: Any) -> EarlyExitRunner:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed here: pip install -e '.[openvino]'")
    return EarlyExitRunner.load(folder, backend=backend, threads=1, **options)


@cache
def reference(folder: Path, backend: str) -> np.ndarray:
    """Scores of a bundle that is not replaced."""
    return scores(load(folder, backend))


def by_rename(live: Path, second: Path) -> None:
    live.rename(live.with_name("before"))
    shutil.copytree(second, live)


def by_deletion(live: Path, second: Path) -> None:
    shutil.rmtree(live)
    shutil.copytree(second, live)


def by_force(live: Path, second: Path) -> None:
    with storage.write_whole(live, force=True) as folder:
        shutil.copytree(second, folder, dirs_exist_ok=True)


def by_files(live: Path, second: Path) -> None:
    """Replaces a bundle file by file, each atomically, as a hub cache is updated."""
    for file in (file for file in second.rglob("*") if file.is_file()):
        shutil.copy(file, live / "new")
        (live / "new").replace(live / file.relative_to(second))


WAYS = [by_rename, by_deletion, by_force, by_files]


@pytest.mark.parametrize(
    ("backend", "way", "verify"),
    [
        *(("onnxruntime", way, True) for way in WAYS),
        ("onnxruntime", by_deletion, False),
        ("openvino", by_files, False),
    ],
)
def test_lazy_runner_keeps_loaded_bundle_after_swap(
    bundle: Path, second: Path, live: Path, backend: str, way: Callable[[Path, Path], None], verify: bool
) -> None:
    expected, other = reference(bundle, backend), reference(second, backend)
    assert np.abs(expected - other).max(axis=1).min() > 1e-3  # at every layer
    runner = load(live, backend, lazy=True, verify=verify)
    stream = runner.stream(TEXT)
    next(stream)
    way(live, second)
    np.testing.assert_array_equal(scores(runner), expected)
    for fresh in (load(live, backend), load(live, backend, lazy=True), load(live, backend, verify=False)):
        np.testing.assert_array_equal(
            scores(fresh), other
        )  # the process-wide cache contains no entry with a wrong checksum


@pytest.mark.parametrize(
    ("backend", "way", "moment"),
    [
        *((backend, by_force, moment) for backend in CPU for moment in ("manifest", "file", "open")),
        ("onnxruntime", by_rename, "manifest"),
        ("onnxruntime", by_deletion, "open"),
    ],
)
def test_load_during_swap_uses_one_bundle(
    bundle: Path,
    second: Path,
    live: Path,
    backend: str,
    way: Callable[[Path, Path], None],
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The swap occurs after reading the manifest, after the check of the first file, or between check and opening."""
    both = [reference(folder, backend) for folder in (bundle, second)]
    swapped: list[bool] = []

    def then_swap(real: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            found = real(*arguments, **options)
            if not swapped:
                swapped.append(True)
                way(live, second)
            return found

        return call

    if moment == "manifest":
        monkeypatch.setattr(BundleFolder, "manifest", then_swap(BundleFolder.manifest))
    elif moment == "file":
        monkeypatch.setattr(BundleFile, "verify", then_swap(BundleFile.verify))
    else:
        monkeypatch.setattr(
            berxit.runtime.bundle, "_checked_manifest", then_swap(berxit.runtime.bundle._checked_manifest)
        )
    found = scores(load(live, backend))
    assert swapped
    assert any((found == one).all() for one in both)


def test_load_between_two_renames_waits(second: Path, live: Path) -> None:
    live.rename(live.with_name("before"))
    later = threading.Timer(0.1, lambda: shutil.copytree(second, live.with_name("new")).rename(live))
    later.start()
    assert scores(load(live)).tolist() == scores(load(second)).tolist()
    later.join()


def test_load_after_interrupted_swap_completes_it(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / ".live.0123abcd.old")
    shutil.copytree(bundle, tmp_path / ".live.0123abcd.partial")
    assert read_manifest(tmp_path / "live") == read_manifest(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["live"]


def test_load_of_damaged_bundle_fails_immediately(live: Path) -> None:
    (live / "segments" / "layer_02.onnx").write_bytes(b"damaged")
    start = time.monotonic()
    with pytest.raises(BerxitError, match=r"layer_02\.onnx: checksum differs"):
        load(live)
    assert time.monotonic() - start < 0.4


def test_load_fails_if_bundle_keeps_changing(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(berxit.runtime.bundle, "REPLACED_S", 0.2)
    (live / "segments" / "layer_02.onnx").write_bytes(b"damaged")
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            (live / "segments" / "layer_01.onnx").touch()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        with pytest.raises(BerxitError, match=r"layer_02\.onnx: checksum differs"):
            load(live)
    finally:
        over.set()
        changing.join()


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("backend", CPU)
def test_lazy_runner_works_after_chdir(
    bundle: Path, live: Path, backend: str, lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(live.parent)
    runner = load(Path("live"), backend, lazy=lazy)
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(scores(runner), reference(bundle, backend))


@pytest.mark.parametrize("backend", CPU)
def test_load_reads_bytes_if_open_files_have_no_path(
    bundle: Path, second: Path, live: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has no such paths."""
    expected = reference(bundle, backend)
    monkeypatch.setattr(bundle_files, "DESCRIPTORS", Path("/nowhere"))
    runner = load(live, backend, lazy=True)
    by_deletion(live, second)
    np.testing.assert_array_equal(scores(runner), expected)


@pytest.mark.parametrize("verify", [True, False])
def test_file_modified_in_place_raises_one_line_error(second: Path, live: Path, verify: bool) -> None:
    runner = load(live, lazy=True, verify=verify)
    shutil.copyfile(second / "segments" / "layer_02.onnx", live / "segments" / "layer_02.onnx")  # the same inode
    os.utime(live / "segments" / "layer_02.onnx", (1, 1))
    with pytest.raises(BerxitError, match=r"layer_02\.onnx: checksum differs|layer_02\.onnx was modified"):
        scores(runner)


def test_touched_file_still_opens(live: Path) -> None:
    runner = load(live, lazy=True)
    (live / "segments" / "layer_02.onnx").touch()
    assert len(scores(runner)) == 3


@pytest.mark.parametrize("backend", CPU)
def test_unverified_files_are_not_shared_by_checksum(bundle: Path, second: Path, live: Path, backend: str) -> None:
    """With an old manifest and new segments, an unverified bundle runs, but does not change what is shared."""
    expected = scores(load(bundle, backend))
    for file in (second / "segments").iterdir():
        shutil.copy(file, live / "segments" / file.name)
    with pytest.raises(BerxitError, match="checksum differs"):
        load(live, backend)
    unchecked = load(live, backend, verify=False)
    assert (scores(unchecked) != expected).any()
    np.testing.assert_array_equal(scores(load(bundle, backend)), expected)
    checked = load(bundle, backend)  # a runner without verification uses no shared sessions
    assert (scores(load(live, backend, verify=False)) == scores(unchecked)).all()
    np.testing.assert_array_equal(scores(checked), expected)


@pytest.mark.parametrize("backend", CPU)
def test_bundles_with_different_embedding_tables_share_no_embeddings(bundle: Path, live: Path, backend: str) -> None:
    expected = scores(load(bundle, backend))
    keep = load(bundle, backend)
    data = json.loads((live / "manifest.json").read_text(encoding="utf-8"))
    (table,) = data["segments"][0]["constants"].values()
    values = np.fromfile(live / table["file"], np.float32)
    values[::-1].tofile(live / table["file"])
    table["sha256"] = sha256(live / table["file"])
    (live / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    assert (scores(load(live, backend)) != expected).any()
    np.testing.assert_array_equal(scores(keep), expected)


def test_equal_files_share_sessions_across_paths(bundle: Path, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = onnxruntime.open_session

    def counted(file: BundleFile, *arguments: Any) -> Any:
        opened.append(file.path.name)
        return real(file, *arguments)

    monkeypatch.setattr(onnxruntime, "open_session", counted)
    runners = [load(bundle), load(live), load(live.parent / "." / "live")]
    assert len(opened) == 4
    load(live, verify=False)
    assert len(opened) == 8
    del runners


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")
def test_unused_descriptors_are_closed(live: Path) -> None:
    def held() -> int:
        targets = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
        return sum(target.startswith(str(live)) for target in targets)

    eager = load(live)
    assert held() == 0
    del eager
    lazy = load(live, lazy=True, verify=False)
    assert held() == 3  # one per layer that is not opened
    scores(lazy)
    assert held() == 0
    again = load(live, lazy=True)
    assert held() == 3
    del again
    gc.collect()
    assert held() == 0


def test_concurrent_threads_open_layer_once(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = onnxruntime.open_session

    def slow(file: BundleFile, *arguments: Any) -> Any:
        opened.append(file.path.stem)
        time.sleep(0.05)
        return real(file, *arguments)

    monkeypatch.setattr(onnxruntime, "open_session", slow)
    runner = load(live, lazy=True, verify=False)
    threads = [threading.Thread(target=scores, args=(runner,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(opened) == ["embeddings", "layer_01", "layer_02", "layer_03"]


def test_open_backend_by_path_verifies_files(bundle: Path, live: Path) -> None:
    manifest = read_manifest(bundle)
    (live / "segments" / "layer_03.onnx").write_bytes(b"other")
    with pytest.raises(BerxitError, match=r"layer_03\.onnx: checksum differs"):
        open_backend(live, manifest, 1, lazy=True)
    same = dataclasses.replace(manifest.segments[3], sha256=sha256(live / "segments" / "layer_03.onnx"))
    open_backend(live, dataclasses.replace(manifest, segments=(*manifest.segments[:3], same)), 1, lazy=True)
