"""Import rules: runtime and devices import no package above them and no training library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "onnx", "matplotlib", "scipy", "sklearn", "datasets", "optimum", "accelerate"}
ABOVE = {"train", "exporters", "toolkit"}
FILES = [path for folder in ("runtime", "devices") for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of all imports in a file, including those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else (node.module or "").partition(".")[0])
    return names


def test_import_of_runtime_loads_no_training_library_or_backend() -> None:
    code = "import sys, runtime, devices, runtime.bench; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"runtime", "devices", "numpy", "tokenizers"} <= loaded
    assert not loaded & (HEAVY | ABOVE | {"onnxruntime"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_runtime_and_devices_import_only_allowed_packages(path: Path) -> None:
    names = imported(path)
    assert not names & (ABOVE | HEAVY)
    if path.parent.name == "devices":
        assert "runtime" not in names


def test_source_files_are_found() -> None:
    assert {"loop.py", "policy.py", "catalogue.py", "onnxruntime.py"} <= {path.name for path in FILES}
