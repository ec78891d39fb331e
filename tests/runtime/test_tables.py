from __future__ import annotations

import pytest

from berxit.runtime.tables import markdown_table, plural


def test_markdown_table_right_aligns_number_columns() -> None:
    rows = [["1", "2.50", "9%", "a cat"], ["calibrated", "12.00", "-", "dog"]]
    assert markdown_table(["layer", "ms", "saved", "text"], rows).splitlines() == [
        "| layer      |    ms | saved | text  |",
        "|------------|------:|------:|-------|",
        "| 1          |  2.50 |    9% | a cat |",
        "| calibrated | 12.00 |     - | dog   |",
    ]


def test_markdown_table_left_aligns_first_column() -> None:
    assert markdown_table(["layer"], [["1"], ["12"]]).splitlines()[-2:] == ["| 1     |", "| 12    |"]


@pytest.mark.parametrize("number", ["1.25x", "-0.5", "+3", "1,234", "1e-06", "38%", ""])
def test_markdown_table_recognizes_signs_units_and_exponents(number: str) -> None:
    assert markdown_table(["name", "a long header"], [["x", number]]).splitlines()[1].endswith(":|")


def test_markdown_table_formats_floats_with_three_digits() -> None:
    last = markdown_table(["a", "b", "c", "d"], [["x", 0.123456, 1234, None]]).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")] == ["x", "0.123", "1234", "None"]


def test_markdown_table_keeps_a_bar_and_a_line_break_in_their_cell() -> None:
    assert markdown_table(["a", "b"], [["x|y\nz", "w"]]).splitlines()[2:] == [r"| x\|y z | w |"]


def test_markdown_table_without_rows_has_header() -> None:
    assert markdown_table(["a", "b"], []).splitlines() == ["| a | b |", "|---|--:|"]


def test_markdown_table_rejects_row_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        markdown_table(["a", "b"], [["x"]])


def test_plural_keeps_singular_for_one() -> None:
    assert [plural(count, "thread") for count in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]
