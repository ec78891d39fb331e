"""Fixtures of the tests of commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the calibrated checkpoint, for commands that write to it."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
