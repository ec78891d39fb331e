"""Install command of an extra, matching the way that berxit was installed on this machine."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from berxit.devices.catalogue import DEVICES
from berxit.devices.machine import this_machine

CHECKOUT = Path(__file__).resolve().parent.parent
"""Folder that contains pyproject.toml, if this file is part of a checkout."""


def install_command(extra: str = "") -> str:
    """``pip install`` command for berxit with one of its extras, or without extras. It installs from the source that
    berxit was installed from: a checkout, a wheel file, a repository or a package index."""
    extras = f"[{extra}]" if extra else ""
    try:
        recorded = metadata.distribution("berxit").read_text("direct_url.json")  # PEP 610: absent for an index
    except metadata.PackageNotFoundError:  # not installed: imported from a checkout on PYTHONPATH
        return f"{_pip()} install {_folder(CHECKOUT, extras, editable=True)}"
    if recorded is None:
        return f"{_pip()} install 'berxit{extras}'"
    source = json.loads(recorded)
    url = source["url"]
    if "dir_info" in source:
        folder = Path(url2pathname(urlsplit(url).path))
        return f"{_pip()} install {_folder(folder, extras, editable=source['dir_info'].get('editable', False))}"
    if "vcs_info" in source:
        url = f"{source['vcs_info']['vcs']}+{url}@{source['vcs_info']['commit_id']}"
    return f"{_pip()} install 'berxit{extras} @ {url}'"


def tensorrt_command() -> str:
    """Command that installs the Python bindings of TensorRT: apt on a Jetson, because JetPack contains TensorRT; pip on
    other machines."""
    if next(device for device in DEVICES if device.name == "jetson").matches(this_machine()):
        return f"sudo apt install python3-libnvinfer, then {install_command('jetson')}"
    return install_command("tensorrt")


def _folder(folder: Path, extras: str, *, editable: bool) -> str:
    where = "." if folder == Path.cwd() else folder
    return f"{'-e ' if editable else ''}'{where}{extras}'"


def _pip() -> str:
    """``pip`` if the first ``pip`` on PATH belongs to this environment; otherwise ``python -m pip``."""
    found = shutil.which("pip")
    own = found is not None and Path(found).parent.resolve() == Path(sys.executable).parent.resolve()
    return "pip" if own else f"{sys.executable} -m pip"
