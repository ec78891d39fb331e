"""Which torch the set-up asks pip for: gigabytes depend on it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import install


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What pip was asked to install, without asking it."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "pip", lambda folder, *arguments, **_: calls.append(arguments))
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    return calls


def test_without_a_gpu_only_the_cpu_build_will_do(
    asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    monkeypatch.setattr(install, "reachable", lambda url: True)
    install.install_torch(Path("venv"))
    assert asked == [(f"torch=={install.TORCH}+cpu", "--extra-index-url", install.CPU_INDEX)]


def test_an_index_that_cannot_be_reached_is_not_asked(
    asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    monkeypatch.setattr(install, "reachable", lambda url: False)
    install.install_torch(Path("venv"))
    assert asked == [(f"torch=={install.TORCH}+cpu",)]


def test_with_a_gpu_a_cpu_build_that_lies_about_is_not_taken(
    asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "has_gpu", lambda: True)
    install.install_torch(Path("venv"))
    assert asked == [(f"torch==={install.TORCH}",)]


def test_a_cpu_build_that_is_nowhere_is_one_line_and_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path, *arguments: str) -> None:
        raise subprocess.CalledProcessError(1, ["pip", *arguments])

    monkeypatch.setattr(install, "pip", fails)
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    monkeypatch.setattr(install, "reachable", lambda url: False)
    with pytest.raises(SystemExit, match="no CPU build of torch"):
        install.install_torch(Path("venv"))


def test_the_tests_get_coremltools_where_it_exists(
    asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    install.install_coremltools(Path("venv"))
    assert asked == [("-e", ".[coreml]")]
    monkeypatch.setattr(install.platform, "system", lambda: "Windows")
    install.install_coremltools(Path("venv"))
    assert len(asked) == 1


def test_the_tests_get_tensorrt_rtx_where_it_exists(
    asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    for machine, calls in (("x86_64", 1), ("aarch64", 1)):
        monkeypatch.setattr(install.platform, "machine", lambda machine=machine: machine)
        install.install_tensorrt_rtx(Path("venv"))
        assert asked == [("-e", ".[tensorrt-rtx]")] * calls


def test_without_coremltools_the_set_up_goes_on_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(folder: Path, *arguments: str, quiet: bool) -> None:
        raise subprocess.CalledProcessError(1, ["pip", *arguments])

    monkeypatch.setattr(install, "pip", fails)
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    install.install_coremltools(Path("venv"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "-- pip has no coremltools for this machine: the tests of the CoreML target will be skipped"
    ]


def test_no_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    assert not install.has_gpu()


def test_an_index_that_is_not_there_is_not_reachable() -> None:
    assert not install.reachable("http://127.0.0.1:9")
