"""Install commands that fit this machine and the way that berxit was installed on it."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from berxit.devices.machine import Machine, is_jetson, this_machine, with_cuda

CHECKOUT = Path(__file__).resolve().parent.parent
"""Folder that contains pyproject.toml, if this file is part of a checkout."""
TENSORRT_EXTRAS = ("jetson", "jetson7", "tensorrt-cu12", "tensorrt-cu13")
"""Extras of pyproject.toml for TensorRT. ``tensorrt`` in an install advice stands for the one that fits the machine."""
TORCH_EXTRAS = ("train", "export", "study", "demo")
"""Extras with torch. Its packages for CUDA 13 replace those of the extra ``jetson``."""
GPU_EXTRAS = (*TENSORRT_EXTRAS, "tensorrt", "tensorrt-rtx", "onnxruntime-gpu")
COREMLTOOLS = {("Linux", "x86_64"), ("Darwin", "arm64"), ("Darwin", "x86_64")}
"""Systems and architectures for which coremltools has packages."""
JETPACK_PYTHON = {6: (3, 10), 7: (3, 12)}
"""Major version of JetPack -> the Python version of its TensorRT package."""


def install_command(extra: str = "") -> str:
    """Command that installs berxit with one of its extras, or without extras, on this machine.

    ``tensorrt`` stands for the extra that fits the machine's driver. On a Jetson, JetPack contains TensorRT, so the
    command starts with the step that makes its Python package visible, if that is necessary. The command installs from
    the source that berxit was installed from: a checkout, a wheel file, a repository or a package index.
    """
    machine = with_cuda(this_machine())
    if reason := not_available(extra, machine):
        return reason
    command = _pip_install(fitting_extra(extra, machine))
    if extra != "tensorrt" or not is_jetson(machine.board):
        return command
    if machine.jetpack and machine.jetpack < 6:
        return f"upgrade to JetPack 6, whose Python is new enough (docs/tensorrt.md), then {command}"
    return ", then ".join([*_jetpack_steps(machine.jetpack), command])


def not_available(extra: str, machine: Machine) -> str | None:
    """The reason why an extra cannot be installed on a machine; None if it can."""
    platform = f"{machine.system} {machine.architecture}"
    if extra == "coreml" and (machine.system, machine.architecture) not in COREMLTOOLS:
        return f"coremltools has no package for {platform}: use a Mac or x86-64 Linux"
    if extra in GPU_EXTRAS and machine.system == "Darwin":
        return f"CUDA does not exist for {platform}: use a machine with an NVIDIA GPU"
    if extra == "tensorrt-rtx" and is_jetson(machine.board):
        return "TensorRT for RTX does not run on a Jetson: use a desktop RTX GPU"
    if extra in TORCH_EXTRAS and is_jetson(machine.board) and machine.jetpack < 7:
        return "use another machine: torch brings packages for CUDA 13, which JetPack 6 cannot use"
    if extra == "onnxruntime-gpu" and machine.architecture == "aarch64":
        return f"no package index has onnxruntime-gpu for {platform}: install NVIDIA's wheel for this JetPack"
    return None


def fitting_extra(extra: str, machine: Machine) -> str:
    """Name of the extra in pyproject.toml: for ``tensorrt`` the one that fits ``machine``, otherwise ``extra``.

    A cuda-python for CUDA 12 works with every driver for CUDA 12 or 13; one for CUDA 13 needs a driver for CUDA 13.
    """
    if extra != "tensorrt":
        return extra
    if is_jetson(machine.board):
        return "jetson7" if machine.supports_cuda_13 else "jetson"
    return "tensorrt-cu13" if machine.supports_cuda_13 else "tensorrt-cu12"


def _jetpack_steps(jetpack: int) -> list[str]:
    """The steps before ``import tensorrt`` finds JetPack's package. Empty if it is found."""
    if find_spec("tensorrt") is not None:
        return []
    python = JETPACK_PYTHON.get(jetpack, sys.version_info[:2])
    if sys.version_info[:2] != python or Path(sys.base_prefix) != Path("/usr"):
        name = "/usr/bin/python{}.{}".format(*python)
        return [f"create the environment with JetPack's Python: {name} -m venv --system-site-packages .venv"]
    if _isolated():
        return [f"set include-system-site-packages = true in {Path(sys.prefix) / 'pyvenv.cfg'}"]
    return ["sudo apt install python3-libnvinfer"]


def _isolated() -> bool:
    """True in a virtual environment that does not see the packages of the system."""
    try:
        lines = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any("".join(line.split()).lower() == "include-system-site-packages=false" for line in lines)


def _pip_install(extra: str) -> str:
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


def _folder(folder: Path, extras: str, *, editable: bool) -> str:
    where = "." if folder == Path.cwd() else folder
    return f"{'-e ' if editable else ''}'{where}{extras}'"


def _pip() -> str:
    """``pip`` if the first ``pip`` on PATH belongs to this environment; otherwise ``python -m pip``."""
    found = shutil.which("pip")
    own = found is not None and Path(found).parent.resolve() == Path(sys.executable).parent.resolve()
    return "pip" if own else f"{sys.executable} -m pip"
