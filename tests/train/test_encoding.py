"""Tokenized examples and batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tokenizers import Tokenizer

from berxit.runtime.examples import Examples
from berxit.runtime.tokenization import TextTokenizer
from berxit.train import encoding
from berxit.train.encoding import EncodedExamples


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_folder / "tokenizer.json", 16, 0)


def tokens(folder: Path, ids: npt.NDArray) -> list[str | None]:
    return [Tokenizer.from_file(str(folder / "tokenizer.json")).id_to_token(int(token)) for token in ids]


def test_encoded_examples_contain_the_ids_of_single_texts(tokenizer: TextTokenizer, tokenizer_folder: Path) -> None:
    encoded = EncodedExamples(Examples(["the cat", "a big red dog"], np.array([1, 0])), tokenizer)
    first = encoded[0]
    assert tokens(tokenizer_folder, first["input_ids"]) == ["[CLS]", "the", "cat", "[SEP]"]
    assert first["token_type_ids"].tolist() == [0, 0, 0, 0]
    assert encoded.collate([first])["attention_mask"].tolist() == [[1, 1, 1, 1]]
    assert len(encoded) == 2
    assert encoded.lengths == [4, 6]


def test_encoded_examples_of_pairs_have_two_token_types(tokenizer: TextTokenizer, tokenizer_folder: Path) -> None:
    encoded = EncodedExamples(Examples([("the cat", "sat")], np.array([1])), tokenizer)
    expected = ["[CLS]", "the", "cat", "[SEP]", "sat", "[SEP]"]
    assert tokens(tokenizer_folder, encoded[0]["input_ids"]) == expected
    assert encoded[0]["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]


def test_encoded_examples_truncate_long_texts_before_the_end_token(tokenizer_folder: Path) -> None:
    short = TextTokenizer(tokenizer_folder / "tokenizer.json", 5, 0)
    encoded = EncodedExamples(Examples(["the cat sat on the mat"], np.array([1])), short)
    assert tokens(tokenizer_folder, encoded[0]["input_ids"]) == ["[CLS]", "the", "cat", "sat", "[SEP]"]


@pytest.mark.parametrize(("labels", "dtype"), [([1, 0], torch.int64), ([0.5, 2.0], torch.float32)])
def test_collate_keeps_the_dtype_of_labels(labels: list, dtype: torch.dtype, tokenizer: TextTokenizer) -> None:
    encoded = EncodedExamples(Examples(["the cat", "a dog"], np.array(labels)), tokenizer)
    batch = encoded.collate([encoded[0], encoded[1]])
    assert batch["labels"].dtype == dtype
    assert batch["labels"].tolist() == labels


def test_collate_pads_to_the_longest_row_of_the_batch(tokenizer: TextTokenizer) -> None:
    texts = ["the cat", "a big red dog", "the cat sat on the mat"]
    encoded = EncodedExamples(Examples(texts, np.array([1, 0, 1])), tokenizer)
    batch = encoded.collate([encoded[0], encoded[1]])
    assert batch["input_ids"].shape == (2, 6)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 4:].tolist() == [tokenizer.pad_token_id] * 2


def test_encoded_examples_tokenize_large_data_in_parts_with_progress(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[int] = []

    @contextmanager
    def bar(length: int) -> Iterator[object]:
        updates.append(length)
        yield type("Bar", (), {"update": lambda self, n: updates.append(n)})()

    examples = Examples([("the cat", "sat"), ("a dog", "ran"), ("a big red dog", "is blue")], np.array([1, 0, 1]))
    whole = EncodedExamples(examples, tokenizer, bar)
    assert updates == []  # Few rows show no progress.
    monkeypatch.setattr(encoding, "CHUNK", 2)
    parts = EncodedExamples(examples, tokenizer, bar)
    assert updates == [3, 2, 1]
    assert [parts[row]["input_ids"].tolist() for row in range(3)] == [ids.tolist() for ids in whole.input_ids]
    assert parts.lengths == whole.lengths
