from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import berxit.runtime.tuning
from berxit.devices import default_threads
from berxit.runtime.backend_options import Options
from berxit.runtime.backends import BACKENDS, BackendInfo, open_backend
from berxit.runtime.bench import command
from berxit.runtime.bundle import DataFile, Manifest, read_manifest, sha256
from berxit.runtime.console import status_of
from berxit.runtime.errors import BerxitError, InputError, NoisyError
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tuning import candidates_of, fastest, thread_counts, tune

pytestmark = pytest.mark.usefixtures("quiet_machine")


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture
def slow_on_two_threads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Makes two threads 8 ms slower per input on every backend. Records the opened backends, in order."""
    opened = []

    def opener(folder: Path, manifest: Manifest, threads: int, *, backend: str, backend_options: Options) -> Any:
        opened.append((backend, threads))
        real = open_backend(folder, manifest, threads, backend=backend, backend_options=backend_options)
        if threads == 2:
            embed = real.embed
            real.embed = lambda batch: (time.sleep(0.008), embed(batch))[1]  # type: ignore[method-assign]
        return real

    monkeypatch.setattr(berxit.runtime.tuning, "open_backend", opener)
    monkeypatch.setattr(berxit.runtime.tuning, "tune", partial(tune, seconds=0))
    monkeypatch.setattr(berxit.runtime.tuning, "thread_counts", lambda: [2, 1])
    return opened


def test_tune_returns_fastest_first(
    bundle: Path, manifest: Manifest, slow_on_two_threads: list[tuple[str, int]]
) -> None:
    tried = tune(bundle, manifest, backend="onnxruntime", seconds=0)
    assert [(each.backend, each.threads) for each in tried] == [("onnxruntime", 1), ("onnxruntime", 2)]
    assert tried[1].median_ms - tried[0].median_ms > 4
    assert str(tried[0]) == "--backend onnxruntime --threads 1"
    there, back = [("onnxruntime", 2), ("onnxruntime", 1)], [("onnxruntime", 1), ("onnxruntime", 2)]
    assert slow_on_two_threads == [*there, *back]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path))
    return tmp_path


def test_fastest_caches_result_per_bundle_and_machine(
    bundle: Path, manifest: Manifest, cache: Path, slow_on_two_threads: list[tuple[str, int]], tmp_path: Path
) -> None:
    found = fastest(bundle, manifest, backend="onnxruntime")
    opened = len(slow_on_two_threads)
    assert fastest(bundle, manifest, backend="onnxruntime") == found
    assert len(slow_on_two_threads) == opened
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "golden.json").write_text((bundle / "golden.json").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    stored = DataFile("golden.json", sha256(copy / "golden.json"))
    fastest(copy, dataclasses.replace(manifest, golden=stored), backend="onnxruntime", threads=1)
    assert len(slow_on_two_threads) == opened + 2
    for file in (cache / "tuned").iterdir():
        file.write_text("{}", encoding="utf-8")
    assert (
        fastest(bundle, manifest, backend="onnxruntime").threads == found.threads
    )  # the cache file is damaged, so it is measured again
    assert len(slow_on_two_threads) == 2 * opened + 2


def test_fastest_warns_once_if_cache_cannot_be_written(
    bundle: Path,
    manifest: Manifest,
    cache: Path,
    slow_on_two_threads: list[tuple[str, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (cache / "tuned").touch()  # a file in place of the folder
    for _ in range(3):
        assert fastest(bundle, manifest, backend="onnxruntime").threads == 1
    assert len(slow_on_two_threads) == 4  # this process measures only once
    (message,) = [record.getMessage() for record in caplog.records if "cannot write" in record.getMessage()]
    assert "BERXIT_CACHE" in message
    assert "backend='onnxruntime', backend_options={}, threads=1" in message


def test_fastest_logs_and_shows_progress(
    bundle: Path,
    manifest: Manifest,
    cache: Path,
    slow_on_two_threads: list[tuple[str, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps: list[int] = []

    @contextmanager
    def progress(length: int) -> Iterator[Any]:
        steps.append(-length)
        yield SimpleNamespace(update=steps.append)

    EarlyExitRunner.load(bundle, tune=True, backend="onnxruntime", progress=progress)
    assert steps == [-4, 1, 1, 1, 1]
    (record,) = caplog.records
    assert "measuring 2 combinations of backend and threads for" in record.getMessage()
    assert "once, 2 s or more" in record.getMessage()
    caplog.clear()
    EarlyExitRunner.load(bundle, tune=True, backend="onnxruntime")  # cached, so that no warning is needed
    assert caplog.records == []


def test_tune_omits_backends_of_another_precision_unless_named(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(berxit.runtime.tuning, "thread_counts", lambda: [1, 2])
    monkeypatch.setattr(BackendInfo, "installed", True)
    for target, infos in BACKENDS.items():
        of_target = dataclasses.replace(manifest, target=target)
        candidates = [chosen for chosen, _ in candidates_of(bundle, of_target, None, None, None)]
        assert {chosen.info.name for chosen in candidates} == {info.name for info in infos}
        assert not any(chosen.atol or chosen.changes_process for chosen in candidates)
    labels = {chosen.label for chosen, _ in candidates_of(bundle, manifest, None, None, 1)}
    assert labels == {"onnxruntime", "openvino"}
    candidates = candidates_of(bundle, manifest, "openvino", {"bf16": True}, None)
    assert [(chosen.label, count) for chosen, count in candidates] == [("openvino (bf16)", 1), ("openvino (bf16)", 2)]


def test_tune_measures_every_combination_of_options(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BackendInfo, "installed", True)
    labels = {
        target: [
            chosen.label
            for chosen, _ in candidates_of(bundle, dataclasses.replace(manifest, target=target), name, None, 1)
        ]
        for target, name in (("tensorrt", "tensorrt"), ("coreml", None))
    }
    assert labels["tensorrt"] == [
        "tensorrt",
        "tensorrt (zero-copy)",
        "tensorrt (run-ahead)",
        "tensorrt (run-ahead, zero-copy)",
        "tensorrt (cuda-graphs)",
        "tensorrt (cuda-graphs, zero-copy)",
        "tensorrt (cuda-graphs, run-ahead)",
        "tensorrt (cuda-graphs, run-ahead, zero-copy)",
    ]
    of_units = [f"coreml ({units})" for units in ("units=ne", "units=gpu", "units=cpu")]
    with_cpu = [label.replace("(", "(embeddings-on-cpu, ") for label in of_units]
    assert sorted(labels["coreml"]) == sorted(["coreml", "coreml (embeddings-on-cpu)", *of_units, *with_cpu])


def test_fastest_ignores_cache_of_other_candidates(
    bundle: Path,
    manifest: Manifest,
    cache: Path,
    slow_on_two_threads: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fastest(bundle, manifest, backend="onnxruntime")
    opened = len(slow_on_two_threads)
    monkeypatch.setattr(berxit.runtime.tuning, "thread_counts", lambda: [1])
    fastest(bundle, manifest, backend="onnxruntime")
    assert len(slow_on_two_threads) == opened + 2


def test_fastest_measures_again_if_the_cached_result_is_no_candidate(
    bundle: Path, cache: Path, slow_on_two_threads: list[tuple[str, int]]
) -> None:
    """An edited cache must not override the caller's choice."""
    manifest = read_manifest(bundle)
    chosen = fastest(bundle, manifest, backend="onnxruntime", threads=1)
    (file,) = (cache / "tuned").iterdir()
    file.write_text(file.read_text(encoding="utf-8").replace('"threads": 1', '"threads": 64'), encoding="utf-8")
    assert fastest(bundle, manifest, backend="onnxruntime", threads=1).threads == chosen.threads == 1


