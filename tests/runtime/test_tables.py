from __future__ import annotations

import pytest

from berxit.runtime.tables import markdown_table, plural


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    rows = [["1", "2.50", "9%", "a cat"], ["calibrated", "12.00", "-", "dog"]]
    assert markdown_table(["layer", "ms", "saved", "text"], rows).splitlines() == [
        "| layer      |    ms | saved | text  |",
        "|------------|------:|------:|-------|",
        "| 1          |  2.50 |    9% | a cat |",
        "| calibrated | 12.00 |     - | dog   |",
    ]


def test_the_first_column_stands_to_the_left_whatever_is_in_it() -> None:
    assert markdown_table(["layer"], [["1"], ["12"]]).splitlines()[-2:] == ["| 1     |", "| 12    |"]


@pytest.mark.parametrize("number", ["1.25x", "-0.5", "+3", "1,234", "1e-06", "38%", ""])
def test_a_number_may_have_a_sign_a_unit_or_an_exponent(number: str) -> None:
    assert markdown_table(["name", "a long header"], [["x", number]]).splitlines()[1].endswith(":|")


def test_floats_get_three_digits_and_others_are_as_they_are() -> None:
    last = markdown_table(["a", "b", "c", "d"], [["x", 0.123456, 1234, None]]).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")] == ["x", "0.123", "1234", "None"]


def test_a_table_without_rows_has_its_header() -> None:
    assert markdown_table(["a", "b"], []).splitlines() == ["| a | b |", "|---|--:|"]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        markdown_table(["a", "b"], [["x"]])


def test_one_is_singular() -> None:
    assert [plural(count, "thread") for count in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]
