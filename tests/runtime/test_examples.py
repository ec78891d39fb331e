from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from berxit.runtime.errors import InputError
from berxit.runtime.examples import find_split, has_split, label_numbers, read_examples, read_rows

LABELS = ("cat", "other")


def write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "text\tlabel\na cat\tcat\nžluť\tother\n"),
        ("a.tsv", "id\tlabel\ttext\n1\tcat\ta cat\n2\tother\tžluť"),
        ("a.tsv", "text\tlabel\r\na cat\tcat\r\n\r\nžluť\tother\r\n"),
        ("a.tsv", "\ufefftext\tlabel\n  a cat \t cat \nžluť\tother\n"),
        ("a.csv", "text,label\na cat,cat\nžluť,other\n"),
        ("a.csv", '\ufefftext,label\r\n"a cat","cat"\r\n\r\nžluť,other\r\n'),
        ("a.jsonl", '{"text": "a cat", "label": "cat"}\n\n{"label": "other", "text": "\\u017elu\\u0165", "id": 2}\n'),
        ("a.jsonl", '\ufeff{"text": "a cat", "label": 0}\n{"text": "žluť", "label": 1}\n'),
    ],
)
def test_every_format_gives_the_same_examples(tmp_path: Path, name: str, content: str) -> None:
    examples = read_examples(write(tmp_path, name, content), ("text",), "label", LABELS)
    assert examples.texts == ["a cat", "žluť"]
    assert examples.labels.tolist() == [0, 1]
    assert examples.labels.dtype == np.int64
    assert len(examples) == 2


def test_quotes_in_a_tsv_file_are_characters(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"a cat\tcat\nhe said "no"\tother\n')
    assert read_examples(path, ("text",), "label", LABELS).texts == ['"a cat', 'he said "no"']


def test_a_quoted_field_of_a_csv_file_may_hold_commas_and_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n"a ""cat"", a dog\nand a tree",cat\n')
    assert read_examples(path, ("text",), "label", LABELS).texts == ['a "cat", a dog\nand a tree']


def test_two_columns_make_a_pair(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "first\tsecond\tlabel\na cat\ta dog\tcat\n")
    assert read_examples(path, ("first", "second"), "label", LABELS).texts == [("a cat", "a dog")]


def test_regression_labels_are_values(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, "a.tsv", "text\tlabel\na\t2.5\nb\t-1\n"), ("text",), "label", None)
    assert examples.labels.tolist() == [2.5, -1.0]
    assert examples.labels.dtype == np.float64


def test_a_label_may_be_its_number(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "text\tlabel\na\t1\nb\tcat\nc\t0\n")
    assert read_examples(path, ("text",), "label", LABELS).labels.tolist() == [1, 0, 0]


def test_names_that_are_numbers_are_names() -> None:
    assert label_numbers(("1", "0")) == {"1": 0, "0": 1}
    assert label_numbers(("no", "yes")) == {"no": 0, "yes": 1, "0": 0, "1": 1}


def test_head_takes_the_first(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, "a.tsv", "text\tlabel\na\t0\nb\t1\nc\t0\n"), ("text",), "label", LABELS)
    assert examples.head(2).texts == ["a", "b"]
    assert examples.head(2).labels.tolist() == [0, 1]
    assert len(examples.head(None)) == len(examples.head(9)) == 3