def test_load_with_tune_uses_fastest(bundle: Path, cache: Path, slow_on_two_threads: list[tuple[str, int]]) -> None:
    runner = EarlyExitRunner.load(bundle, tune=True, backend="onnxruntime")
    assert (runner.backend.name, runner.backend.threads) == ("onnxruntime", 1)
    assert EarlyExitRunner.load(bundle, tune=True, backend="onnxruntime", threads=2).backend.threads == 2


def test_tune_rejects_backend_that_differs_from_checkpoint(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(berxit.runtime.tuning, "differences", lambda *_: [0.0, float("nan"), 0.0])
    with pytest.raises(
        BerxitError, match="no backend here can run it: with onnxruntime an exit differs from the checkpoint by nan"
    ):
        tune(bundle, manifest, backend="onnxruntime", threads=1, seconds=0)


def test_tune_rejects_an_unknown_backend(bundle: Path, manifest: Manifest) -> None:
    with pytest.raises(InputError, match="no backend 'abacus'"):
        tune(bundle, manifest, backend="abacus")


def test_thread_counts_end_with_default() -> None:
    counts = thread_counts()
    assert counts == sorted(set(counts))
    assert counts[-1] == default_threads()
    assert counts[0] == 1


def test_bench_reports_tuning_results(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--queries", "1", "--seconds", "0", "--thresholds", "1", "--quiet", "--output", str(tmp_path / "out")]
    assert status_of(command, [str(bundle), "--tune", "--backend", "onnxruntime", "--threads", "1", *short]) == 0
    out = capsys.readouterr().out
    assert "tuned: fastest with --backend onnxruntime --threads 1" in out
    assert "| tuning: backend" in out


def test_tune_raises_on_busy_machine(
    bundle: Path, manifest: Manifest, cache: Path, busy_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NoisyError, match=r"noisy measurement: the machine is busy: no backend is chosen"):
        tune(bundle, manifest, backend="onnxruntime", threads=1, seconds=0)
    assert tune(bundle, manifest, backend="onnxruntime", threads=1, seconds=0, accept_noise=True)
    assert status_of(command, [str(bundle), "--tune", "--threads", "1", "--quiet"]) == 1
    assert "--accept-noise" in capsys.readouterr().err


def test_load_with_tune_on_busy_machine_caches_nothing(
    bundle: Path, cache: Path, busy_machine: None, caplog: pytest.LogCaptureFixture
) -> None:
    runner = EarlyExitRunner.load(bundle, tune=True, backend="onnxruntime", threads=1)
    assert runner.backend.threads == 1
    assert "loaded without tuning: " in caplog.text
    assert not list(cache.rglob("*.json"))
