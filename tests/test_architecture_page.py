"""docs/architecture.md: its tables name every module, and every file that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FOLDERS = ("runtime", "devices", "train", "exporters", "toolkit")


@pytest.mark.parametrize("folder", FOLDERS)
def test_table_of_a_folder_names_its_modules_and_packages(folder: str) -> None:
    (table,) = re.findall(rf"^\| {folder}/ \| modules \|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    named = re.findall(r"`(\w+(?:\.py|/))`", table)
    modules = {path.name for path in (ROOT / folder).glob("*.py") if not path.name.startswith("__")}
    packages = {f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")}
    inside = {path.name for path in (ROOT / folder).glob("*/*.py")}  # modules of its packages may be named, too
    assert modules | packages <= set(named)
    assert set(named) - inside <= modules | packages


def test_every_file_that_the_page_names_exists() -> None:
    folders = [*FOLDERS, "benchmarks", "berxit", "requirements", "runners", "tests", "tools"]
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if "node_modules" not in path.parts)
    files = [f"/{path.relative_to(ROOT).as_posix()}" + ("/" if path.is_dir() else "") for path in found]
    files += [f"/{folder}/" for folder in folders] + [f"/{path.name}" for path in ROOT.glob("*.*")]
    spans = re.findall(r"`([^`\n]+)`", PAGE)
    paths = [
        span for span in spans if re.fullmatch(r"[\w/.-]+(\.(py|ts|hpp|cpp|h|swift)|/)", span) and "NAME" not in span
    ]
    assert len(paths) > 100
    assert [path for path in paths if not any(file.endswith(f"/{path}") for file in files)] == []
