"""The install command for an extra, right for the way berxit was installed on this machine."""

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
"""The folder with pyproject.toml, where this file is part of a checkout."""


def install_command(extra: str = "") -> str:
    """``pip install`` with berxit and one of its extras: from the checkout, wheel file, repository or index that berxit
    was installed from. Without ``extra``: berxit alone."""
    extras = f"[{extra}]" if extra else ""
    try:
        recorded = metadata.distribution("berxit").read_text("direct_url.json")  # PEP 610: absent for an index
    except metadata.PackageNotFoundError:  # run from a checkout, by PYTHONPATH
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
    """The command that installs TensorRT's bindings here. JetPack contains TensorRT; elsewhere pip installs it."""
    if next(device for device in DEVICES if device.name == "jetson").is_this(this_machine()):
        return f"sudo apt install python3-libnvinfer, then {install_command('jetson')}"
    return install_command("tensorrt")


def _folder(folder: Path, extras: str, *, editable: bool) -> str:
    where = "." if folder == Path.cwd() else folder
    return f"{'-e ' if editable else ''}'{where}{extras}'"


def _pip() -> str:
    """``pip`` where that is this environment's own, else this interpreter's."""
    found = shutil.which("pip")
    own = found is not None and Path(found).parent.resolve() == Path(sys.executable).parent.resolve()
    return "pip" if own else f"{sys.executable} -m pip"
