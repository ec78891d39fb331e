"""The runtime on aarch64, with the CPU of a Raspberry Pi, under user-mode emulation.

    python benchmarks/aarch64.py BUNDLE... [--board raspberry-pi-5] --output aarch64

Runs aarch64_checks.py on every bundle for ONNX Runtime, with Python and libraries of Debian and the aarch64 wheels of
the runtime's dependencies, and compares its predictions with those of this machine. build/aarch64 stores the downloads
(about 140 MB, half a minute). They need apt-get, dpkg-deb and Debian's archive key, but no root and no installation.

The emulator executes aarch64 instructions with the speed of another machine: latencies mean nothing and are not
reported. For details, see benchmarks/README.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aarch64_checks
import click

from berxit.runtime.console import debug_option, run
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.results import write_results

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / "build" / "aarch64"
EMULATOR = "qemu-aarch64-static"
RELEASE = "bookworm"
KEY = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
WHEELS = ("numpy==2.3.5", "tokenizers==0.23.3", "onnxruntime==1.32.0", "click==8.5.1")
TAGS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
LIMIT_S = 300
"""Longest time of the checks of one bundle."""


@dataclass(frozen=True)
class Board:
    cpu: str
    """The emulator's name of the CPU."""
    part: str
    """Of /proc/cpuinfo."""
    variant: str
    features: str


BOARDS = {
    "raspberry-pi-4": Board("cortex-a72", "0xd08", "0x0", "fp asimd evtstrm crc32 cpuid"),
    "raspberry-pi-5": Board(
        "cortex-a76", "0xd0b", "0x4",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}  # fmt: skip


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--board", default="raspberry-pi-5", show_default=True, type=click.Choice(list(BOARDS)))
@click.option("--output", default=Path("aarch64"), show_default=True, type=click.Path(path_type=Path))
@debug_option
def command(bundles: tuple[Path, ...], board: str, output: Path) -> None:
    """Check bundles for ONNX Runtime on an emulated aarch64 CPU."""
    prepare()
    found = {str(bundle): emulated(bundle, board) for bundle in bundles}
    text = "\n".join(f"{bundle}: {report['summary']}" for bundle, report in found.items())
    click.echo(text)
    write_results(output, "aarch64", {"board": board, "emulator": version(), "bundles": found}, text)


def emulated(bundle: Path, board: str) -> dict[str, Any]:
    """Results of the checks on the emulated board, and the difference from this machine. Raises BerxitError if a check
    fails there, or if the two do not predict the same."""
    started = time.monotonic()
    there = json.loads(run_python(board, str(PROJECT / "benchmarks" / "aarch64_checks.py"), str(bundle.resolve())))
    seconds = time.monotonic() - started
    here = aarch64_checks.check(bundle)
    if there["machine"] != "aarch64":
        raise BerxitError(f"the emulator runs {there['machine']}, not aarch64")
    differ = [
        i for i, (one, two) in enumerate(zip(here["predictions"], there["predictions"], strict=True)) if one != two
    ]
    if differ and there["precision"] == "fp32":
        raise BerxitError(f"{bundle}: predictions of inputs {differ} differ on aarch64: report this with the bundle")
    count = len(here["predictions"])
    golden = max(there["golden_differences"])
    summary = (
        f"{there['precision']}, golden outputs within {golden:.2g} (allowed: {there['allowed']:.2g}),"
        f" {count - len(differ)} of {count} predictions and exit layers as on this machine"
    )
    return {"summary": summary, **there, "predictions": count, "different": differ, "wall_s": round(seconds, 1)}


def run_python(board: str, *arguments: str) -> str:
    """Standard output of Python on the emulated board. Raises BerxitError if it fails."""
    chosen, root = BOARDS[board], FOLDER / "root"
    # The emulator reads files from its root first. onnxruntime 1.28 and later crash at import with this machine's
    # /proc/cpuinfo, see docs/runtime.md.
    core = {
        "BogoMIPS": "108.00", "Features": chosen.features, "CPU implementer": "0x41", "CPU architecture": "8",
        "CPU variant": chosen.variant, "CPU part": chosen.part, "CPU revision": "1",
    }  # fmt: skip
    lines = [f"processor\t: {i}\n" + "".join(f"{key}\t: {text}\n" for key, text in core.items()) for i in range(4)]
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = (
        str(emulator()),
        "-cpu",
        chosen.cpu,
        "-L",
        str(root),
        str(root / "usr" / "bin" / "python3.11"),
        *arguments,
    )
    environment = {"PYTHONPATH": f"{FOLDER / 'site-packages'}:{PROJECT}", "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BerxitError(f"the checks on the emulated {board} took more than {LIMIT_S} s") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BerxitError(f"the checks on the emulated {board} failed with status {done.returncode}: {last}")
    return done.stdout


def prepare() -> None:
    """Downloads what is missing in FOLDER. Raises BerxitError if it cannot."""
    wanted = json.dumps([RELEASE, PACKAGES, WHEELS])
    stamp = FOLDER / "ready.json"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InputError(f"the emulated machine is made from Debian packages: {tool} is not installed here")
    shutil.rmtree(FOLDER, ignore_errors=True)
    try:
        _unpack_packages(FOLDER / "root", "arm64", PACKAGES)
        if shutil.which(EMULATOR) is None:
            own = subprocess.run(("dpkg", "--print-architecture"), capture_output=True, text=True, check=True)
            _unpack_packages(FOLDER / "emulator", own.stdout.strip(), ("qemu-user-static",))
        _unpack_wheels(FOLDER / "site-packages")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise BerxitError(f"cannot prepare {FOLDER}: {error.cmd[0]} failed: {last}") from error
    stamp.write_text(wanted, encoding="utf-8")


def emulator() -> Path:
    return Path(shutil.which(EMULATOR) or FOLDER / "emulator" / "usr" / "bin" / EMULATOR)


def version() -> str:
    return subprocess.run((emulator(), "--version"), capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _unpack_packages(root: Path, architecture: str, packages: tuple[str, ...]) -> None:
    """Downloads packages of Debian with their dependencies, and unpacks them. apt checks their signatures."""
    apt = FOLDER / f"apt-{architecture}"
    for folder in ("lists/partial", "archives/partial", "etc/apt.conf.d", "etc/preferences.d"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "etc" / "sources.list").write_text(f"deb [signed-by={KEY}] http://deb.debian.org/debian {RELEASE} main\n")
    options = {
        "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "", "Debug::NoLocking": "true", "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status", "Dir::Cache::archives": apt / "archives", "Dir::Etc": apt / "etc",
        "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "",
    }  # fmt: skip
    command = ("apt-get", "-q", "-y", *(part for name, value in options.items() for part in ("-o", f"{name}={value}")))
    _call(*command, "--error-on=any", "update")
    _call(*command, "--download-only", "install", *packages)
    for archive in sorted((apt / "archives").glob("*.deb")):
        _call("dpkg-deb", "-x", str(archive), str(root))
    shutil.rmtree(apt)


def _unpack_wheels(folder: Path) -> None:
    wheels = FOLDER / "wheels"
    platforms = [part for tag in TAGS for part in ("--platform", tag)]
    how = ("--no-deps", "--only-binary=:all:", "--python-version", "3.11", *platforms, "--dest", str(wheels))
    _call(sys.executable, "-m", "pip", "download", "--quiet", *how, *WHEELS)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    shutil.rmtree(wheels)


def _call(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


if __name__ == "__main__":
    run(command)
