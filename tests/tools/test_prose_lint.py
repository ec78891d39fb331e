"""Prose lint: findings with file and line, their replacement, and wording that is not reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.prose_lint import findings, main


def found(text: str, path: str = "page.md") -> list[str]:
    return [finding.text for finding in findings(path, text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the back end runs it", "back end"),
        ("the file lies outside the bundle", "lies outside"),
        ("engines are built anew", "anew"),
        ("memory is given back", "given back"),
        ("Copy it, or make it again", "make it again"),
        ("output is there already", "is there already"),
        ("both contenders run in turns", "in turns"),
        ("rows that are sure enough exit", "sure enough"),
    ],
)
def test_findings_report_wording(text: str, expected: str) -> None:
    assert found(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('    """What the model returns."""', '"""What'),
        ('    """Reads a file. Raises InputError where it is missing."""', "Raises InputError where"),
        ("def test_a_missing_file_is_named() -> None:", "def test_a_missing_file_is_named"),
        ("def test_the_last_layer_answers() -> None:", "def test_the_last_layer_answers"),
    ],
)
def test_findings_of_python_rules_ignore_other_files(text: str, expected: str) -> None:
    assert found(text, "module.py") == [expected]
    assert found(text, "page.md") == []


@pytest.mark.parametrize(
    "text",
    [
        "backends run segments",
        "for turn in turns",
        "the threads take turns",
        "the threshold lies",
        "def test_read_json_rejects_missing_file() -> None:",
        "def test_answers_are_equal() -> None:",
        '"""Reads a file. Raises InputError if it is missing."""',
    ],
)
def test_findings_ignore_accepted_wording(text: str) -> None:
    assert found(text, "module.py") == []


def test_findings_cross_line_breaks() -> None:
    (finding,) = findings("module.py", "first line\n# one back\n# end\n")
    assert (finding.line, finding.text) == (2, "back # end")
    assert str(finding) == "module.py:2: 'back # end': write instead: backend"


def test_main_exits_with_1_for_findings_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, other = (tmp_path / name for name in ("good.md", "bad.md", "bad.bin"))
    good.write_text("a backend\n", encoding="utf-8")
    bad.write_text("\na back end\n", encoding="utf-8")
    other.write_text("a back end\n", encoding="utf-8")
    assert main([str(good), str(other)]) == 0
    assert capsys.readouterr().out == ""
    assert main([str(good), str(bad)]) == 1
    assert capsys.readouterr().out == f"{bad}:2: 'back end': write instead: backend\n"
