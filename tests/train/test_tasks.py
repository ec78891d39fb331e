"""Tasks: the official file layouts, and tasks from a user's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import shared

from berxit.runtime.errors import InputError
from berxit.runtime.metrics import METRICS
from berxit.train.tasks import TASKS, Task, custom_task, get_task, obvious_positive, task_of


def write(folder: Path, text: str, name: str = "train.tsv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_tasks_contain_the_eight_tasks_of_the_paper() -> None:
    assert list(TASKS) == ["rte", "mrpc", "sst2", "qnli", "qqp", "mnli", "stsb", "sick"]
    assert all(task.metric in METRICS for task in TASKS.values())
    assert {name for name, task in TASKS.items() if task.regression} == {"stsb", "sick"}
    assert {name for name, task in TASKS.items() if task.metric == "f1"} == {"mrpc", "qqp"}


def test_get_task_lists_the_known_tasks() -> None:
    with pytest.raises(InputError, match=r"unknown task 'cola': choose one of rte, .*, custom"):
        get_task("cola")


@pytest.mark.parametrize("name", TASKS)
def test_read_accepts_the_official_layout_of_every_task(name: str, tmp_path: Path) -> None:
    task = get_task(name)
    labels = ["1.5", "4.0"] if task.regression else [task.labels[-1], task.labels[0]]
    header = ["index", *task.text_columns, task.label_column]
    rows = [["0", *(f"text {c} {row}" for c in task.text_columns), label] for row, label in enumerate(labels)]
    write(tmp_path, "\n".join("\t".join(line) for line in [header, *rows]) + "\n", "dev.tsv")
    found = task.read(tmp_path, "dev")
    expected = [1.5, 4.0] if task.regression else [len(task.labels) - 1, 0]
    assert found.labels.tolist() == expected
    first = tuple(f"text {column} 0" for column in task.text_columns)
    assert found.texts[0] == (first if len(first) == 2 else first[0])


def test_read_of_mrpc_accepts_numbers_of_glue(tmp_path: Path) -> None:
    write(tmp_path, '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "no\tShe left\n', "dev.tsv")
    found = get_task("mrpc").read(tmp_path, "dev")
    assert found.texts == [('He said "no', "She left")]
    assert found.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "folder", "rows"),
    [
        ("rte", "RTE", 277),
        ("mrpc", "MRPC", 408),
        ("sst2", "SST-2", 872),
        ("stsb", "STS-B", 1500),
        ("sick", "SICK", 495),
    ],
)
def test_read_returns_every_row_of_the_real_dev_files(name: str, folder: str, rows: int) -> None:
    task = get_task(name)
    found = task.read(shared("data", folder), "dev")
    assert len(found) == rows
    assert np.ptp(found.labels) > 0


def test_read_names_file_and_line_of_an_unknown_label(tmp_path: Path) -> None:
    write(tmp_path, "sentence\tlabel\nfine\t1\nodd\tmaybe\n", "dev.tsv")
    with pytest.raises(InputError, match=r"dev\.tsv, line 3: unknown label 'maybe'"):
        get_task("sst2").read(tmp_path, "dev")


def test_read_rejects_the_file_of_another_task(tmp_path: Path) -> None:
    write(tmp_path, "sentence\tlabel\nfine\t1\n", "dev.tsv")
    with pytest.raises(InputError, match="no column 'sentence1'"):
        get_task("rte").read(tmp_path, "dev")


def test_custom_task_has_the_classes_of_the_training_file_in_order(tmp_path: Path) -> None:
    write(tmp_path, "text\tlabel\nx\tpear\ny\tapple \nz\tpear\n")
    task = custom_task(tmp_path, ("text",), "label")
    assert task.labels == ("apple", "pear")
    assert (task.name, task.metric, task.regression) == ("custom", "accuracy", False)
    assert task.read(tmp_path, "train").labels.tolist() == [1, 0, 1]


def test_custom_task_of_regression_reads_numbers(tmp_path: Path) -> None:
    write(tmp_path, "a\tb\tscore\nx\ty\t2.5\n")
    task = custom_task(tmp_path, ("a", "b"), "score", kind="regression")
    assert task.metric == "spearman"
    assert task.regression
    found = task.read(tmp_path, "train")
    assert (found.texts, found.labels.tolist()) == ([("x", "y")], [2.5])


def test_custom_task_rejects_an_unknown_metric(tmp_path: Path) -> None:
    write(tmp_path, "text\tlabel\nx\ta\ny\tb\n")
    assert custom_task(tmp_path, ("text",), "label", metric="f1", positive="a").metric == "f1"
    with pytest.raises(InputError, match="unknown metric 'bleu': choose one of accuracy, f1, macro-f1, micro-f1"):
        custom_task(tmp_path, ("text",), "label", metric="bleu")


@pytest.mark.parametrize(
    ("regression", "metric", "message"),
    [
        (True, "accuracy", "--metric accuracy is not a metric of regression: choose pearson or spearman"),
        (True, "f1", "is not a metric of regression"),
        (False, "spearman", "--metric spearman is not a metric of classification: choose accuracy or f1"),
        (False, "f1", r"--metric f1 needs two classes, and .*train\.tsv has 3: use --metric accuracy"),
    ],
)
def test_custom_task_rejects_a_metric_that_does_not_fit(
    regression: bool, metric: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path, "text\tlabel\nx\t1\ny\t2\nz\t3\n")
    with pytest.raises(InputError, match=message):
        custom_task(tmp_path, ("text",), "label", kind="regression" if regression else "classification", metric=metric)


def test_read_rejects_a_split_with_secret_labels(tmp_path: Path) -> None:
    write(tmp_path, "sentence1\tsentence2\tscore\na\tb\t-1\nc\td\t-1.0\n", "test.tsv")
    with pytest.raises(InputError, match=r"test\.tsv: all labels are -1, the labels of this split are secret"):
        get_task("stsb").read(tmp_path, "test")


def test_read_skips_incomplete_lines_of_qqp_on_request(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    rows = "1\t2\t3\tWhy?\tHow?\t0\n4\t5\t6\tWhat\n7\t8\t9\tWho?\tWhom?\t1\n1\t2\t3\t\tHow?\t0\n1\t2\t3\ta\tb\tc\n"
    write(tmp_path, header + rows)
    with pytest.raises(InputError, match=r"line 3: 4 columns, but the header has 6\. Fix or delete it"):
        get_task("qqp").read(tmp_path, "train")
    found = get_task("qqp").read(tmp_path, "train", skip_bad_rows=True)
    assert (len(found), found.labels.tolist()) == (2, [0, 1])
    where = f"{tmp_path / 'train.tsv'}, line"
    assert [problem.removeprefix(where)[:22] for problem in found.skipped] == [
        " 3: 4 columns, but the",
        " 5: column 'question1'",
        " 6: unknown label 'c'.",
    ]
    assert found.head(1).skipped == found.skipped


@pytest.mark.parametrize(("name", "text"), [("train.tsv", "a\tb\nc\n"), ("train.jsonl", '{"text": "a"}\n')])
def test_custom_task_rejects_a_file_without_valid_rows(name: str, text: str, tmp_path: Path) -> None:
    write(tmp_path, text if name.endswith("l") else text.replace("a\tb", "text\tlabel"), name)
    task = Task("custom", ("text",), "label", ("0", "1"), "accuracy")
    with pytest.raises(InputError, match=r"has no valid row\. First problem: .*line"):
        task.read(tmp_path, "train", skip_bad_rows=True)


@pytest.mark.parametrize("columns", [(), ("a", "b", "c")])
def test_custom_task_requires_one_or_two_text_columns(columns: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{len(columns)} text columns"):
        custom_task(tmp_path, columns, "label")


def test_custom_task_rejects_a_single_class(tmp_path: Path) -> None:
    write(tmp_path, "text\tlabel\nx\ta\ny\ta\n")
    with pytest.raises(InputError, match="one value only, 'a'"):
        custom_task(tmp_path, ("text",), "label")


def test_custom_task_rejects_hundreds_of_numeric_classes(tmp_path: Path) -> None:
    write(tmp_path, "text\tlabel\n" + "".join(f"x\t{i / 7}\n" for i in range(501)))
    with pytest.raises(InputError, match=r"501 different numbers in 501 rows: 0, .* and 491 more\. Add --regression"):
        custom_task(tmp_path, ("text",), "label")


def rows(labels: Sequence[object]) -> str:
    return "text\tlabel\n" + "".join(f"text {row}\t{label}\n" for row, label in enumerate(labels))


@pytest.mark.parametrize(
    "labels",
    [
        [round(row * 0.37 % 5, 2) for row in range(400)],
        [row % 41 / 10 + 1 for row in range(4000)],  # SICK's scores, ten rows each
        [row * 997 for row in range(90)],
        [*(row / 7 for row in range(60)), "unknown"],
    ],
    ids=["scores", "tenths", "prices", "one name among values"],
)
def test_custom_task_recommends_regression_for_a_column_of_values(labels: list[object], tmp_path: Path) -> None:
    write(tmp_path, rows(labels))
    with pytest.raises(
        InputError, match=r"train\.tsv: column 'label' has .* and \d+ more\. Add --regression$"
    ) as error:
        custom_task(tmp_path, ("text",), "label")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "labels",
    [
        [row % 77 for row in range(770)],  # class numbers of a large intent data set
        [row % 10 / 2 for row in range(40)],  # half stars
        [f"intent {row % 60}" for row in range(180)],
    ],
    ids=["numbers", "half stars", "names"],
)
def test_custom_task_accepts_many_classes_with_enough_rows(labels: list[object], tmp_path: Path) -> None:
    write(tmp_path, rows(labels))
    assert len(custom_task(tmp_path, ("text",), "label").labels) == len(set(labels))


def test_custom_task_rejects_a_label_column_of_free_text(tmp_path: Path) -> None:
    write(tmp_path, rows([f"remark {row}" for row in range(30)]))
    with pytest.raises(InputError, match=r"30 different values in 30 rows: .* and 20 more.*--label-column"):
        custom_task(tmp_path, ("text",), "label")


def test_custom_task_sorts_numeric_classes_and_merges_spellings(tmp_path: Path) -> None:
    write(tmp_path, rows(["10", "2.0", "2", "-1", "+10", "1e1", "other"]))
    task = custom_task(tmp_path, ("text",), "label")
    assert task.labels == ("-1", "2", "10", "other")
    assert task.read(tmp_path, "train").labels.tolist() == [2, 1, 1, 0, 2, 2, 3]


def test_read_maps_other_spellings_of_a_number_to_its_class(tmp_path: Path) -> None:
    """pandas writes numbers as floats if a cell of the column was empty, else as integers."""
    write(tmp_path, rows([1.0, 2.0, 3.0]))
    write(tmp_path, rows([1, 2, 1, 2]), "dev.tsv")
    task = custom_task(tmp_path, ("text",), "label")
    assert [task.labels[number] for number in task.read(tmp_path, "dev").labels] == ["1", "2", "1", "2"]


def test_custom_task_rejects_a_missing_label(tmp_path: Path) -> None:
    write(tmp_path, rows(["good", "", "bad", "NaN", "good"]))
    with pytest.raises(InputError, match=r"train\.tsv, line 3: column 'label' has no label"):
        custom_task(tmp_path, ("text",), "label")
    task = custom_task(tmp_path, ("text",), "label", skip_bad_rows=True)
    assert task.labels == ("bad", "good")
    assert len(task.read(tmp_path, "train", skip_bad_rows=True).skipped) == 2


def test_custom_task_ignores_labels_of_skipped_rows(tmp_path: Path) -> None:
    write(tmp_path, "text\tlabel\na\tgood\nb\tbad\n \tother\n")
    assert custom_task(tmp_path, ("text",), "label", skip_bad_rows=True).labels == ("bad", "good")


def test_custom_task_accepts_booleans_but_not_mixed_with_digits(tmp_path: Path) -> None:
    write(tmp_path, '{"text": "a", "label": true}\n{"text": "b", "label": "False"}\n', "train.jsonl")
    assert custom_task(tmp_path, ("text",), "label").labels == ("false", "true")
    write(tmp_path, '{"text": "a", "label": true}\n{"text": "b", "label": 1}\n', "train.jsonl")
    with pytest.raises(InputError, match=r"'true' \(.*line 1\) and '1' \(.*line 2\): write both classes as words"):
        custom_task(tmp_path, ("text",), "label")


def test_custom_task_accepts_the_positive_class_by_value(tmp_path: Path) -> None:
    write(tmp_path, rows(["2.0", "1.0", "2"]))
    assert custom_task(tmp_path, ("text",), "label", metric="f1", positive="1.0").labels == ("2", "1")


def test_custom_task_rejects_a_label_column_that_is_a_text_column(tmp_path: Path) -> None:
    write(tmp_path, rows(["a", "b"]))
    with pytest.raises(InputError, match="column 'text' is both text and label"):
        custom_task(tmp_path, ("text",), "text")


def test_custom_task_names_a_missing_column(tmp_path: Path) -> None:
    write(tmp_path, "text\tlabel\nx\ta\n")
    with pytest.raises(InputError, match=r"no column 'sentence'\. Columns: text, label"):
        custom_task(tmp_path, ("sentence",), "label")


def test_task_of_returns_the_task_of_the_checkpoint(checkpoint: Path, data_folder: Path) -> None:
    from berxit.train.checkpoint import load_checkpoint

    model, _ = load_checkpoint(checkpoint)
    assert task_of(model.config) == custom_task(data_folder, ("text",), "label")


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (("0", "1"), "1"),
        (("1", "0"), "1"),
        (("-1", "1"), "1"),
        (("0.0", "1.0"), "1.0"),
        (("No", "Yes"), "Yes"),
        (("true", "false"), "true"),
        (("positive", "negative"), "positive"),
        (("not_spam", "spam"), "spam"),
        (("equivalent", "not equivalent"), "equivalent"),
        (("Non-Toxic", "toxic"), "toxic"),
        (("bug", "no-bug"), "bug"),
        (("fraud", "ok"), None),
        (("ham", "spam"), None),
        (("1", "2"), None),
        (("nontoxic", "toxic"), "toxic"),
        (("notice", "ice"), None),
        (("nospam", "notspam"), None),
    ],
)
def test_obvious_positive(labels: tuple[str, str], positive: str | None) -> None:
    assert obvious_positive(labels) == obvious_positive(labels[::-1]) == positive


def test_custom_task_of_f1_requires_an_unambiguous_positive_class(tmp_path: Path) -> None:
    write(tmp_path, "text\tlabel\nx\tfraud\ny\tok\nz\tok\n")
    message = (
        r"f1 needs a positive class, and .*train\.tsv has 'fraud' and 'ok': add --positive 'fraud' or --positive 'ok'"
    )
    with pytest.raises(InputError, match=message):
        custom_task(tmp_path, ("text",), "label", metric="f1")
    for positive, labels, numbers in (("fraud", ("ok", "fraud"), [1, 0, 0]), ("ok", ("fraud", "ok"), [0, 1, 1])):
        task = custom_task(tmp_path, ("text",), "label", metric="f1", positive=positive)
        assert (task.positive, task.labels) == (positive, labels)
        assert task.read(tmp_path, "train").labels.tolist() == numbers
    with pytest.raises(InputError, match=r"--positive Fraud is not a class of .*: choose 'fraud' or 'ok'"):
        custom_task(tmp_path, ("text",), "label", metric="f1", positive="Fraud")


def test_custom_task_finds_an_obvious_positive_class(tmp_path: Path) -> None:
    write(tmp_path, "text\tlabel\nx\tspam\ny\tnot spam\n")
    assert custom_task(tmp_path, ("text",), "label", metric="f1").labels == ("not spam", "spam")
    write(tmp_path, "text\tlabel\nx\tyes\ny\tno\n")
    assert custom_task(tmp_path, ("text",), "label", metric="f1").positive == "yes"
    assert custom_task(tmp_path, ("text",), "label", metric="f1", positive="no").labels == ("yes", "no")


@pytest.mark.parametrize(("given", "positive"), [("1.0", "1"), ("+2", "2"), (" 2 ", "2")])
def test_custom_task_compares_positive_as_labels(given: str, positive: str, tmp_path: Path) -> None:
    write(tmp_path, "text\tlabel\nx\t1\ny\t2.0\n")
    assert custom_task(tmp_path, ("text",), "label", metric="f1", positive=given).positive == positive


@pytest.mark.parametrize(("metric", "regression"), [(None, False), ("accuracy", False), ("pearson", True)])
def test_custom_task_rejects_positive_without_f1(metric: str | None, regression: bool, tmp_path: Path) -> None:
    write(tmp_path, "text\tlabel\nx\t1\ny\t2\n")
    with pytest.raises(InputError, match="--positive 1 has no effect on"):
        custom_task(
            tmp_path,
            ("text",),
            "label",
            metric=metric,
            kind="regression" if regression else "classification",
            positive="1",
        )


def test_tasks_have_the_official_positive_class() -> None:
    assert {name: task.positive for name, task in TASKS.items() if task.positive} == {
        "mrpc": "equivalent",
        "qqp": "duplicate",
    }
