from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.tokenization import Text, TextTokenizer, TokenBatch, checked_text

LONG = "the red cat sat on the big blue tree and the small dog ran under it"
TEXTS: list[Text] = ["the cat sat", LONG, "it was not play !", "Zebra"]
PAIRS: list[Text] = [("the cat", "a dog sat"), (LONG, "the cat"), ("the cat", LONG), (LONG, LONG), ("a", "a")]


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_folder / "tokenizer.json", 12, 0)


def transformers_says(folder: Path, texts: list[Text]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    first = [text if isinstance(text, str) else text[0] for text in texts]
    second = None if isinstance(texts[0], str) else [text[1] for text in texts]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return dict(
        tokenizer(
            first,
            second,
            truncation=True,
            max_length=12,
            padding=True,
            return_tensors="np",
            return_token_type_ids=True,
        )
    )


@pytest.mark.parametrize("texts", [TEXTS, PAIRS, TEXTS[:1], PAIRS[1:2]], ids=["texts", "pairs", "text", "pair"])
def test_ids_are_those_of_transformers(tokenizer: TextTokenizer, tokenizer_folder: Path, texts: list[Text]) -> None:
    expected = transformers_says(tokenizer_folder, texts)
    batch = tokenizer(texts)
    np.testing.assert_array_equal(batch.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(batch.token_type_ids, expected["token_type_ids"])
    np.testing.assert_array_equal(batch.attention_mask, expected["attention_mask"])


def test_a_pair_has_two_token_types(tokenizer: TextTokenizer) -> None:
    assert tokenizer([("the cat", "a dog sat")]).token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_arrays_are_int32(tokenizer: TextTokenizer) -> None:
    batch = tokenizer(["the cat", "a"])
    assert {a.dtype for a in (batch.input_ids, batch.token_type_ids, batch.attention_mask)} == {np.dtype(np.int32)}


def test_length_and_lengths(tokenizer: TextTokenizer) -> None:
    batch = tokenizer(["the cat", "a"])
    assert len(batch) == 2
    assert batch.lengths.tolist() == [4, 3]


def test_what_was_cut_is_told(tokenizer: TextTokenizer) -> None:
    ten, eleven = " ".join(["cat"] * 10), " ".join(["cat"] * 11)
    batch = tokenizer([ten, eleven, "cat"])
    assert batch.truncated == (False, True, False)
    assert batch.lengths.tolist() == [12, 12, 3]
    assert tokenizer([eleven]).truncated == (True,)


def test_what_was_cut_of_a_pair_is_told(tokenizer: TextTokenizer) -> None:
    assert tokenizer(PAIRS).truncated == (False, True, True, True, False)


def test_the_longer_half_of_a_pair_is_cut(tokenizer: TextTokenizer) -> None:
    whole = tokenizer(["the cat"]).input_ids[0].tolist()
    cut = tokenizer([("the cat", LONG)]).input_ids[0].tolist()
    assert cut[: len(whole)] == whole


def test_pad_fills_up_to_the_longest() -> None:
    batch = TokenBatch.pad([[5], [6, 7]], [[0], [0, 1]], 9)
    assert batch.input_ids.tolist() == [[5, 9], [6, 7]]
    assert batch.token_type_ids.tolist() == [[0, 0], [0, 1]]
    assert batch.attention_mask.tolist() == [[1, 0], [1, 1]]


def test_an_empty_batch_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match="the batch is empty"):
        tokenizer([])


def test_one_text_is_no_batch(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match="list of texts"):
        tokenizer("the cat")


@pytest.mark.parametrize("text", ["", " \t\n", ("the cat", ""), (" ", "the cat")])
def test_an_empty_text_is_refused(tokenizer: TextTokenizer, text: Text) -> None:
    with pytest.raises(InputError, match="the text is empty"):
        tokenizer([text])
    with pytest.raises(InputError, match="text 1 is empty"):
        tokenizer(["the cat", text])


@pytest.mark.parametrize("text", [None, 7, b"cat", ["a", "b"], ("a", 7), ("a", "b", "c"), ()])
def test_what_is_no_text_is_refused(tokenizer: TextTokenizer, text: Any) -> None:
    with pytest.raises(InputError, match=f"text 1 is {type(text).__name__}: give a str, or a tuple of two"):
        tokenizer(["the cat", text])


@pytest.mark.parametrize("texts", [[("the cat",)], [("the cat",), "a dog"]])
def test_a_tuple_of_one_is_refused(tokenizer: TextTokenizer, texts: Any) -> None:
    with pytest.raises(InputError, match="tuple of two"):
        tokenizer(texts)


@pytest.mark.parametrize("texts", [["cat \ud800"], ["a dog", "cat \ud800"]])
def test_half_a_character_is_refused(tokenizer: TextTokenizer, texts: list[Text]) -> None:
    """A lone surrogate, as a cut JSON escape leaves behind: no UTF-8 exists for it."""
    with pytest.raises(InputError, match="text"):
        tokenizer(texts)


@pytest.mark.parametrize("content", [b"", b'{"model": ', b"{}"])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BerxitError, match=r"cannot read tokenizer .*tokenizer\.json"):
        TextTokenizer(tmp_path / "tokenizer.json", 12, 0)


def test_rows_are_taken_without_padding_that_none_of_them_needs() -> None:
    batch = TokenBatch.pad([[5], [6, 7, 8, 9], [6, 7]], [[0], [0, 0, 1, 1], [0, 1]], 3, (False, True, False))
    some = batch.take(np.array([2, 0]))
    assert some.input_ids.tolist() == [[6, 7], [5, 3]]
    assert some.token_type_ids.tolist() == [[0, 1], [0, 0]]
    assert some.attention_mask.tolist() == [[1, 1], [1, 0]]
    assert some.truncated == (False, False)
    assert batch.take(np.array([1])).truncated == (True,)


@pytest.mark.parametrize("text", [" the cat", "the cat\n", "\u00a0the cat\u3000", "\x1c\tthe cat\u2029"])
def test_whitespace_around_a_text_is_stripped(tokenizer: TextTokenizer, text: str) -> None:
    assert checked_text(text, "it") == "the cat"
    assert checked_text((text, f" {text} "), "it") == ("the cat", "the cat")
    assert checked_text("\u200bthe\ufeff", "it") == "\u200bthe\ufeff"  # of no width, and no whitespace
    assert tokenizer([text]).input_ids.tolist() == tokenizer(["the cat"]).input_ids.tolist()
    assert tokenizer(["a", text]).input_ids.tolist() == tokenizer(["a", "the cat"]).input_ids.tolist()