BAD = {
    "ragged": ("a.tsv", "text\tlabel\na\t0\nb\n", "line 3: 1 columns where the header has 2"),
    "a tab too many": ("a.tsv", "text\tlabel\na\tb\t0\n", "line 2: 3 columns"),
    "ragged csv": ("a.csv", 'text,label\n"a\nb",0\nc\n', "line 4: 1 columns"),
    "open quote": ("a.csv", 'text,label\n"a,0\n', "not a CSV file"),
    "empty file": ("a.tsv", "", "no rows"),
    "empty csv": ("a.csv", "", "no rows"),
    "empty jsonl": ("a.jsonl", "\n\n", "no rows"),
    "header only": ("a.tsv", "text\tlabel\n", "no rows"),
    "no text": ("a.tsv", "text\tlabel\na\t0\n \t1\n", "line 3: column 'text' is empty"),
    "no text in json": ("a.jsonl", '{"text": null, "label": 0}\n', "line 1: column 'text'"),
    "no such column": ("a.tsv", "sentence\tlabel\na\t0\n", "no column 'text'. There are: sentence, label"),
    "no such label column": ("a.csv", "text,class\na,0\n", "no column 'label'. There are: text, class"),
    "no such key": ("a.jsonl", '{"text": "a", "label": 0}\n{"text": "b"}\n', "line 2: no column 'label'"),
    "unknown label": ("a.tsv", "text\tlabel\na\tcat\nb\tdog\n", "line 3: unknown label 'dog'. Known: cat, other"),
    "number of no class": ("a.tsv", "text\tlabel\na\t2\n", "line 2: unknown label '2'"),
    "no label": ("a.tsv", "text\tlabel\na\t\n", "line 2: unknown label ''"),
    "latin-1": ("a.tsv", b"text\tlabel\na\t0\ncaf\xe9\t1\n", "line 3: not UTF-8"),
    "latin-1 csv": ("a.csv", b"text,label\na,0\nb,1\ncaf\xe9,1\n", "line 4: not UTF-8"),
    "latin-1 jsonl": ("a.jsonl", b'{"text": "caf\xe9", "label": 0}\n', "line 1: not UTF-8"),
    "utf-16": ("a.tsv", "text\tlabel\na\t0\n".encode("utf-16"), "line 1: not UTF-8"),
    "no json": ("a.jsonl", '{"text": "a", "label": 0}\n{"text": \n', "line 2: not JSON"),
    "no json object": ("a.jsonl", '["a", 0]\n', "line 1: not a JSON object"),
    "another format": ("a.xlsx", "text\tlabel\na\t0\n", r"cannot read '\.xlsx' files. Give one of \.tsv"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_the_line(tmp_path: Path, name: str) -> None:
    file, content, message = BAD[name]
    path = write(tmp_path, file, content)
    with pytest.raises(InputError, match=rf"{file}.*{message}"):
        read_examples(path, ("text",), "label", LABELS)


@pytest.mark.parametrize("value", ["nan", "inf", "high", ""])
def test_a_regression_label_must_be_a_finite_number(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, "a.tsv", f"text\tlabel\na\t1\nb\t{value}\n")
    with pytest.raises(InputError, match=rf"a\.tsv, line 3: label '{value}' is not a number"):
        read_examples(path, ("text",), "label", None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*a\.tsv"):
        list(read_rows(tmp_path / "a.tsv", ("text",)))


def test_rows_come_with_their_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "text\tn\na\t1\n\nb\t2\n")
    assert list(read_rows(path, ("text",))) == [(2, {"text": "a", "n": "1"}), (4, {"text": "b", "n": "2"})]


def test_a_split_is_found_in_any_format(tmp_path: Path) -> None:
    train = write(tmp_path, "train.jsonl", "{}")
    dev = write(tmp_path, "dev.csv", "")
    assert find_split(tmp_path, "train") == train
    assert find_split(tmp_path, "dev") == dev
    assert find_split(dev, "train") == dev
    assert has_split(tmp_path, "dev")
    assert not has_split(tmp_path, "test")


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no test split: put test\.tsv"):
        find_split(tmp_path, "test")
    with pytest.raises(InputError, match=r"no data at .*nowhere"):
        find_split(tmp_path / "nowhere", "test")


def test_dev_is_the_matched_split_where_there_are_two(tmp_path: Path) -> None:
    for split in ("dev_matched", "dev_mismatched"):
        (tmp_path / f"{split}.tsv").write_text("a\n1\n", encoding="utf-8")
    assert find_split(tmp_path, "dev").name == "dev_matched.tsv"
    assert find_split(tmp_path, "dev_mismatched").name == "dev_mismatched.tsv"
    assert has_split(tmp_path, "dev")
