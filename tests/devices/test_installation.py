"""Install command for each way of installing berxit."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from berxit.devices import installation
from berxit.devices.installation import CHECKOUT, install_command, tensorrt_command
from berxit.devices.machine import Machine


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


@pytest.mark.parametrize(
    ("board", "command"),
    [
        ("NVIDIA Jetson Orin Nano", "sudo apt install python3-libnvinfer, then pip install 'berxit[jetson]'"),
        ("", "pip install 'berxit[tensorrt]'"),
    ],
)
def test_tensorrt_command_uses_apt_on_jetson(board: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from(monkeypatch, None)
    monkeypatch.setattr(installation, "this_machine", lambda: Machine("Linux", "aarch64", "CPU", 4, 8.0, board, ""))
    assert tensorrt_command() == command
