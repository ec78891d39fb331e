"""The C runner, built with CMake."""

from __future__ import annotations

import fcntl
import shutil
import struct
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from berxit.runtime.tokenization import Text

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ROOT / "runners" / "c"
BUILD = ROOT / "build" / "c"
MISSING: list[str] = []
"""Why the runner cannot be built here; empty if it can."""


def jdk() -> Path | None:
    """Folder of a JDK with the headers of JNI; None if there is none."""
    compiler = shutil.which("javac")
    folder = None if compiler is None else Path(compiler).resolve().parent.parent
    return folder if folder and (folder / "include" / "jni.h").exists() else None


BUILDS = {
    "quick": ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0"],
    "release": [],
    "sanitized": ["-DBERXIT_SANITIZE=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"],
}
"""Options of each build. ``quick`` compiles in half the time: without optimization, and all sources as one file.
``sanitized`` has the address and undefined-behaviour sanitizers."""


@cache
def built(build: str) -> Path:
    """The folder of one of ``BUILDS``, up to date. It has the JNI library if there is a JDK. The folder remains, so
    that only changed sources are compiled again. Skips the test without CMake, a C++ compiler, make, or the headers of
    ONNX Runtime."""
    if not MISSING:
        MISSING.extend(tool for tool in ("cmake", "c++", "make") if shutil.which(tool) is None)
    if MISSING:
        skip()
    folder, java = BUILD / build, jdk() if build != "sanitized" else None
    folder.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:  # the tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        headers = BUILD / "onnxruntime"
        if not (headers / "onnxruntime_c_api.h").exists():
            script = RUNNER / "get_onnxruntime_headers.sh"
            got = subprocess.run([str(script), str(headers)], capture_output=True, text=True, check=False)
            if got.returncode:
                MISSING.append(f"onnxruntime_c_api.h ({(got.stderr.splitlines() or ['no download'])[-1][:100]})")
                skip()
        if not (folder / "Makefile").exists():
            options = ["-DBERXIT_TESTS=ON", f"-DONNXRUNTIME_INCLUDE={headers}", *BUILDS[build]]
            options += ["-DBERXIT_JAVA=ON", f"-DJNI_HEADER={java / 'include'}"] if java else []
            run("cmake", "-S", RUNNER, "-B", folder, *options)
        targets = ("berxit-vectors", "berxit-run", *["berxit_java"] * bool(java)) if build == "quick" else ("all",)
        run("cmake", "--build", folder, "--parallel", "2", "--target", *targets)
    return folder


def built_for(test: pytest.FixtureRequest) -> Path:
    """The folder of the release build for a slow test, and of the quick build for any other."""
    return built("release" if test.node.get_closest_marker("slow") else "quick")


def skip() -> NoReturn:
    pytest.skip(f"the C runner cannot be built here: {MISSING[0]} is missing")


def library() -> Path:
    """The shared library of ONNX Runtime in the Python package."""
    import onnxruntime

    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.*"))
    if not found:
        pytest.skip("the package onnxruntime contains no libonnxruntime")
    return found[0]


def run(*command: str | Path, cases: Sequence[Text] | None = None) -> str:
    """Standard output of a command, which reads ``cases``. Fails the test with the end of its output if it fails."""
    done = finished(*command, cases=cases)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def finished(*command: str | Path, cases: Sequence[Text] | None = None) -> subprocess.CompletedProcess[str]:
    """The finished command with its output as text."""
    stdin = b"".join(map(case, cases or ()))
    done = subprocess.run([str(part) for part in command], input=stdin, capture_output=True, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def case(text: Text) -> bytes:
    """A text or pair as berxit-vectors reads it."""
    parts = [part.encode() for part in (text if isinstance(text, tuple) else (text,))]
    return struct.pack("<I", len(parts)) + b"".join(struct.pack("<I", len(part)) + part for part in parts)
