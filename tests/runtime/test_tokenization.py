from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import shared
from tokenizers import AddedToken, Tokenizer

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.tokenization import (
    COUNTED_CHARACTERS_PER_TOKEN,
    Text,
    TextTokenizer,
    TokenBatch,
    checked_text,
)

LONG = "the red cat sat on the big blue tree and the small dog ran under it"
TEXTS: list[Text] = ["the cat sat", LONG, "it was not play !", "Zebra"]
PAIRS: list[Text] = [("the cat", "a dog sat"), (LONG, "the cat"), ("the cat", LONG), (LONG, LONG), ("a", "a")]


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_folder / "tokenizer.json", 12, 0)


def transformers_says(folder: Path, texts: list[Text]) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    first = [text if isinstance(text, str) else text[0] for text in texts]
    second = None if isinstance(texts[0], str) else [text[1] for text in texts]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
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
def test_token_ids_equal_those_of_transformers(
    tokenizer: TextTokenizer, tokenizer_folder: Path, texts: list[Text]
) -> None:
    expected = transformers_says(tokenizer_folder, texts)
    batch = tokenizer(texts)
    np.testing.assert_array_equal(batch.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(batch.token_type_ids, expected["token_type_ids"])
    np.testing.assert_array_equal(batch.attention_mask, expected["attention_mask"])


def test_tokenizer_sets_token_types_of_pair(tokenizer: TextTokenizer) -> None:
    assert tokenizer([("the cat", "a dog sat")]).token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_token_batch_arrays_are_int32(tokenizer: TextTokenizer) -> None:
    batch = tokenizer(["the cat", "a"])
    assert {a.dtype for a in (batch.input_ids, batch.token_type_ids, batch.attention_mask)} == {np.dtype(np.int32)}


def test_token_batch_length_and_lengths(tokenizer: TextTokenizer) -> None:
    batch = tokenizer(["the cat", "a"])
    assert len(batch) == 2
    assert batch.lengths.tolist() == [4, 3]


def test_tokenizer_reports_truncated_texts(tokenizer: TextTokenizer) -> None:
    ten, eleven = " ".join(["cat"] * 10), " ".join(["cat"] * 11)
    batch = tokenizer([ten, eleven, "cat"])
    assert batch.truncated == (False, True, False)
    assert batch.lengths.tolist() == [12, 12, 3]
    assert tokenizer([eleven]).truncated == (True,)


def test_tokenizer_reports_truncated_pair(tokenizer: TextTokenizer) -> None:
    assert tokenizer(PAIRS).truncated == (False, True, True, True, False)


def test_tokenizer_truncates_longer_text_of_pair(tokenizer: TextTokenizer) -> None:
    whole = tokenizer(["the cat"]).input_ids[0].tolist()
    cut = tokenizer([("the cat", LONG)]).input_ids[0].tolist()
    assert cut[: len(whole)] == whole


def test_pad_fills_rows_to_longest() -> None:
    batch = TokenBatch.pad([[5], [6, 7]], [[0], [0, 1]], 9)
    assert batch.input_ids.tolist() == [[5, 9], [6, 7]]
    assert batch.token_type_ids.tolist() == [[0, 0], [0, 1]]
    assert batch.attention_mask.tolist() == [[1, 0], [1, 1]]


def test_tokenizer_rejects_empty_batch(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match="the batch is empty"):
        tokenizer([])


def test_tokenizer_rejects_str_as_batch(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match="list of texts"):
        tokenizer("the cat")


@pytest.mark.parametrize("text", ["", " \t\n", ("the cat", ""), (" ", "the cat")])
def test_tokenizer_rejects_empty_text(tokenizer: TextTokenizer, text: Text) -> None:
    with pytest.raises(InputError, match="the text is empty"):
        tokenizer([text])
    with pytest.raises(InputError, match="text 1 is empty"):
        tokenizer(["the cat", text])


@pytest.mark.parametrize("text", [None, 7, b"cat", ["a", "b"], ("a", 7), ("a", "b", "c"), ()])
def test_tokenizer_rejects_elements_that_are_not_text(tokenizer: TextTokenizer, text: Any) -> None:
    with pytest.raises(InputError, match=f"text 1 is {type(text).__name__}: give a str, or a tuple of two"):
        tokenizer(["the cat", text])


@pytest.mark.parametrize("texts", [[("the cat",)], [("the cat",), "a dog"]])
def test_tokenizer_rejects_tuple_of_one(tokenizer: TextTokenizer, texts: Any) -> None:
    with pytest.raises(InputError, match="tuple of two"):
        tokenizer(texts)


@pytest.mark.parametrize("texts", [["cat \ud800"], ["a dog", "cat \ud800"]])
def test_tokenizer_rejects_lone_surrogate(tokenizer: TextTokenizer, texts: list[Text]) -> None:
    """A truncated JSON escape results in a lone surrogate, which has no UTF-8 encoding."""
    with pytest.raises(InputError, match="text"):
        tokenizer(texts)


@pytest.mark.parametrize("content", [b"", b'{"model": ', b"{}"])
def test_tokenizer_rejects_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BerxitError, match=r"cannot read tokenizer .*tokenizer\.json"):
        TextTokenizer(tmp_path / "tokenizer.json", 12, 0)


