"""The registry of targets: names, defaults, and the options that each target accepts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from berxit.exporters.options import ExportOptions
from berxit.exporters.targets import COREML, ONNX_RUNTIME, TARGETS, TENSORRT, by_target, find_target
from berxit.runtime.backends import BACKENDS
from berxit.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "coremltools", "scipy")


def test_importing_the_registry_loads_no_framework() -> None:
    code = "import sys, berxit.exporters.targets; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "berxit.exporters.targets" in loaded
    assert not set(HEAVY) & set(loaded)


def test_every_target_has_a_backend() -> None:
    assert set(TARGETS) == set(BACKENDS)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_names_of_a_target_are_unique(target) -> None:  # type: ignore[no-untyped-def]
    for values in (target.precisions, target.versions):
        names = [value.name for value in values]
        assert len(names) == len(set(names))
    for version in target.versions:
        assert set(version.without) < {precision.name for precision in target.precisions}


def test_settings_contain_the_defaults() -> None:
    assert ONNX_RUNTIME.settings(ExportOptions()).precision.name == "fp32"
    tensorrt = TENSORRT.settings(ExportOptions()).for_model(100)
    assert (tensorrt.precision.name, tensorrt.version.name if tensorrt.version else None) == ("fp16", "jetpack6")
    assert (tensorrt.lengths, tensorrt.max_batch) == ((16, 32, 64, 100), 8)
    coreml = COREML.settings(ExportOptions()).for_model(100)
    assert (coreml.layout, coreml.lengths, coreml.max_batch) == ("tokens", (), 1)


def test_settings_limit_lengths_to_the_model() -> None:
    settings = COREML.settings(ExportOptions(lengths=(128, 16, 64))).for_model(32)
    assert settings.lengths == (16, 32)
    assert settings.max_length(32) == 32
    assert COREML.settings(ExportOptions(lengths=(8,))).for_model(32).max_length(32) == 8


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("onnxruntime", ExportOptions("fp7"), "target onnxruntime has no precision 'fp7': choose fp32, int8, fp16"),
        ("onnxruntime", ExportOptions(target_version="ios18"), "--target-version does not go with target onnxruntime"),
        ("onnxruntime", ExportOptions(max_batch=2), "--max-batch does not go with target onnxruntime"),
        ("tensorrt", ExportOptions(threads=2), "--threads does not go with target tensorrt"),
        ("tensorrt", ExportOptions(max_batch=0), "--max-batch 0: it must be at least 1"),
        ("coreml", ExportOptions(max_batch=2), "--max-batch 2: the largest batch of target coreml is 1"),
    ],
)
def test_settings_reject_what_the_target_does_not_accept(target: str, options: ExportOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_target(target).settings(options)


def test_settings_accept_threads_on_a_cpu() -> None:
    assert ONNX_RUNTIME.settings(ExportOptions(threads=2)).threads == 2


def test_help_lists_names_by_target() -> None:
    assert by_target({"a": ["x", "y"], "b": [], "c": ["z"]}) == "a: x, y; c: z"
