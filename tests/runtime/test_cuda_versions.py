"""cuda-python in the versions that the extras allow, on drivers that they fit and on drivers that are too old."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from fake_cuda import ROOT, run_with_driver
from test_cuda import SESSION

pytestmark = pytest.mark.slow


def python_with(package: str) -> str:
    """Python of an environment with this package and what ``berxit.runtime`` imports, stored in build/. Skips the test
    if pip cannot install it."""
    folder = (
        ROOT / "build" / "cuda-python" / re.sub(r"\W+", "-", f"{package}-{sys.version_info[0]}.{sys.version_info[1]}")
    )
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        command = (python, "-m", "pip", "install", "--quiet", "numpy", "tokenizers", "click", package)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"pip cannot install {package}: {done.stderr.strip().splitlines()[-1]}")
        ready.touch()
    return str(python)


@pytest.mark.parametrize("package", ["cuda-python==12.6.2.post1", "cuda-python==12.8.0"])
@pytest.mark.parametrize("driver", ["12.2", "12.6", "13.2"])
def test_cuda_python_12_runs_on_drivers_12_and_13(package: str, driver: str) -> None:
    done = run_with_driver(SESSION, python=python_with(package), driver=driver)
    assert (done.stdout, done.stderr) == ("Orin 8.7: 2 launches, 0 alive\n", "")


@pytest.mark.parametrize("package", ["cuda-bindings==13.0.3", "cuda-bindings==13.2.0"])
@pytest.mark.parametrize("driver", ["12.2", "12.6"])
def test_cuda_python_13_names_versions_and_command_on_driver_12(package: str, driver: str) -> None:
    done = run_with_driver(SESSION, python=python_with(package), driver=driver)
    version = ".".join(package.partition("==")[2].split(".")[:2])
    message = f"cuda-python is built for CUDA {version}, and the driver here supports CUDA up to {driver}: "
    assert done.stdout.startswith(message), done
    assert "pip install" in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("package", ["cuda-python==12.6.2.post1", "cuda-bindings==13.2.0"])
def test_missing_driver_is_one_line(package: str, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(tmp_path)}
    command = (python_with(package), "-c", SESSION)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "launches" in done.stdout:
        pytest.skip("this machine has an NVIDIA driver")
    messages = (r"'s cudaGetDeviceCount failed \(Failed to dlopen libcuda.so.1\)", " finds no NVIDIA driver here")
    assert re.fullmatch(f"CUDA({'|'.join(messages)}): run this on the Jetson, .*\n", done.stdout), done
