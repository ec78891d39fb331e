"""Helpers of the tests of commands: a call of a command, and its line on standard error."""

from __future__ import annotations

from pathlib import Path

import pytest

from berxit.runtime.console import status_of
from berxit.toolkit.cli import load


def run(name: str, *arguments: object) -> int:
    return status_of(load(name), [str(argument) for argument in arguments])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    assert not any("Traceback" in line for line in lines)
    return errors[0]


def train_arguments(model: Path, data: Path, output: Path) -> list[object]:
    sizes = ["--max-steps", 2, "--batch-size", 4, "--max-length", 16, "--limit-train", 16]
    return ["--model", model, "--task", "custom", "--data", data, "--output", output, *sizes, "--quiet"]
