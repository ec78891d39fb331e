"""docs/commands.md, calibration.md and training.md: sections and tables agree with the commands and the registries."""

from __future__ import annotations

import re

import pytest
from test_advice import ROOT, options_of

from berxit.runtime.data_files import READERS
from berxit.runtime.policies import CRITERIA
from berxit.toolkit.cli import COMMANDS, load

PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
EVERYWHERE = {"--help", "--debug", "--quiet", "--register"}
"""Options that the table of common options describes."""


def sections() -> dict[tuple[str, ...], str]:
    """Commands of a section, as in "## berxit serve, demo, triton" -> its text."""
    found = {}
    for title, text in re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE):
        found[tuple(re.findall(r"[a-z]+", title.removeprefix("berxit")))] = text
    return found


def options_in_tables(text: str) -> list[str]:
    """Options that inline code in tables starts with: `--risk-of misses:CLASS` is --risk-of."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [option for row in rows for option in re.findall(r"`(--[a-z0-9-]+)", row)]


def test_every_command_has_a_section() -> None:
    assert sorted(name for names in sections() for name in names) == sorted(COMMANDS)


@pytest.mark.parametrize("names", sections(), ids="-".join)
def test_tables_name_options_of_the_section_s_commands(names: tuple[str, ...]) -> None:
    known = set().union(*(options_of(load(name)) for name in names))
    assert set(options_in_tables(sections()[names])) <= known


def test_tables_of_the_calibration_page_name_options_of_calibrate() -> None:
    page = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
    named = set(options_in_tables(page))
    assert named <= options_of(load("calibrate"))
    assert {"--keep", "--risk", "--budget-ms", "--criterion", "--patience"} <= named


def test_table_of_berxit_train_is_complete() -> None:
    known = {option for option in options_of(load("train")) if option.startswith("--")} - EVERYWHERE - {"--no-lte"}
    assert set(options_in_tables(sections()[("train",)])) == known


def first_cells(page: str, header: str) -> list[str]:
    """The inline code in the first cells of a table with this header."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (rows,) = re.findall(rf"^{re.escape(header)}\n\|-.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [name for row in rows.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_table_of_the_criteria_is_complete() -> None:
    assert first_cells("calibration.md", "| criterion | certainty |") == list(CRITERIA)


def test_table_of_the_data_formats_is_complete() -> None:
    assert sorted(first_cells("training.md", "| suffix | content |")) == sorted(READERS)
