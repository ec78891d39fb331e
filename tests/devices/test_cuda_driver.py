"""Version and GPU of the CUDA driver, with a compiled library in its place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from berxit.devices import Machine, machine, with_cuda
from berxit.devices.cuda_driver import JETSON_GPUS

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
static int attribute(int which) {{
    return which == 18 ? {integrated} : which == 75 ? {major} : which == 76 ? {minor} : -1;
}}
static int ready = 0;
int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}
int cuInit(unsigned flags) {{ ready = 1; return {error}; }}
int cuDeviceGet(int *device, int ordinal) {{ *device = ordinal; return ready ? 0 : 3; }}
int cuDeviceGetAttribute(int *value, int which, int device) {{ *value = attribute(which); return ready ? 0 : 3; }}
"""
"""Four functions of cuda.h. Those that need an initialized driver fail without it (CUDA_ERROR_NOT_INITIALIZED)."""
SCRIPT = """
from berxit.devices.cuda_driver import driver_cuda_version, has_jetson_gpu
print(driver_cuda_version(), has_jetson_gpu())
"""


def driver(folder: Path, **values: int) -> str:
    """Output of a process that finds a driver with these values."""
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("a stand-in for the CUDA driver needs Linux and a C compiler")
    numbers = {"version": 12060, "integrated": 1, "major": 8, "minor": 7, "error": 0, **values}
    (folder / "driver.c").write_text(SOURCE.format(**numbers), encoding="ascii")
    library = folder / "libcuda.so.1"
    subprocess.run((compiler, "-shared", "-fPIC", "-o", library, folder / "driver.c"), check=True)
    return printed(folder)


def printed(folder: Path) -> str:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run((sys.executable, "-c", SCRIPT), env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, "(12, 6) True"),
        ({"version": 13020}, "(13, 2) True"),
        ({"version": 13000, "major": 11, "minor": 0}, "(13, 0) True"),
        ({"integrated": 0, "major": 8, "minor": 9}, "(12, 6) False"),
        ({"major": 12, "minor": 1}, "(12, 6) False"),  # integrated, but a DGX Spark
        ({"error": 100}, "(12, 6) False"),  # CUDA_ERROR_NO_DEVICE
    ],
)
def test_driver_version_and_gpu_are_read(values: dict[str, int], found: str, tmp_path: Path) -> None:
    assert driver(tmp_path, **values) == found


def test_damaged_driver_is_no_driver(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("not a library", encoding="ascii")
    assert printed(tmp_path) == "None False"


def test_with_cuda_adds_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Machine("Linux", "aarch64", "", 6, 8.0, "NVIDIA Jetson Orin Nano", "", driver="540.4.0")
    monkeypatch.setattr(machine, "driver_cuda_version", lambda: (12, 6))
    assert with_cuda(here).software == "driver 540.4.0, CUDA 12.6"
    monkeypatch.setattr(machine, "driver_cuda_version", lambda: None)
    assert with_cuda(here) == here


def test_jetson_gpus_exclude_other_integrated_gpus() -> None:
    assert (8, 7) in JETSON_GPUS
    assert (12, 1) not in JETSON_GPUS
