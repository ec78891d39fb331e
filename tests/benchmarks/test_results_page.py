"""The numbers of README.md and of the pages in results/ equal the stored results."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from benchmarks.results_page import (
    COMMENT,
    NUMBER,
    PAGES,
    RESULTS,
    ROOT,
    Annotation,
    _annotation,
    _check,
    _read,
    _regions,
    _without_unread,
    problems,
)

STORED = {
    "layers": 6,
    "policy": {"latency": {"mean": 2.1}, "score": 0.8952, "histogram": [1, 3, 0]},
    "by_layer": {"1": {"score": 0.81234}, "2": {"score": 0.9}},
    "outcomes": [
        {"rule": "keep 0.99", "rows": 400, "kept": 0.972, "saved": 0.4},
        {"rule": "keep 0.99", "rows": 800, "kept": 0.5, "saved": None},
        {"rule": "risk", "rows": 400, "kept": 0.125, "saved": 0.1},
    ],
    "seconds": [1.0, 2.0, 9.0],
}
NUMBERS = """<!-- numbers: stored.json
policy/latency/mean
policy/score
1 - policy/score
by_layer/2/score / policy/score
seconds/@mean
seconds/@median
given: 99%
-->
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "stored.json").write_text(json.dumps(STORED), encoding="utf-8")
    return tmp_path


def found(results: Path, text: str) -> list[str]:
    page = results / "page.md"
    page.write_text(text, encoding="utf-8")
    return [problem.what for problem in problems(page, results)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_number_of_the_page_equals_its_stored_value(page: Path) -> None:
    assert [str(problem) for problem in problems(page)] == []


def test_overview_links_every_page() -> None:
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.parent == RESULTS and f"]({page.name})" not in text] == ["README.md"]


def test_links_of_the_pages_name_files_and_headings() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for address in re.findall(r"\]\(((?!https?://)[^)\s]+)\)", text):
            name, _, anchor = address.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page}: {address}"
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, f"{page}: {address}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_change_of_a_last_digit_is_detected(page: Path) -> None:
    """Adds one unit to the last digit of each checked number, one number at a time.

    A wildcard in a comment admits such a change if another of its values rounds to it. Of each page 2% may be
    undetected, because a value halfway between two printed numbers equals both.
    """
    text = page.read_text(encoding="utf-8")
    checked, undetected = 0, []
    for start, part in _regions(text):
        comment = COMMENT.match(part)
        if comment is None:
            continue
        annotation, body = _annotation(comment[1], 1, RESULTS), _without_unread(part)
        for number in NUMBER.finditer(body):
            before, after = body[: number.start()], body[number.end() :]
            other = "8765432.1" if re.search(r"[.%xe]", number[0]) else "8765432"
            if not is_problem(f"{before}{other}{after}", annotation):
                continue  # such a number is not checked
            checked += 1
            if not is_problem(f"{before}{one_unit_more(number[0])}{after}", annotation):
                undetected.append(f"line {text.count(chr(10), 0, start + number.start()) + 1}: {number[0]}")
    assert checked >= 40
    assert len(undetected) <= 0.02 * checked, undetected


def is_problem(body: str, annotation: Annotation) -> bool:
    fresh = replace(annotation, rows=dict(annotation.rows), columns=dict(annotation.columns))  # a table clears both
    return any(True for _ in _check(body, 1, fresh))


def one_unit_more(token: str) -> str:
    number = re.match(r"[-+]?[\d,]+(?:\.\d+)?", token)
    assert number is not None
    value = Decimal(number[0].replace(",", ""))
    return f"{value + Decimal((0, (1,), int(value.as_tuple().exponent))):f}{token[number.end() :]}"


def test_printed_numbers_are_compared_after_rounding(results: Path) -> None:
    text = (
        NUMBERS + "It takes 2.1 ms, scores 0.8952 (89.5%), and is 1.01x of it; 10% or 0.10 are lost, 4.00 and 2.0 s.\n"
    )
    assert found(results, text) == []
    assert found(results, text.replace("0.8952", "0.8953")) == ["0.8953 is no value of its annotation"]
    assert found(results, text.replace("1.01x", "1.02x")) == ["1.02x is no value of its annotation"]
    assert found(results, NUMBERS + "99% of `0.5` in [a page](0.7), layer 12, version 1.2.3") == []


