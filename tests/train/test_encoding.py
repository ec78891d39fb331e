"""Examples as the model takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase

from berxit.runtime.examples import Examples
from berxit.train import encoding
from berxit.train.encoding import EncodedExamples


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tokenizer_folder)


def test_single_texts_become_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = EncodedExamples(Examples(["the cat", "a big red dog"], np.array([1, 0])), tokenizer, 16)
    first = encoded[0]
    words = tokenizer.convert_ids_to_tokens(first["input_ids"])
    assert words == ["[CLS]", "the", "cat", "[SEP]"]
    assert first["attention_mask"] == [1, 1, 1, 1]
    assert first["token_type_ids"] == [0, 0, 0, 0]
    assert len(encoded) == 2
    assert encoded.lengths == [4, 6]


def test_pairs_stand_in_two_segments(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = EncodedExamples(Examples([("the cat", "sat")], np.array([1])), tokenizer, 16)
    assert tokenizer.convert_ids_to_tokens(encoded[0]["input_ids"]) == ["[CLS]", "the", "cat", "[SEP]", "sat", "[SEP]"]
    assert encoded[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_long_texts_are_cut_and_keep_their_end_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = EncodedExamples(Examples(["the cat sat on the mat"], np.array([1])), tokenizer, 5)
    assert tokenizer.convert_ids_to_tokens(encoded[0]["input_ids"]) == ["[CLS]", "the", "cat", "sat", "[SEP]"]


@pytest.mark.parametrize(("labels", "dtype"), [([1, 0], torch.int64), ([0.5, 2.0], torch.float32)])
def test_labels_keep_their_kind(labels: list, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = EncodedExamples(Examples(["the cat", "a dog"], np.array(labels)), tokenizer, 16)
    batch = DataCollatorWithPadding(tokenizer)([encoded[0], encoded[1]])
    assert batch["labels"].dtype == dtype
    assert batch["labels"].tolist() == labels


def test_a_batch_is_padded_to_its_own_longest_row(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the cat", "a big red dog", "the cat sat on the mat"]
    encoded = EncodedExamples(Examples(texts, np.array([1, 0, 1])), tokenizer, 16)
    batch = DataCollatorWithPadding(tokenizer)([encoded[0], encoded[1]])
    assert batch["input_ids"].shape == (2, 6)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 4:].tolist() == [tokenizer.pad_token_id] * 2


def test_many_rows_are_tokenised_in_parts_and_tell_how_far_it_is(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    @contextmanager
    def bar(length: int) -> Iterator[object]:
        told.append(length)
        yield type("Bar", (), {"update": lambda self, n: told.append(n)})()

    examples = Examples([("the cat", "sat"), ("a dog", "ran"), ("a big red dog", "is blue")], np.array([1, 0, 1]))
    whole = EncodedExamples(examples, tokenizer, 16, bar)
    assert told == []  # so few take no time
    monkeypatch.setattr(encoding, "CHUNK", 2)
    parts = EncodedExamples(examples, tokenizer, 16, bar)
    assert told == [3, 2, 1]
    assert [parts[row]["input_ids"] for row in range(3)] == [whole[row]["input_ids"] for row in range(3)]
    assert parts.lengths == whole.lengths
