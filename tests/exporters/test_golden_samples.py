from __future__ import annotations

from pathlib import Path

import pytest

from berxit.exporters.golden_samples import of_every_length
from berxit.runtime.tokenization import Text, TextTokenizer


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_folder / "tokenizer.json", 64, 0)


@pytest.mark.parametrize(
    "samples",
    [
        ["a cat sat on the mat"],
        [" the cat", "stop", "play"],
        [("a cat", "a dog"), ("stop", "play")],
        [("the cat " * 40, "dog")],
    ],
)
def test_every_length_gets_a_sample(samples: list[Text], tokenizer: TextTokenizer) -> None:
    lengths = (8, 16, 32, 64)
    found = of_every_length(samples, lengths, tokenizer)
    assert found[: len(samples)] == samples
    padded_to = [min(length for length in lengths if length >= tokens) for tokens in tokenizer(found).lengths]
    assert sorted(set(padded_to)) == list(lengths)
    assert len(found) == len(samples) + len(lengths) - len(set(padded_to[: len(samples)]))
    assert 1 not in tokenizer(found).input_ids  # [UNK]: words stay whole


def test_a_language_without_blanks_is_cut_anywhere(tokenizer: TextTokenizer) -> None:
    found = of_every_length(["東京は日本の首都です"], (8, 16, 24, 32), tokenizer)
    places = [(tokens - 1) // 8 for tokens in tokenizer(found).lengths]
    assert sorted(places) == [0, 1, 2, 3]


def test_samples_that_are_enough_stay_as_they_are(tokenizer: TextTokenizer) -> None:
    assert of_every_length(["a cat"], (64,), tokenizer) == ["a cat"]


def test_a_length_that_no_text_has_is_left_out(tokenizer: TextTokenizer) -> None:
    assert of_every_length(["a cat"], (2, 8), tokenizer) == ["a cat"]