def test_columns_and_rows_are_compared_in_order(results: Path) -> None:
    comment = "<!-- numbers: stored.json\ncolumn 2: outcomes[rule=keep 0.99]/kept\n{}-->\n"
    table = "| rows | kept |\n|---|---|\n| 400 | 97.2% |\n| 800 | 50% |\n"
    assert found(results, comment.format("") + table) == []
    swapped = table.replace("97.2%", "x").replace("50%", "97.2%").replace("| x", "| 50%")
    assert found(results, comment.format("") + swapped) == [
        "column 2: 50% is printed, 0.972 is stored",
        "column 2: 97.2% is printed, 0.5 is stored",
    ]
    assert found(results, comment.format("") + table.rsplit("|", 4)[0]) == [
        "column 2 has 1 numbers, the results have 2"
    ]
    row = "<!-- numbers: stored.json\nrow 1: by_layer/*/score\n-->\n| layer | 1 | 2 |\n|-|-|-|\n| F1 | 0.8123 | 0.9 |\n"
    assert found(results, row) == []
    assert found(results, row.replace("0.8123", "0.8124")) == ["row 1: 0.8124 is printed, 0.81234 is stored"]


def test_two_lists_of_a_column_take_turns(results: Path) -> None:
    comment = "<!-- numbers: stored.json\ncolumn 2: outcomes[rows=400]/kept ; outcomes[rows=400]/saved\n-->\n"
    table = "| rule | kept, saved |\n|---|---|\n| keep | 97.2%, 40% |\n| risk | 12.5%, 10% |\n"
    assert found(results, comment + table) == []
    assert found(results, comment + table.replace("40%", "41%")) == ["column 2: 41% is printed, 0.4 is stored"]


def test_lines_of_one_row_continue_each_other_over_several_files(results: Path) -> None:
    (results / "second.json").write_text(json.dumps({"score": 0.75}), encoding="utf-8")
    comment = "<!-- numbers: stored.json\nrow 1: policy/score\nsecond.json\nrow 1: score ; 408\n-->\n"
    table = "| | first | second |\n|---|---|---|\n| score | 0.8952 | 0.75 of 408 |\n"
    assert found(results, comment + table) == []
    assert found(results, comment + table.replace("0.75", "0.90")) == ["row 1: 0.90 is printed, 0.75 is stored"]
    assert found(results, comment + table.replace("0.75 of ", "")) == ["row 1 has 2 numbers, the results have 3"]


def test_extremes_are_those_of_all_values_of_the_path(results: Path) -> None:
    comment = "<!-- numbers: stored.json\ntext: outcomes/*/kept/@min ; outcomes[rule=keep 0.99]/kept/@max\n-->\n"
    assert found(results, comment + "They are 12.5% to 97.2%.\n") == []
    assert found(results, comment + "They are 50.0% to 97.2%.\n") == ["the text: 50.0% is printed, 0.125 is stored"]
    of_files = "<!-- numbers: *.json\ntext: */outcomes[rule=keep 0.99]/kept/@min\n-->\n"
    assert found(results, of_files + "It is 50.0%.\n") == []


def test_comma_before_a_blank_belongs_to_the_value_of_a_condition(results: Path) -> None:
    bars = [{"what": "fp32, 1 thread", "limit": 2, "found": 1.5}, {"what": "fp32", "limit": 3, "found": 2.5}]
    (results / "bars.json").write_text(json.dumps(bars), encoding="utf-8")
    comment = "<!-- numbers: bars.json\n[what=fp32, 1 thread,limit=2]/found\n-->\n"
    assert found(results, comment + "It is 1.5.\n") == []
    assert found(results, comment + "It is 2.5.\n") == ["2.5 is no value of its annotation"]


