"""The runner for JavaScript, built with its npm packages."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

RUNNER = Path(__file__).resolve().parents[2] / "runners" / "js"
NODE = 20
"""The oldest major version of Node that the package supports."""


def built() -> Path:
    """The folder of the package, built. Skips the test without Node or the npm packages."""
    node = shutil.which("node")
    if node is None or node_version(node) < NODE:
        pytest.skip(f"no Node.js {NODE} or later here")
    if not (RUNNER / "node_modules" / "onnxruntime-node").exists():
        pytest.skip("the npm packages are not installed: run npm ci in runners/js")
    (RUNNER / "dist").mkdir(exist_ok=True)
    with (RUNNER / "dist" / ".lock").open("w") as lock:  # the tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = max(file.stat().st_mtime for file in (RUNNER / "src").rglob("*.ts"))
        stamp = RUNNER / "dist" / ".built"
        if not stamp.exists() or stamp.stat().st_mtime < newest:
            run("node_modules/.bin/tsc")
            stamp.touch()
    return RUNNER


def node_version(node: str) -> int:
    found = re.match(r"v(\d+)", subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout)
    return int(found[1]) if found else 0


def run(*command: str, cwd: Path = RUNNER, **environment: str) -> str:
    """Standard output of a command. Fails the test with the end of its output if the command fails."""
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def predictions(bundle: Path, texts: list[Any], folder: Path, backend: str = "node") -> tuple[list[float], list[Any]]:
    """Largest difference of the golden inputs at each exit, and one record per text, from tests/predict.mjs."""
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    output = run("node", "tests/predict.mjs", str(bundle), str(folder / "texts.json"), backend)
    first, *records = map(json.loads, output.splitlines())
    return first["differences"], records
