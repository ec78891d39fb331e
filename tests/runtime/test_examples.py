from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from berxit.runtime.bundle import read_manifest
from berxit.runtime.errors import InputError
from berxit.runtime.examples import (
    find_split,
    has_split,
    read_examples,
    read_examples_for,
    read_rows,
)
from berxit.runtime.labels import class_name, label_numbers

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
def test_read_examples_is_equal_for_all_formats(tmp_path: Path, name: str, content: str) -> None:
    examples = read_examples(write(tmp_path, name, content), ("text",), "label", LABELS, glue_numbers=True)
    assert examples.texts == ["a cat", "žluť"]
    assert examples.labels.tolist() == [0, 1]
    assert examples.labels.dtype == np.int64
    assert len(examples) == 2


def test_read_examples_keeps_quotes_of_tsv(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"a cat\tcat\nhe said "no"\tother\n')
    assert read_examples(path, ("text",), "label", LABELS).texts == ['"a cat', 'he said "no"']


def test_read_examples_parses_quoted_csv_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n"a ""cat"", a dog\nand a tree",cat\n')
    assert read_examples(path, ("text",), "label", LABELS).texts == ['a "cat", a dog\nand a tree']


def test_read_examples_returns_pairs_for_two_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "first\tsecond\tlabel\na cat\ta dog\tcat\n")
    assert read_examples(path, ("first", "second"), "label", LABELS).texts == [("a cat", "a dog")]


def test_read_examples_returns_float_labels_for_regression(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, "a.tsv", "text\tlabel\na\t2.5\nb\t-1\n"), ("text",), "label", None)
    assert examples.labels.tolist() == [2.5, -1.0]
    assert examples.labels.dtype == np.float64


def test_read_examples_accepts_class_numbers_of_built_in_tasks(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "text\tlabel\na\t1\nb\tcat\nc\t0.0\n")
    assert read_examples(path, ("text",), "label", LABELS, glue_numbers=True).labels.tolist() == [1, 0, 0]


def test_read_examples_rejects_class_numbers_of_custom_tasks(tmp_path: Path) -> None:
    assert label_numbers(("1", "0")) == {"1": 0, "0": 1}
    assert label_numbers(("no", "yes")) == {"no": 0, "yes": 1}
    path = write(tmp_path, "a.csv", "text,label\na,1.0\nb,0\n")
    with pytest.raises(InputError, match=r"a\.csv, line 2: unknown label '1\.0'\. Known labels: cat, other$"):
        read_examples(path, ("text",), "label", LABELS)
    assert read_examples(path, ("text",), "label", ("1.0", "0.0")).labels.tolist() == [0, 1]


@pytest.mark.parametrize("labels", [("1.0", "2.0", "3.0"), ("1", "2", "3"), ("+1", "2e0", "03")])
@pytest.mark.parametrize("spelling", ["2", "2.0", "+2", "2e0", "02", "2.", "0.2e1", " 2 "])
def test_read_examples_compares_numeric_class_names_by_value(
    labels: tuple[str, ...], spelling: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "a.csv", f"text,label\na,{spelling}\nb,3\nc,1\n")
    assert read_examples(path, ("text",), "label", labels).labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize("spelling", ["1", "1.0", "1e0", "100e-2"])
