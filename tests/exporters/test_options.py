"""What a target takes of an export's options."""

from __future__ import annotations

import pytest

from berxit.exporters.onnx import onnxruntime, tensorrt
from berxit.exporters.options import ExportOptions
from berxit.runtime.errors import InputError


def test_the_first_precision_is_the_default() -> None:
    assert ExportOptions().checked_for("onnxruntime", onnxruntime).precision == "fp32"


def test_a_precision_the_target_has_not_is_refused() -> None:
    with pytest.raises(InputError, match="no precision 'fp7': choose fp32"):
        ExportOptions(precision="fp7").checked_for("onnxruntime", onnxruntime)


def test_an_option_of_another_target_is_refused() -> None:
    with pytest.raises(InputError, match="--target-version does not go with target onnxruntime"):
        ExportOptions(target_version="ios18").checked_for("onnxruntime", onnxruntime)


def test_threads_are_for_what_runs_on_a_cpu() -> None:
    assert ExportOptions(threads=2).checked_for("onnxruntime", onnxruntime).threads == 2
    with pytest.raises(InputError, match="--threads does not go with target tensorrt"):
        ExportOptions(threads=2).checked_for("tensorrt", tensorrt)