def test_take_removes_unneeded_padding() -> None:
    batch = TokenBatch.pad([[5], [6, 7, 8, 9], [6, 7]], [[0], [0, 0, 1, 1], [0, 1]], 3, (False, True, False))
    some = batch.take(np.array([2, 0]))
    assert some.input_ids.tolist() == [[6, 7], [5, 3]]
    assert some.token_type_ids.tolist() == [[0, 1], [0, 0]]
    assert some.attention_mask.tolist() == [[1, 1], [1, 0]]
    assert some.truncated == (False, False)
    assert batch.take(np.array([1])).truncated == (True,)


# Long texts: only a prefix is tokenized, and the ids equal those of the library's truncation.

VECTORS = Path(__file__).resolve().parents[2] / "tests" / "runners" / "vectors"
KINDS = (
    "bert",
    "mpnet",
    "roberta",
    "albert",
    "unigram",
    pytest.param("mmbert", marks=pytest.mark.slow),
)  # WordPiece, byte-level BPE, Unigram with and without word boundaries, BPE without
UNITS = (
    *("the ", "quick", "brown fox ", "don", "'", "'re", "0123456789", "!?...", "''", "``", "aaaa", "abababab", "x"),
    *("  ", "\t", "\n\n", " \r\n", "\u00a0", "\x00", "\u200b", "\u200d", "\ufeff"),
    *("é", "e\u0301", "\u0301\u0323", "ß", "ﬁ", "½", "İ", "ΣΊΣ", "か\u3099", "\u0600", "👩‍🚀", "🇫🇷"),
    *("日本語", "中文", "한국어", "हिन्दी", "العَرَبِيَّة"),
    *("[SEP]", "<mask>", "[MASK]", " <mask> ", "</s>"),
)


