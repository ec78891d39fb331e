"""install.py: the build of torch and the optional packages that it passes to pip."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import install


@pytest.fixture
def pip_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The arguments of every call of pip, which is not executed."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "pip", lambda folder, *arguments, **_: calls.append(arguments))
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    return calls


def test_install_torch_without_a_gpu_installs_the_cpu_build(
    pip_calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    monkeypatch.setattr(install, "reachable", lambda url: True)
    install.install_torch(Path("venv"))
    assert pip_calls == [(f"torch=={install.TORCH}+cpu", "--extra-index-url", install.CPU_INDEX)]


def test_install_torch_omits_an_index_that_cannot_be_reached(
    pip_calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    monkeypatch.setattr(install, "reachable", lambda url: False)
    install.install_torch(Path("venv"))
    assert pip_calls == [(f"torch=={install.TORCH}+cpu",)]


def test_install_torch_with_a_gpu_ignores_a_local_cpu_build(
    pip_calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "has_gpu", lambda: True)
    install.install_torch(Path("venv"))
    assert pip_calls == [(f"torch==={install.TORCH}",)]


def test_install_torch_without_a_cpu_build_fails_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path, *arguments: str) -> None:
        raise subprocess.CalledProcessError(1, ["pip", *arguments])

    monkeypatch.setattr(install, "pip", fails)
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    monkeypatch.setattr(install, "reachable", lambda url: False)
    with pytest.raises(SystemExit, match="no CPU build of torch"):
        install.install_torch(Path("venv"))


def test_install_coremltools_on_supported_systems(
    pip_calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    install.install_coremltools(Path("venv"))
    assert pip_calls == [("-e", ".[coreml]")]
    monkeypatch.setattr(install.platform, "system", lambda: "Windows")
    install.install_coremltools(Path("venv"))
    assert len(pip_calls) == 1


def test_install_tensorrt_rtx_on_supported_systems(
    pip_calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    for machine, calls in (("x86_64", 1), ("aarch64", 1)):
        monkeypatch.setattr(install.platform, "machine", lambda machine=machine: machine)
        install.install_tensorrt_rtx(Path("venv"))
        assert pip_calls == [("--no-deps", *install.RTX)] * calls


def test_install_coremltools_continues_without_a_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(folder: Path, *arguments: str, quiet: bool) -> None:
        raise subprocess.CalledProcessError(1, ["pip", *arguments])

    monkeypatch.setattr(install, "pip", fails)
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    install.install_coremltools(Path("venv"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "-- pip found no coremltools for this machine: the tests of the CoreML target will be skipped"
    ]


def test_has_gpu_is_false_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    assert not install.has_gpu()


def test_reachable_is_false_for_a_missing_index() -> None:
    assert not install.reachable("http://127.0.0.1:9")
