"""install.py: the build of torch and the optional packages that it passes to pip."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    install.install_coremltools(Path("venv"), newest=True)
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
        install.install_tensorrt_rtx(Path("venv"), newest=True)
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


def test_install_checks_the_hash_of_every_package(
    pip_calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "install_torch", lambda folder: None)
    monkeypatch.setattr(install, "installed", lambda folder, package: True)
    monkeypatch.setattr(install.platform, "machine", lambda: "x86_64")
    files = set()
    for kind in ("demo", "dev"):
        monkeypatch.setattr(sys, "argv", ["install.py", str(Path(sys.prefix)), kind])
        install.main()
    for call in pip_calls:
        if call != ("--no-deps", "--no-build-isolation", "-e", "."):
            assert call[:3] == ("--no-deps", "--require-hashes", "-r")
            files.add(Path(call[3]).name)
    assert files == {path.name for path in install.LOCKED.glob("*.txt")} - {"lowest.txt"}


@pytest.mark.parametrize("file", ["quickstart", "dev", "coreml"])
def test_locked_versions_satisfy_pyproject(file: str) -> None:
    extras = {"quickstart": {"export", "report"}, "dev": {"export", "report", "dev"}, "coreml": {"coreml"}}[file]
    locked = [
        Requirement(line.removesuffix("\\"))
        for line in (install.LOCKED / f"{file}.txt").read_text(encoding="utf-8").splitlines()
        if line[:1].isalnum()
    ]
    locked.append(Requirement(f"torch=={install.TORCH}"))
    for needed in _needed(extras):
        versions = [
            next(iter(each.specifier)).version
            for each in locked
            if canonicalize_name(each.name) == canonicalize_name(needed.name)
            and (each.marker is None or each.marker.evaluate())
        ]
        assert len(versions) == 1, f"{needed}: run make lock"
        assert needed.specifier.contains(versions[0]), f"{needed}, locked {versions[0]}: run make lock"


def _needed(extras: set[str]) -> list[Requirement]:
    """The direct dependencies of berxit with these extras, on this machine."""
    found = []
    for text in metadata.requires("berxit") or ():
        requirement = Requirement(text)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras}
        )
        if not wanted:
            continue
        found += _needed(set(requirement.extras)) if requirement.name == "berxit" else [requirement]
    return found


def test_lock_knows_the_version_of_torch() -> None:
    with (install.LOCKED / "uv.toml").open(encoding="utf-8") as file:
        assert f'version = "{install.TORCH}"' in file.read()


def test_has_gpu_is_false_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    assert not install.has_gpu()


def test_reachable_is_false_for_a_missing_index() -> None:
    assert not install.reachable("http://127.0.0.1:9")
