"""Summary of the data: counts, and a warning with the next step for each probable mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from berxit.runtime.examples import Examples
from berxit.runtime.tokenization import TextTokenizer
from berxit.train.data_summary import DataSummary, summarize
from berxit.train.pretrained import read_tokenizer
from berxit.train.tasks import Task
from berxit.train.tokenizing import saved_tokenizer

CATS = Task("custom", ("text",), "label", ("cat", "other"), "accuracy")
VALUES = Task("custom", ("text",), "label", (), "spearman", "regression")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return saved_tokenizer(read_tokenizer(str(tokenizer_folder)), str(tokenizer_folder), 8)


def examples(texts: list[str], labels: list[float] | list[int]) -> Examples:
    return Examples(list(texts), np.array(labels))


def summary(
    tokenizer: TextTokenizer, train: Examples, dev: Examples | None = None, task: Task = CATS, suffix: str = ".csv"
) -> DataSummary:
    splits = {"train": train, **({"dev": dev} if dev else {})}
    return summarize(task, splits, tokenizer, suffix, 8)


def numbered(count: int) -> list[str]:
    return [f"cat {'a ' * (row % 3)}{row}" for row in range(count)]


def test_summary_counts_rows_classes_and_repeated_texts(tokenizer: TextTokenizer) -> None:
    train = examples([*numbered(16), "cat 3", "the dog", "the dog", "cat " * 9], [0] * 12 + [1] * 8)
    dev = examples(["cat 3", "the tree", "a tree", "cat 0"], [0, 1, 1, 1])
    found = summary(tokenizer, train, dev)
    first, second = found.splits
    assert (first.rows, first.classes, first.repeated) == (20, {"cat": 12, "other": 8}, 2)
    assert (second.rows, second.in_train) == (4, 2)
    assert (first.truncated, second.truncated) == (pytest.approx(1 / 20), 0.0)
    text = str(found)
    assert "| class cat             | 12 (60%) | 1 (25%) |" in text
    assert "warning: 2 rows of dev (50.0%) have a text that train contains, too" in text


@pytest.mark.parametrize(
    ("task", "labels", "texts", "suffix", "expected"),
    [
        (CATS, [0] * 10 + [1] * 10, numbered(20), ".csv", []),
        (
            Task("custom", ("text",), "label", tuple("0123456"), "accuracy"),
            [0, 1, 2, 3, 4, 5, 6] * 6,
            numbered(42),
            ".csv",
            ["the labels are 7 different numbers: if their order matters, add --regression"],
        ),
        (
            VALUES,
            [0.0, 1.0] * 10,
            numbered(20),
            ".csv",
            ["the labels have 2 values only: for classes, omit --regression"],
        ),
        (
            Task("custom", ("text",), "label", ("cat", "label", "other"), "accuracy"),
            [0] * 6 + [2] * 6 + [1],
            numbered(13),
            ".csv",
            [
                "class 'label' has the name of a column: a second header line may be among the rows",
                "fewer than 5 training rows: label (1)",
                "the largest class has 6 times the rows of the smallest, and accuracy hides the small one: consider"
                " --class-weights balanced and --metric macro-f1",
            ],
        ),
        (
            Task("custom", ("text",), "label", ("Not_cat", "cat", "not cat"), "macro-f1"),
            [0, 1, 2] * 9,
            numbered(27),
            ".csv",
            ["classes Not_cat, not cat differ only in their spelling: use one of them"],
        ),
        (Task("custom", ("text",), "label", ("-1", "1"), "accuracy"), [0, 1] * 9, numbered(18), ".csv", []),
        (Task("custom", ("text",), "label", ("A", "A-", "A+"), "accuracy"), [0, 1, 2] * 9, numbered(27), ".csv", []),
        (CATS, [0] * 20, numbered(20), ".csv", ["no training row has class other"]),
        (
            CATS,
            [0, 1] * 10,
            [f'"the cat {row}"' for row in range(20)],
            ".tsv",
            ["100% of the texts are in quotation marks, which TSV keeps: save the file as CSV"],
        ),
        (
            CATS,
            [0, 1] * 10,
            [f"cat {row // 2}" for row in range(20)],
            ".csv",
            ["10 texts of train occur with different labels: check these rows"],
        ),
        (
            CATS,
            [0, 1] * 10,
            ["cat " * 9 + str(row) for row in range(20)],
            ".csv",
            [
                "100% of the texts of train are truncated at 8 tokens: a larger --max-length keeps more of them, and is"
                " slower"
            ],
        ),
    ],
)
def test_summary_warns_of_probable_mistakes(
    task: Task, labels: list, texts: list[str], suffix: str, expected: list[str], tokenizer: TextTokenizer
) -> None:
    assert list(summary(tokenizer, examples(texts, labels), task=task, suffix=suffix).warnings()) == expected


def test_summary_of_many_classes_lists_the_most_frequent_and_the_rarest(tokenizer: TextTokenizer) -> None:
    names = tuple(f"c{number:02}" for number in range(30))
    labels = [number for number in range(30) for _ in range(35 - number)]
    found = summary(
        tokenizer, examples(numbered(len(labels)), labels), task=Task("custom", ("text",), "label", names, "accuracy")
    )
    listed = [line.split()[2] for line in found.table().splitlines() if line.startswith("| class")]
    assert listed == [*names[:10], *names[20:]]
    assert "10 more classes" in found.table()
