"""The sample data that the quickstart trains on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from berxit import toolkit
from berxit.runtime.examples import read_rows

SAMPLE = Path(toolkit.__file__).parent / "sample"
ROWS = {"train": 1344, "dev": 288, "test": 288}


def rows_of(split: str) -> list[tuple[str, str]]:
    return [(row["text"], row["label"]) for _, row in read_rows(SAMPLE / f"{split}.tsv", ("text", "label"))]


def fold(text: str) -> str:
    return " ".join(text.casefold().split())


@pytest.mark.parametrize("split", ROWS)
def test_a_split_has_its_rows_in_balance(split: str) -> None:
    rows = rows_of(split)
    counts = Counter(label for _, label in rows)
    assert len(rows) == ROWS[split]
    assert len(counts) == 12
    assert set(counts.values()) == {ROWS[split] // 12}


def test_there_are_at_least_1500_rows() -> None:
    assert sum(len(rows_of(split)) for split in ROWS) >= 1500


def test_no_utterance_stands_twice() -> None:
    counts = Counter(fold(text) for split in ROWS for text, _ in rows_of(split))
    assert [text for text, count in counts.items() if count > 1] == []


def test_every_split_has_the_same_intents() -> None:
    intents = [{label for _, label in rows_of(split)} for split in ROWS]
    assert intents[0] == intents[1] == intents[2]


def test_texts_read_as_a_speech_recogniser_prints_them() -> None:
    for split in ROWS:
        for text, _ in rows_of(split):
            assert text == text.strip().lower()
            assert text[-1].isalnum()


def test_the_readme_counts_the_same_rows() -> None:
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for split, rows in ROWS.items():
        assert f"| {split}.tsv | {rows:,} | {rows // 12} |" in readme
