"""The sample data that the quickstart trains on."""

from __future__ import annotations

import json
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
def test_splits_are_balanced(split: str) -> None:
    rows = rows_of(split)
    counts = Counter(label for _, label in rows)
    assert len(rows) == ROWS[split]
    assert len(counts) == 12
    assert set(counts.values()) == {ROWS[split] // 12}


def test_sample_has_at_least_1500_rows() -> None:
    assert sum(len(rows_of(split)) for split in ROWS) >= 1500


def test_utterances_are_unique() -> None:
    counts = Counter(fold(text) for split in ROWS for text, _ in rows_of(split))
    assert [text for text, count in counts.items() if count > 1] == []


def test_splits_have_the_same_intents() -> None:
    intents = [{label for _, label in rows_of(split)} for split in ROWS]
    assert intents[0] == intents[1] == intents[2]


def test_texts_have_the_form_of_speech_recognition() -> None:
    for split in ROWS:
        for text, _ in rows_of(split):
            assert text == text.strip().lower()
            assert text[-1].isalnum()


def test_readme_states_the_number_of_rows() -> None:
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for split, rows in ROWS.items():
        assert f"| {split}.tsv | {rows:,} | {rows // 12} |" in readme


def test_heads_are_the_intent_and_the_first_span_of_time() -> None:
    for split in ROWS:
        heads = [tuple(row.values()) for _, row in read_rows(SAMPLE / f"heads/{split}.tsv", ("text", "intent", "when"))]
        spans = [json.loads(line)["spans"] for line in (SAMPLE / f"slots/{split}.jsonl").open(encoding="utf-8")]
        times = [[name for *_, name in row if name in ("date", "time", "duration")] for row in spans]
        expected = [(*row, *[*found, "none"][:1]) for row, found in zip(rows_of(split), times, strict=True)]
        assert heads == expected


def test_multilabel_rows_have_the_types_of_their_slots() -> None:
    for split in ROWS:
        slots, sets = (
            [json.loads(line) for line in (SAMPLE / f"{folder}/{split}.jsonl").open(encoding="utf-8")]
            for folder in ("slots", "multilabel")
        )
        expected = [{"text": row["text"], "labels": sorted({name for *_, name in row["spans"]})} for row in slots]
        assert sets == expected
