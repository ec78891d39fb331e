"""Install command for each way of installing berxit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from berxit.devices import TENSORRT_EXTRAS, Machine, fitting_extra, installation
from berxit.devices.installation import CHECKOUT, install_command


class Distribution:
    def __init__(self, direct_url: object) -> None:
        self.direct_url = direct_url

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.direct_url is None else json.dumps(self.direct_url)


def installed_from(monkeypatch: pytest.MonkeyPatch, direct_url: object) -> None:
    monkeypatch.setattr(installation.metadata, "distribution", lambda name: Distribution(direct_url))


@pytest.fixture(autouse=True)
def own_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.shutil, "which", lambda name: str(Path(sys.executable).parent / name))


@pytest.mark.parametrize(
    ("direct_url", "command"),
    [
        (
            {"url": "file:///home/me/my%20berxit", "dir_info": {"editable": True}},
            "pip install -e '/home/me/my berxit[report]'",
        ),
        ({"url": "file:///home/me/berxit", "dir_info": {}}, "pip install '/home/me/berxit[report]'"),
        (
            {"url": "file:///tmp/berxit-0.1.0-py3-none-any.whl", "archive_info": {"hash": "sha256=0"}},
            "pip install 'berxit[report] @ file:///tmp/berxit-0.1.0-py3-none-any.whl'",
        ),
        (
            {"url": "https://host/berxit.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'berxit[report] @ git+https://host/berxit.git@abc'",
        ),
        (None, "pip install 'berxit[report]'"),
    ],
    ids=["editable checkout", "checkout", "wheel file", "repository", "index"],
)
def test_install_command_matches_installation_source(
    direct_url: object, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_from(monkeypatch, direct_url)
    assert install_command("report") == command


def test_install_command_uses_dot_inside_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from(monkeypatch, {"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.chdir(tmp_path)
    assert install_command("report") == "pip install -e '.[report]'"
    assert install_command() == "pip install -e '.'"


def test_install_command_names_checkout_without_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installation.metadata, "distribution", absent)
    monkeypatch.chdir(tmp_path)
    assert (CHECKOUT / "pyproject.toml").is_file()
    assert install_command("report") == f"pip install -e '{CHECKOUT}[report]'"


@pytest.mark.parametrize("other", ["/usr/bin/pip", None])
def test_install_command_uses_python_m_pip_for_foreign_pip(other: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from(monkeypatch, None)
    monkeypatch.setattr(installation.shutil, "which", lambda name: other)
    assert install_command("report") == f"{sys.executable} -m pip install 'berxit[report]'"


JETSON = Machine("Linux", "aarch64", "CPU", 6, 8.0, "NVIDIA Jetson Orin Nano", "", jetpack=6, cuda="12.6")
DESKTOP = Machine("Linux", "x86_64", "CPU", 8, 32.0, "", "NVIDIA GeForce RTX 4070", cuda="12.8")


@pytest.mark.parametrize(
    ("machine", "extra"),
    [
        (JETSON, "jetson"),
        (replace(JETSON, cuda="12.2"), "jetson"),
        (replace(JETSON, jetpack=0, cuda=""), "jetson"),
        (replace(JETSON, jetpack=7, cuda="13.2"), "jetson7"),
        (DESKTOP, "tensorrt-cu12"),
        (replace(DESKTOP, cuda="13.0"), "tensorrt-cu13"),
        (replace(DESKTOP, cuda="13.4"), "tensorrt-cu13"),
        (replace(DESKTOP, cuda="", driver="580.95.05"), "tensorrt-cu13"),
        (replace(DESKTOP, cuda="", driver="570.195.03"), "tensorrt-cu12"),
        (replace(DESKTOP, gpu="", cuda=""), "tensorrt-cu12"),
    ],
)
def test_fitting_extra_follows_driver(machine: Machine, extra: str) -> None:
    assert fitting_extra("tensorrt", machine) == extra
    assert extra in TENSORRT_EXTRAS
    assert fitting_extra("report", machine) == "report"


def advice(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, extra: str = "tensorrt", *, tensorrt: bool = False
) -> str:
    """The command on a machine, with JetPack's Python 3.10 and with or without a visible tensorrt module."""
    installed_from(monkeypatch, {"url": "file:///home/me/berxit", "dir_info": {"editable": True}})
    monkeypatch.chdir("/")
    monkeypatch.setattr(installation, "this_machine", lambda: machine)
    monkeypatch.setattr(installation, "with_cuda", lambda found: found)
    monkeypatch.setattr(installation, "find_spec", lambda name: object() if tensorrt else None)
    monkeypatch.setattr(installation.sys, "version_info", (3, 10, 12))
    monkeypatch.setattr(installation.sys, "base_prefix", "/usr")
    return install_command(extra)


def virtual_environment(monkeypatch: pytest.MonkeyPatch, folder: Path, *, system: bool) -> None:
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = {str(system).lower()}\n")
    monkeypatch.setattr(installation.sys, "prefix", str(folder))


PIP = "pip install -e '/home/me/berxit[jetson]'"


def test_install_command_on_jetson_starts_with_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    virtual_environment(monkeypatch, tmp_path, system=True)
    assert advice(monkeypatch, JETSON) == f"sudo apt install python3-libnvinfer, then {PIP}"
    monkeypatch.setattr(installation.sys, "prefix", "/usr")  # no virtual environment
    assert advice(monkeypatch, JETSON) == f"sudo apt install python3-libnvinfer, then {PIP}"


def test_install_command_on_jetson_with_tensorrt_is_pip_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert advice(monkeypatch, JETSON, tensorrt=True) == PIP


def test_install_command_on_jetson_opens_isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    virtual_environment(monkeypatch, tmp_path, system=False)
    step = f"set include-system-site-packages = true in {tmp_path / 'pyvenv.cfg'}"
    assert advice(monkeypatch, JETSON) == f"{step}, then {PIP}"


@pytest.mark.parametrize(("jetpack", "python"), [(6, "python3.10"), (7, "python3.12")])
def test_install_command_on_jetson_names_python_of_jetpack(
    jetpack: int, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice(monkeypatch, JETSON)
    monkeypatch.setattr(installation.sys, "version_info", (3, 11, 9))
    monkeypatch.setattr(installation, "this_machine", lambda: replace(JETSON, jetpack=jetpack))
    assert f"/usr/bin/{python} -m venv --system-site-packages" in install_command("tensorrt")


def test_install_command_on_jetpack5_advises_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(JETSON, jetpack=5, cuda="11.4")
    assert advice(monkeypatch, old).startswith("upgrade to JetPack 6")


def test_install_command_off_jetson_is_pip_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert advice(monkeypatch, DESKTOP) == "pip install -e '/home/me/berxit[tensorrt-cu12]'"
    assert advice(monkeypatch, JETSON, "report") == "pip install -e '/home/me/berxit[report]'"


@pytest.mark.parametrize("extra", ["train", "export", "study", "demo", "tensorrt-rtx", "coreml"])
def test_install_command_on_jetpack6_names_no_extra_that_breaks_it(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip install" not in advice(monkeypatch, JETSON, extra)


def test_install_command_names_no_index_package_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip install" not in advice(monkeypatch, JETSON, "onnxruntime-gpu")
    assert "[onnxruntime-gpu]" in advice(monkeypatch, DESKTOP, "onnxruntime-gpu")