def test_keys_can_contain_blanks(results: Path) -> None:
    (results / "exits.json").write_text(json.dumps({"fixed exit": 0.25, "at 2 or 3": [1, 2]}), encoding="utf-8")
    comment = "<!-- numbers: exits.json\ntext: (1 - fixed exit) / 2 ; at 2 or 3/@max * 1.5\n-->\n"
    assert found(results, comment + "They are 0.375 and 3.0.\n") == []
    assert found(results, comment + "They are 0.376 and 3.0.\n") == ["the text: 0.376 is printed, 0.375 is stored"]


def test_numbers_of_the_text_are_compared_in_order(results: Path) -> None:
    comment = "<!-- numbers: stored.json\npolicy/score\ntext: policy/score ; policy/latency/mean\ngiven: 99%\n-->\n"
    text = "The score is 0.8952 at 99%.\n\n| a | b |\n|---|---|\n| F1 | 0.8952 |\n\n- It takes 2.1 ms.\n"
    assert found(results, comment + text) == []
    assert found(results, comment + text.replace("2.1", "0.8952")) == ["the text: 0.8952 is printed, 2.1 is stored"]
    assert found(results, comment + text.replace("2.1 ms", "2 ms")) == ["the text has 1 numbers, the results have 2"]
    assert found(results, comment + text.replace("| 0.8952", "| 2.1")) == ["2.1 is no value of its annotation"]


def test_number_without_annotation_is_a_problem_unless_the_page_says_that_it_is_not_stored(results: Path) -> None:
    assert found(results, "# A\n\nIt takes 2.1 ms.\n") == ["2.1 has no annotation"]
    assert found(results, "# A\n\nNot stored: the output of the command.\n\nIt takes 2.1 ms.\n") == []
    assert found(results, "# A\n\nNot stored: x.\n\n# B\n\nIt takes 2.1 ms.\n") == ["2.1 has no annotation"]
    items = "- Not stored: it took 7.7 s,\n  or 8.8 s.\n- It takes 6.6 ms.\n"
    assert found(results, NUMBERS + items) == ["6.6 is no value of its annotation"]
    assert found(results, "| condition | value |\n|---|---|\n| rate | 5e-5 |\n") == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("policy/nothing", "'nothing' of 'nothing' is not in the results"),
        ("outcomes[rule=other]/kept", "'outcomes[rule=other]/kept' names no number"),
        ("missing.json", "there is no results/missing.json"),
        ("column 1: outcomes/*/kept ; outcomes/*/saved", "'column 1: outcomes/*/kept ; outcomes/*/saved': the lists"),
    ],
)
def test_annotation_that_does_not_fit_is_a_problem(line: str, problem: str, results: Path) -> None:
    assert found(results, f"<!-- numbers: stored.json\n{line}\n-->\n1.5\n")[0].startswith(problem)


def test_one_file_of_every_folder_is_named_by_its_folder(results: Path) -> None:
    for name, score in (("a", 0.25), ("b", 0.75)):
        (results / "runs" / name).mkdir(parents=True)
        (results / "runs" / name / "run.json").write_text(json.dumps({"score": score}), encoding="utf-8")
    comment = "<!-- numbers: runs/*/run.json\n{}\n-->\n"
    table = "| run | score |\n|---|---|\n| a | 0.25 |\n| b | 0.75 |\n"
    assert found(results, comment.format("column 2: */score") + table) == []
    assert found(results, comment.format("column 2: */score") + table.replace("0.75", "0.76")) != []
    assert found(results, comment.format("b/score") + "The score is 0.75.\n") == []
    (results / "runs" / "b" / "run.json").write_text(
        json.dumps({"score": 0.75, "claims": [{"a": "x", "p": 0.5}, {"a": "y", "p": 0.625}]}), encoding="utf-8"
    )
    claims = comment.format("column 2: */claims[a=y]/p") + "| run | p |\n|---|---|\n| b | 0.625 |\n"
    _read.cache_clear()
    assert found(results, claims) == []
    assert found(results, claims.replace("0.625", "0.624")) != []
    (results / "runs" / "a" / "second.json").write_text("{}", encoding="utf-8")
    assert "several files of one folder" in found(results, "<!-- numbers: runs/*/*.json\na/score\n-->\n")[0]