def test_read_examples_reads_json_and_csv_numbers_alike(spelling: str, tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", f'{{"text": "a", "label": {spelling}}}\n{{"text": "b", "label": "0"}}\n')
    assert read_examples(path, ("text",), "label", ("0", "1")).labels.tolist() == [1, 0]


def test_class_name_normalizes_spellings() -> None:
    assert {class_name(label) for label in ("1", "1.0", "+1", "1e0", " 01 ")} == {"1"}
    assert {class_name(label) for label in ("0", "-0", "0.0", "+0e9")} == {"0"}
    assert [class_name(label) for label in ("1.50", "-2.0", "100", "1e2", ".5")] == ["1.5", "-2", "100", "100", "0.5"]
    assert {class_name(label) for label in ("true", "True", "TRUE")} == {"true"}
    assert class_name("caf\u00e9") == class_name("cafe\u0301")
    assert class_name("12345678901234567890123") != class_name("12345678901234567890124")
    assert class_name("1e9999") == "1E+9999"
    assert [class_name(label) for label in ("Good", "1_0", "1,5", "1 2", "\uff11", "e5", ".")] == [
        "Good", "1_0", "1,5", "1 2", "\uff11", "e5", "."
    ]  # fmt: skip


def test_read_examples_rejects_equal_class_names(tmp_path: Path) -> None:
    """Such class names exist in checkpoints of versions that compared numbers as text."""
    path = write(tmp_path, "a.csv", "text,label\na,1\n")
    with pytest.raises(InputError, match=r"two of the classes 0, 1, 1\.0 are equal .* train again"):
        read_examples(path, ("text",), "label", ("0", "1", "1.0"))


MISSING_LABELS = {
    "blank.csv": "text,label\na,cat\nb,\nc,other\n",
    "blanks.tsv": "text\tlabel\na\tcat\nb\t  \nc\tother\n",
    "null.jsonl": '{"text": "a", "label": "cat"}\n{"text": "b", "label": null}\n{"text": "c", "label": "other"}\n',
    "NaN.jsonl": '{"text": "a", "label": "cat"}\n{"text": "b", "label": NaN}\n{"text": "c", "label": "other"}\n',
    **{
        f"{number}.csv": f"text,label\na,cat\nb,{marker}\nc,other\n"
        for number, marker in enumerate(
            ["nan", "NaN", "-nan", "NULL", "null", "NA", "N/A", "n/a", "None", "<NA>", "#N/A"]
        )
    },
}


@pytest.mark.parametrize("name", MISSING_LABELS)
def test_read_examples_treats_missing_label_as_bad_row(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, MISSING_LABELS[name])
    line = 2 if name.endswith("l") else 3
    for labels in (LABELS, None):
        kept = path if labels else write(tmp_path, f"r{name}", MISSING_LABELS[name].replace("cat", "1"))
        with pytest.raises(InputError, match=rf"line {line}: column 'label' has no label"):
            read_examples(kept, ("text",), "label", labels)
    found = read_examples(path, ("text",), "label", LABELS, skip_bad_rows=True)
    assert (found.texts, found.labels.tolist(), len(found.skipped)) == (["a", "c"], [0, 1], 1)


@pytest.mark.parametrize(("value", "kind"), [('["cat"]', "a list"), ("[]", "a list"), ('{"name": "cat"}', "an object")])
@pytest.mark.parametrize("column", ["text", "label"])
def test_read_examples_treats_json_list_or_object_as_bad_row(
    value: str, kind: str, column: str, tmp_path: Path
) -> None:
    other = "label" if column == "text" else "text"
    rows = f'{{"text": "a", "label": "cat"}}\n{{"{other}": "cat", "{column}": {value}, "meta": [1, {{}}]}}\n'
    path = write(tmp_path, "a.jsonl", rows)
    with pytest.raises(InputError, match=rf"a\.jsonl, line 2: column '{column}' is {kind}, not one value"):
        read_examples(path, ("text",), "label", LABELS)
    assert len(read_examples(path, ("text",), "label", LABELS, skip_bad_rows=True)) == 1


def test_read_examples_lists_classes_for_unknown_label(tmp_path: Path) -> None:
    path = write(tmp_path, "dev.csv", "text,label\na,0.123\n")
    with pytest.raises(InputError, match=r"label '0\.123'\. Known labels: 0, .*, 9 and 382 more\. .*--regression$"):
        read_examples(path, ("text",), "label", [str(number) for number in range(392)])
    with pytest.raises(InputError, match=r"Known labels: 10 and 2 more$|Known labels: c0, .*, c9 and 2 more$"):
        read_examples(path, ("text",), "label", [f"c{number}" for number in range(12)])


@pytest.mark.parametrize("label", ["1_000", "1e999", "inf", "0x10", "1,5", "true"])
def test_read_examples_rejects_non_decimal_regression_label(label: str, tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", f"text\tlabel\na\t1e3\nb\t{label}\n")
    with pytest.raises(InputError, match=rf"line 3: label '{label}' is not a number"):
        read_examples(path, ("text",), "label", None)


def test_read_examples_reads_long_csv_cell(tmp_path: Path) -> None:
    document = "word " * 60_000
    path = write(tmp_path, "a.csv", f'text,label\n"{document}",cat\nshort,other\n')
    assert [len(text) for text in read_examples(path, ("text",), "label", LABELS).texts] == [len(document) - 1, 5]


@pytest.mark.parametrize("suffix", [".CSV", ".Csv", ".TSV", ".JSONL"])
def test_read_examples_accepts_uppercase_suffix(suffix: str, tmp_path: Path) -> None:
    contents = {
        ".csv": "text,label\na,cat\n", ".tsv": "text\tlabel\na\tcat\n", ".jsonl": '{"text": "a", "label": "cat"}\n'
    }  # fmt: skip
    path = write(tmp_path, f"train{suffix}", contents[suffix.lower()])
    assert has_split(tmp_path, "train")
    assert find_split(tmp_path, "train") == find_split(path, "train") == path
    assert read_examples(path, ("text",), "label", LABELS).texts == ["a"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "\ufefftext , label\na,cat\n"),
        ("a.csv", '\ufeff"text", label\na,cat\n'),
        ("a.tsv", "\ufeff\ufefftext\tlabel\na\tcat\n"),
        ("a.tsv", " text\t label \r\na\tcat\r\n"),
        ("a.csv", "id,text,label,id\n1,a,cat,1\n"),
    ],
)
def test_read_examples_strips_whitespace_and_bom_of_header(name: str, content: str, tmp_path: Path) -> None:
    assert read_examples(write(tmp_path, name, content), ("text",), "label", LABELS).texts == ["a"]