def library(kind: str, max_length: int | None) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(VECTORS / f"{kind}.json"))
    tokenizer.no_padding()
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def random_text(rng: random.Random) -> str:
    size = rng.choice([5, 60, 400])
    return rng.choice(
        [
            "".join(rng.choice(UNITS) for _ in range(size)),
            "".join(rng.choice(few) for few in [rng.sample(UNITS, 3)] for _ in range(size)),
            rng.choice(UNITS) * 3 * size,
            " ".join("a" * rng.choice([1, 12, 99, 101, 300]) for _ in range(size // 3 + 1)),
            " " * rng.choice([0, 900]) + rng.choice(UNITS) * size + " " * rng.choice([0, 900]) + "the cat " * size,
            "".join(chr(rng.choice([rng.randrange(0x20, 0x3000), rng.randrange(0x4E00, 0xD7A3)])) for _ in range(size)),
        ]
    )


def assert_as_library(ours: TextTokenizer, theirs: Tokenizer, text: Text) -> None:
    batch = ours([text])
    stripped = checked_text(text, "the text")
    expected = theirs.encode(*(stripped if isinstance(stripped, tuple) else (stripped,)))
    assert batch.input_ids[0].tolist() == expected.ids
    assert batch.token_type_ids[0].tolist() == expected.type_ids
    assert batch.truncated == (bool(expected.overflowing),)


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_of_random_texts_equal_library_truncation(kind: str) -> None:
    rng = random.Random(kind)
    for max_length in (16, 33):
        ours, theirs = TextTokenizer(VECTORS / f"{kind}.json", max_length, 0), library(kind, max_length)
        for _ in range(60):
            assert_as_library(ours, theirs, random_text(rng) + "x")


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_of_random_pairs_equal_library_truncation(kind: str) -> None:
    rng = random.Random(kind)
    for max_length in (16, 33):
        ours, theirs = TextTokenizer(VECTORS / f"{kind}.json", max_length, 0), library(kind, max_length)
        for _ in range(15):
            size = COUNTED_CHARACTERS_PER_TOKEN * max_length
            assert_as_library(ours, theirs, (random_text(rng)[1 - size :] + "x", random_text(rng)[-500:] + "x"))


def test_text_of_more_characters_counts_as_the_longer_if_one_is_too_long_to_count(tokenizer_folder: Path) -> None:
    """Three tokens fit, and the odd one goes to the longer text: by tokens up to 192 characters, then by characters."""
    tokenizer, blanks = TextTokenizer(tokenizer_folder / "tokenizer.json", 6, 0), " " * 100
    short, long = (f"the{blanks}the the the", f"the{blanks}the{blanks}the the")
    batch = tokenizer([("the " * 10, short), ("the " * 10, long)])
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        "the cat sat on the mat " * 4000,
        "ab" * 50_000,
        "日本語と中文" * 15_000,
        "a" + " " * 100_000 + "the cat",
        "the\u200b" * 25_000,
        "c" * 100_000 + " the cat " * 20,
    ],
    ids=["words", "one_word", "no_spaces", "blanks", "shrinking", "long_word_first"],
)
def test_token_ids_of_100_kb_equal_library_truncation(kind: str, text: str) -> None:
    ours, theirs = TextTokenizer(VECTORS / f"{kind}.json", 64, 0), library(kind, 64)
    assert_as_library(ours, theirs, text)


