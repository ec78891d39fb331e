"""The C runner, built with CMake."""

from __future__ import annotations

import fcntl
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

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


def built(*, sanitized: bool = False) -> Path:
    """The build folder, with the JNI library if there is a JDK. ``sanitized``: built with the address and
    undefined-behaviour sanitizers. Skips the test without CMake, a C++ compiler, or the headers of ONNX Runtime."""
    if not MISSING:
        MISSING.extend(tool for tool in ("cmake", "c++", "make") if shutil.which(tool) is None)
    if MISSING:
        pytest.skip(f"the C runner cannot be built here: {MISSING[0]} is missing")
    folder, java = BUILD / ("sanitized" if sanitized else "release"), jdk()
    folder.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:  # the tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        headers = BUILD / "onnxruntime"
        if not (headers / "onnxruntime_c_api.h").exists():
            script = RUNNER / "get_onnxruntime_headers.sh"
            got = subprocess.run([str(script), str(headers)], capture_output=True, text=True, check=False)
            if got.returncode:
                MISSING.append(f"onnxruntime_c_api.h ({(got.stderr.splitlines() or ['no download'])[-1][:100]})")
                pytest.skip(f"the C runner cannot be built here: {MISSING[0]} is missing")
        if not (folder / "Makefile").exists():
            start = [
                "cmake",
                "-S",
                str(RUNNER),
                "-B",
                str(folder),
                "-DBERXIT_TESTS=ON",
                f"-DONNXRUNTIME_INCLUDE={headers}",
            ]
            start += ["-DBERXIT_SANITIZE=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"] if sanitized else []
            run(*start, *(["-DBERXIT_JAVA=ON", f"-DJNI_HEADER={java / 'include'}"] if java and not sanitized else []))
        run("cmake", "--build", str(folder), "--parallel", "2")
    return folder


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