def test_read_examples_strips_whitespace_around_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n" \u00a0the cat\u3000\n",cat\n')
    assert read_examples(path, ("text",), "label", LABELS).texts == ["the cat"]


def test_read_examples_for_uses_columns_and_labels_of_bundle(bundle: Path, tmp_path: Path) -> None:
    model = read_manifest(bundle).model
    assert read_examples_for(model, write(tmp_path, "a.csv", "text,label\na,other\n")).labels.tolist() == [1]
    numbered = write(tmp_path, "b.csv", "text,label\na,1\n")
    with pytest.raises(InputError, match="unknown label '1'"):
        read_examples_for(model, numbered)
    assert read_examples_for(replace(model, task="sst2"), numbered).labels.tolist() == [1]


def test_examples_head_returns_first_examples(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "text\tlabel\na\tcat\nb\tother\nc\tcat\n")
    examples = read_examples(path, ("text",), "label", LABELS)
    assert examples.head(2).texts == ["a", "b"]
    assert examples.head(2).labels.tolist() == [0, 1]
    assert len(examples.head(None)) == len(examples.head(9)) == 3


BAD = {
    "ragged": ("a.tsv", "text\tlabel\na\t0\nb\n", "line 3: 1 columns, but the header has 2"),
    "a tab too many": ("a.tsv", "text\tlabel\na\tb\t0\n", "line 2: 3 columns"),
    "ragged csv": ("a.csv", 'text,label\n"a\nb",0\nc\n', "line 4: 1 columns"),
    "open quote": ("a.csv", 'text,label\n"a,0\n', "line 2: not CSV"),
    "empty file": ("a.tsv", "", "no rows"),
    "empty csv": ("a.csv", "", "no rows"),
    "empty jsonl": ("a.jsonl", "\n\n", "no rows"),
    "header only": ("a.tsv", "text\tlabel\n", "no rows"),
    "no text": ("a.tsv", "text\tlabel\na\t0\n \t1\n", "line 3: column 'text' is empty"),
    "no text in json": ("a.jsonl", '{"text": null, "label": 0}\n', "line 1: column 'text'"),
    "no such column": ("a.tsv", "sentence\tlabel\na\t0\n", "no column 'text'. Columns: sentence, label"),
    "no such label column": ("a.csv", "text,class\na,0\n", "no column 'label'. Columns: text, class"),
    "no such key": ("a.jsonl", '{"text": "a", "label": 0}\n{"text": "b"}\n', "line 2: no column 'label'"),
    "unknown label": ("a.tsv", "text\tlabel\na\tcat\nb\tdog\n", "line 3: unknown label 'dog'. Known labels: cat"),
    "number of no class": ("a.tsv", "text\tlabel\na\t2\n", "line 2: unknown label '2'"),
    "column twice": ("a.csv", "text,label,label\na,0,1\n", "header has column 'label' twice"),
    "key twice": ("a.jsonl", '{"text": "a", "label": 0, "label": 1}\n', "line 1: not JSON .key 'label' twice"),
    "nested too deeply": ("a.jsonl", "[" * 100_000 + "\n", "line 1: not JSON"),
    "lone surrogate": ("a.jsonl", '{"text": "a \\ud800", "label": 0}\n', "line 1: column 'text' contains a lone surr"),
    "lone surrogate in a label": ("a.json", '[{"text": "a", "label": "\\udfff"}]', "line 1: column 'label' contains a"),
    "lone surrogate in a list": (
        "a.jsonl",
        '{"text": "a", "label": 0, "x": [{"y": "\\ud800"}]}',
        "column 'x' contains",
    ),
    "lone surrogate in a name": ("a.jsonl", '{"text": "a", "label": 0, "\\ud800": 1}', r"column '.ud800' contains"),
    "latin-1": ("a.tsv", b"text\tlabel\na\t0\ncaf\xe9\t1\n", "line 3: not UTF-8"),
    "latin-1 csv": ("a.csv", b"text,label\na,0\nb,1\ncaf\xe9,1\n", "line 4: not UTF-8"),
    "latin-1 jsonl": ("a.jsonl", b'{"text": "caf\xe9", "label": 0}\n', "line 1: not UTF-8"),
    "utf-16": ("a.tsv", "text\tlabel\na\t0\n".encode("utf-16"), "line 1: not UTF-8"),
    "no json": ("a.jsonl", '{"text": "a", "label": 0}\n{"text": \n', "line 2: not JSON"),
    "no json object": ("a.jsonl", '["a", 0]\n', "line 1: not a JSON object"),
    "another format": ("a.xlsx", "text\tlabel\na\t0\n", r"cannot read '\.xlsx' files. Give one of \.tsv"),
}