def test_token_ids_of_real_texts_equal_library_truncation() -> None:
    folder = shared("models/bge-small-en")
    lines = shared("data/MRPC/dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    sentences = [row[3] for row in rows if len(row) == 5]
    long = [" ".join(sentences[start : start + 40]) for start in range(0, 200, 40)]
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_padding()
    for max_length in (24, 512):
        theirs.enable_truncation(max_length)
        ours = TextTokenizer(folder / "tokenizer.json", max_length, 0)
        texts: list[Text] = [*sentences[:50], *long, *zip(sentences[:50], sentences[50:100], strict=True)]
        texts += [(long[0], sentences[0]), (sentences[0], long[0])]
        for text in texts:
            assert_as_library(ours, theirs, text)


def test_tokenizer_reads_prefix_per_row() -> None:
    tokenizer = TextTokenizer(VECTORS / "bert.json", 16, 0)
    texts: list[Text] = ["the cat", "the cat sat " * 5000, " " * 9000 + "the cat", ("a " * 5000, "b"), "x" * 5000]
    batch = tokenizer(texts)
    for row, text in enumerate(texts):
        alone = tokenizer([text])
        assert batch.input_ids[row, : batch.lengths[row]].tolist() == alone.input_ids[0].tolist()
        assert batch.truncated[row] == alone.truncated[0]


@pytest.mark.parametrize(("first", "second", "more"), [(401, 400, 0), (400, 401, 1), (400, 400, 1)])
@pytest.mark.parametrize("blanks", [0, 600], ids=["tokens_counted", "characters_counted"])
def test_odd_token_of_long_pair_goes_to_longer_text(first: int, second: int, more: int, blanks: int) -> None:
    """If the tokens of long texts are not counted, the text with more characters is the longer one."""
    pair = ("a " * first + " " * blanks, "a " * second + " " * blanks)
    types = TextTokenizer(VECTORS / "bert.json", 16, 0)([pair]).token_type_ids[0].tolist()
    words = [types.count(0) - 2, types.count(1) - 1]  # without [CLS] and [SEP]
    assert sum(words) == 13
    assert words[more] == 7


@pytest.mark.parametrize("pair", [False, True], ids=["text", "pair"])
def test_tokenizer_reads_bounded_number_of_characters(pair: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(VECTORS / "bert.json", 64, 0)
    read: list[int] = []
    encode = tokenizer._encode

    def counting(texts: list[Text]) -> Any:
        read.append(sum(len(part) for text in texts for part in (text if isinstance(text, tuple) else (text,))))
        return encode(texts)

    monkeypatch.setattr(tokenizer, "_encode", counting)
    totals = []
    for size in (10_000, 100_000, 1_000_000):
        read.clear()
        text = ("the cat sat " * size)[:size]
        tokenizer([(text, text) if pair else text])
        totals.append(sum(read))
    assert totals[0] == totals[1] == totals[2] < 3000


def test_tokenizer_stops_reading_at_deadline() -> None:
    tokenizer = TextTokenizer(VECTORS / "bert.json", 64, 0)
    text = "\u200b" * 1_000_000 + "the cat"
    assert tokenizer([text], time.perf_counter()).truncated == (True,)
    whole = tokenizer([text])
    assert whole.truncated == (False,)
    assert whole.input_ids.tolist() == tokenizer(["the cat"]).input_ids.tolist()


def test_tokenizer_reads_short_text_after_deadline() -> None:
    batch = TextTokenizer(VECTORS / "bert.json", 64, 0)(["the cat"], 0.0)
    assert batch.truncated == (False,)
    assert batch.lengths.tolist() == TextTokenizer(VECTORS / "bert.json", 64, 0)(["the cat"]).lengths.tolist()


def test_tokenizer_releases_gil_for_long_text() -> None:
    """The library holds the global interpreter lock in ``encode``; a long prefix is tokenized without the lock."""
    tokenizer = TextTokenizer(VECTORS / "bert.json", 64, 0)
    done = threading.Event()
    ticks = 0

    def work() -> None:
        tokenizer(["\u200b" * 2_000_000 + "the cat"])
        done.set()

    thread = threading.Thread(target=work)
    start = time.perf_counter()
    thread.start()
    while not done.is_set():
        time.sleep(1e-3)
        ticks += 1
    thread.join()
    seconds = time.perf_counter() - start
    assert ticks > 20 * seconds, f"{ticks} turns of another thread in {seconds:.2f} s"


@pytest.mark.parametrize("text", [" the cat", "the cat\n", "\u00a0the cat\u3000", "\x1c\tthe cat\u2029"])
def test_tokenizer_strips_surrounding_whitespace(tokenizer: TextTokenizer, text: str) -> None:
    assert checked_text(text, "it") == "the cat"
    assert checked_text((text, f" {text} "), "it") == ("the cat", "the cat")
    assert checked_text("\u200bthe\ufeff", "it") == "\u200bthe\ufeff"  # zero-width characters are not whitespace
    assert tokenizer([text]).input_ids.tolist() == tokenizer(["the cat"]).input_ids.tolist()
    assert tokenizer(["a", text]).input_ids.tolist() == tokenizer(["a", "the cat"]).input_ids.tolist()


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        (["\u0301"], r"'\\u0301' is empty"),
        (["\u200d"], r"'\\u200d' is empty"),
        (["Zoo", "zoó"], r"'zo\\xf3' equals 'Zoo'"),
    ],
)
def test_added_tokens_with_arbitrary_ids_are_rejected(
    tokenizer_folder: Path, tmp_path: Path, contents: list[str], problem: str
) -> None:
    """The library matches an empty token between all characters, and chooses one of two equal ones at random."""
    for normalized in (True, False):
        changed = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
        changed.add_tokens([AddedToken(content, normalized=normalized) for content in contents])
        changed.save(str(tmp_path / "tokenizer.json"))
        if normalized:
            with pytest.raises(BerxitError, match=rf"the added token {problem} after normalization\. Remove it"):
                TextTokenizer(tmp_path / "tokenizer.json", 12, 0)
        else:
            before = TextTokenizer(tokenizer_folder / "tokenizer.json", 12, 0)(["the cat"])
            after = TextTokenizer(tmp_path / "tokenizer.json", 12, 0)(["the cat"])
            np.testing.assert_array_equal(after.input_ids, before.input_ids)