@pytest.mark.parametrize("name", BAD)
def test_read_examples_names_file_and_line_of_error(tmp_path: Path, name: str) -> None:
    file, content, message = BAD[name]
    path = write(tmp_path, file, content)
    with pytest.raises(InputError, match=rf"{file}.*{message}"):
        read_examples(path, ("text",), "label", LABELS, glue_numbers=True)


@pytest.mark.parametrize("value", ["inf", "high"])
def test_read_examples_rejects_infinite_regression_label(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, "a.tsv", f"text\tlabel\na\t1\nb\t{value}\n")
    with pytest.raises(InputError, match=rf"a\.tsv, line 3: label '{value}' is not a number"):
        read_examples(path, ("text",), "label", None)


@pytest.mark.parametrize("value", ["1e300", "-3.5e38"])
def test_read_examples_rejects_regression_label_beyond_float32(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\na,3.4e38\nb,{value}\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"line 3: label '{value}' is beyond the range of float32"):
        read_examples(tmp_path / "a.csv", ["text"], "label", None)


def test_read_examples_rejects_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*a\.tsv"):
        list(read_rows(tmp_path / "a.tsv", ("text",)))


def test_read_rows_yields_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "text\tn\na\t1\n\nb\t2\n")
    assert list(read_rows(path, ("text",))) == [(2, {"text": "a", "n": "1"}), (4, {"text": "b", "n": "2"})]


def test_find_split_accepts_all_formats(tmp_path: Path) -> None:
    train = write(tmp_path, "train.jsonl", "{}")
    dev = write(tmp_path, "dev.csv", "")
    assert find_split(tmp_path, "train") == train
    assert find_split(tmp_path, "dev") == dev
    assert find_split(dev, "train") == dev
    assert has_split(tmp_path, "dev")
    assert not has_split(tmp_path, "test")


def test_find_split_rejects_missing_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no test split: add test\.tsv"):
        find_split(tmp_path, "test")
    with pytest.raises(InputError, match=r"no data at .*nowhere"):
        find_split(tmp_path / "nowhere", "test")


def test_find_split_returns_dev_matched_for_mnli(tmp_path: Path) -> None:
    for split in ("dev_matched", "dev_mismatched"):
        (tmp_path / f"{split}.tsv").write_text("a\n1\n", encoding="utf-8")
    assert find_split(tmp_path, "dev").name == "dev_matched.tsv"
    assert find_split(tmp_path, "dev_mismatched").name == "dev_mismatched.tsv"
    assert has_split(tmp_path, "dev")


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a", "label": "cat"}, {"label": 1, "text": "b"}]',
        ' \n{"text": "a", "label": "cat"}\n{"label": 1, "text": "b"}\n',  # lines of JSON with this suffix
    ],
)
def test_read_rows_reads_a_json_array_or_lines(content: str, tmp_path: Path) -> None:
    rows = [row for _, row in read_rows(write(tmp_path, "a.json", content), ("text", "label"))]
    assert rows == [{"text": "a", "label": "cat"}, {"text": "b", "label": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"text": "a", "label": "cat"}\n', "a.json, line 2: not JSON"),
        ("a.json", '{"text": {"0": "a"}}', "line 1: column 'text' is an object"),
        ("a.json", '"text"', "a.json: not an array of objects. Save it as JSONL, with one object per line"),
        ("a.json", "[]", "a.json has no rows"),
        ("a.json", '[{"text": "a", "label": "cat"}, 3]', "a.json, line 2: not a JSON object"),
        ("a.csv", "text;label\na;cat\n", "Its columns are separated by a semicolon, and .csv needs a comma: save"),
        ("a.csv", "text\tlabel\na\tcat\n", "separated by a tab, and .csv needs a comma: rename the file to .tsv"),
        ("a.tsv", "text,label\na,cat\n", "separated by a comma, and .tsv needs a tab: rename the file to .csv"),
        (
            "a.csv",
            "turn the lights on in the kitchen,lights\nplay music,music\n",
            "Its first line looks like data (turn the lights on in the kitchen, lights): add a line with the names",
        ),
        ("a.tsv", "a cat\t1\na dog\t0\n", "Its first line looks like data (a cat, 1)"),
    ],
)
def test_read_rows_names_the_probable_mistake(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        list(read_rows(write(tmp_path, name, content), ("text", "label")))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
