"""Tokenization with the bundle's tokenizer.json; the token ids equal those of training."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from berxit.runtime.bundle_files import BundleFile
from berxit.runtime.errors import BerxitError, InputError, failure
from berxit.runtime.spans import Words

Text = str | tuple[str, str]
"""One text, or a pair of texts."""
CHARACTERS_PER_TOKEN = 6
"""Length of the first prefix of a long text, in characters per token of ``max_length``. Most texts have fewer
characters per token."""
COUNTED_CHARACTERS_PER_TOKEN = 32
"""Largest length of the texts of a pair whose tokens are all counted, in characters per token of ``max_length``. The
count decides which text gets the odd token."""
GROWTH = 2
"""Growth factor of the prefix of a long text; it grows until it contains enough tokens."""
LARGEST_GROWTH = 64
"""Largest factor by which the insertions of a normalizer may make a text longer. Real ones have 2."""
TOKEN_TYPES = 2
"""Token types of BERT-family models: that of the first and of the second text."""
FURTHER_CUTS = (1, 2, 3)
"""Numbers of characters by which the prefix of a text without word boundaries is shortened to confirm its tokens."""


@dataclass(frozen=True)
class TokenBatch:
    """B rows padded on the right to S tokens, int32."""

    input_ids: npt.NDArray[np.int32]
    """(B, S)"""
    token_type_ids: npt.NDArray[np.int32]
    """(B, S)"""
    attention_mask: npt.NDArray[np.int32]
    """(B, S) 1 for a token, 0 for padding."""
    truncated: tuple[bool, ...] = ()
    """(B,) True for each text that was truncated to the model's maximum length."""
    words: tuple[Words, ...] = ()
    """(B,) the words of each text; empty unless the model labels words."""

    @classmethod
    def pad(
        cls,
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]],
        pad_token_id: int,
        truncated: tuple[bool, ...] = (),
        words: tuple[Words, ...] = (),
    ) -> TokenBatch:
        """Batch of rows of different lengths, padded to the longest."""
        shape = (len(input_ids), max(len(ids) for ids in input_ids))
        ids = np.full(shape, pad_token_id, dtype=np.int32)
        types = np.zeros(shape, dtype=np.int32)
        mask = np.zeros(shape, dtype=np.int32)
        for row, (row_ids, row_types) in enumerate(zip(input_ids, token_type_ids, strict=True)):
            ids[row, : len(row_ids)] = row_ids
            types[row, : len(row_ids)] = row_types
            mask[row, : len(row_ids)] = 1
        return cls(ids, types, mask, truncated, words)

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: npt.NDArray[np.integer]) -> TokenBatch:
        """Batch of the given rows, in the given order, padded to the longest of them."""
        here = np.ix_(rows, np.arange(self.lengths[rows].max()))
        truncated = tuple(self.truncated[row] for row in rows) if self.truncated else ()
        words = tuple(self.words[row] for row in rows) if self.words else ()
        return TokenBatch(self.input_ids[here], self.token_type_ids[here], self.attention_mask[here], truncated, words)

    @property
    def places(self) -> npt.NDArray[np.int64] | None:
        """(B, W) positions of the first tokens of the words, -1 after the last word; None without words."""
        if not self.words:
            return None
        found = np.full((len(self.words), max([1, *(len(each.tokens) for each in self.words)])), -1, dtype=np.int64)
        for row, each in enumerate(self.words):
            found[row, : len(each.tokens)] = each.tokens
        return found

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(B,) tokens per row without padding."""
        return self.attention_mask.sum(axis=1)


class TokenRow(NamedTuple):
    """One tokenized text."""

    input_ids: list[int]
    token_type_ids: list[int]
    truncated: bool
    words: Words | None


class TextTokenizer:
    """Tokenizes texts and pairs, and truncates them to ``max_length`` tokens, the longer text of a pair first.

    Time and memory are bounded by ``max_length``, not by the length of the text: only a prefix is tokenized. The prefix
    grows until the first ``max_length`` tokens cannot depend on the rest of the text. The whole text is tokenized only
    if it has few tokens for its length (a megabyte of blanks, one word of a megabyte).

    The ids equal those of the "longest_first" truncation of the tokenizers library, with one exception: if each text of
    a pair has more than ``max_length`` tokens and one has more than COUNTED_CHARACTERS_PER_TOKEN x ``max_length``
    characters, its tokens are not counted, and the odd token goes to the text with more characters. The truncation of
    the library is not used, because its cost for a pair is proportional to the product of the lengths.
    """

    def __init__(
        self,
        path: Path | BundleFile,
        max_length: int,
        pad_token_id: int,
        table_rows: int | None = None,
        *,
        words: bool = False,
    ) -> None:
        """``table_rows``: rows of the word embedding table, if a backend reads it. Some backends read a token id beyond
        the table as zeros, and others crash, so such an id is an error. ``words``: also find the words of each text.

        Raises BerxitError for a file that is damaged or whose normalizer makes texts grow without bound.
        """
        try:
            self._tokenizer = Tokenizer.from_buffer(path.read_bytes())
            normalizer = self._tokenizer.normalizer
            if normalizer is not None and growth(json.loads(normalizer.__getstate__())) > LARGEST_GROWTH:
                raise BerxitError(f"tokenizer {path}: its normalizer makes texts grow. Do not use this bundle")
            self._check_added_tokens(path)
        except BaseException as error:
            raise _converted(error, f"cannot read tokenizer {path}") from None
        self._path, self._table_rows = str(path), table_rows
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.pad_token_id = pad_token_id
        self._max_length = max_length
        self._words = words
        added = (len(token.content) for token in self._tokenizer.get_added_tokens_decoder().values())
        longest_word = getattr(self._tokenizer.model, "max_input_chars_per_word", 0)
        self._margin = 2 * max(longest_word, *added, 32)
        """Number of characters at the end of a prefix whose tokens may depend on the rest of the text."""
        self._prefix = CHARACTERS_PER_TOKEN * max_length + self._margin

    def __call__(self, texts: Sequence[Text], end: float = math.inf) -> TokenBatch:
        """Token ids of ``texts``, padded to the longest row.

        ``end``: deadline as a value of ``time.perf_counter()``, in seconds. The prefix does not grow any further if
        that would miss the deadline; the text is then truncated to the tokens found so far.

        Raises InputError for an empty batch, an empty text, or an element that is not text.
        """
        if isinstance(texts, str):
            raise InputError("a batch is a list of texts, not one text: use predict for one")
        if len(texts) == 0:
            raise InputError("the batch is empty: give at least one text")
        given = texts
        texts = [checked_text(text, f"text {row}" if len(texts) > 1 else "the text") for row, text in enumerate(texts)]
        rows: dict[int, TokenRow] = {}
        open_rows = list(range(len(texts)))
        characters = self._prefix
        while open_rows:
            begin = time.perf_counter()
            encodings = self._encode([_prefix(texts[row], characters) for row in open_rows])
            now = time.perf_counter()
            out_of_time = now + GROWTH * (now - begin) > end
            for row, encoding in zip(open_rows, encodings, strict=True):
                found = self._truncate(encoding, texts[row], characters, out_of_time)
                if found is not None:
                    rows[row] = found
            open_rows = [row for row in open_rows if row not in rows]
            characters *= GROWTH
        ids, types, truncated, words = zip(*(rows[row] for row in range(len(texts))), strict=True)
        self._check_ids(ids, types)
        if self._words:
            words = tuple(each.moved(_indent(text)) for each, text in zip(words, given, strict=True))
        return TokenBatch.pad(ids, types, self.pad_token_id, truncated, words if self._words else ())

    def _check_added_tokens(self, path: Path | BundleFile) -> None:
        """Rejects added tokens whose ids would be arbitrary, after normalization.

        The library matches an empty token between all characters, or panics. Of two equal tokens, it chooses one at
        random whenever the tokenizer is loaded.
        """
        normalizer = self._tokenizer.normalizer
        if normalizer is None:
            return
        seen: dict[str, str] = {}
        for token in self._tokenizer.get_added_tokens_decoder().values():
            if not token.normalized:
                continue
            content = normalizer.normalize_str(token.content)
            problem = "is empty" if not content else f"equals {seen[content]!a}" if content in seen else None
            if problem:
                raise BerxitError(
                    f"cannot use tokenizer {path}: the added token {token.content!a} {problem} after normalization."
                    " Remove it from the tokenizer, or add it with normalized=False, and train again"
                )
            seen[content] = token.content

    def _encode(self, texts: Sequence[Text], *, special: bool = True) -> list[Encoding]:
        """Encodes texts with the tokenizers library, with or without special tokens.

        The library's ``encode`` holds Python's global interpreter lock. ``encode_batch`` releases it, but takes some
        microseconds more; it is used for batches and long texts.
        """
        try:
            if len(texts) == 1 and sum(map(len, _parts(texts[0]))) <= 2 * self._prefix:
                first, second = (*_parts(texts[0]), None)[:2]
                return [self._tokenizer.encode(first, second, add_special_tokens=special)]
            return self._tokenizer.encode_batch(texts, add_special_tokens=special)
        except BaseException as error:
            raise _converted(error, f"tokenizer {self._path} failed") from None

    def _check_ids(self, ids: Sequence[list[int]], types: Sequence[list[int]]) -> None:
        """Raises BerxitError for a row without tokens, and for an id beyond the model's tables."""
        for row, row_types in zip(ids, types, strict=True):
            if not row:
                raise BerxitError(f"tokenizer {self._path}: a text has no tokens. Export the bundle again")
            largest = max(row)
            if self._table_rows is not None and largest >= self._table_rows:
                raise BerxitError(
                    f"tokenizer {self._path}: token id {largest} is not in the word embedding table, which has"
                    f" {self._table_rows} rows. Export the bundle again"
                )
            if max(row_types) >= TOKEN_TYPES:
                raise BerxitError(f"tokenizer {self._path}: token type {max(row_types)}. Export the bundle again")

    def _truncate(self, encoding: Encoding, text: Text, characters: int, out_of_time: bool) -> TokenRow | None:
        """The row of at most ``max_length`` tokens.

        ``encoding``: that of a prefix of ``characters`` characters. None if the prefix is too short to determine the
        tokens.
        """
        ids, types, parts = encoding.ids, encoding.type_ids, _parts(text)
        whole = max(map(len, parts)) <= characters
        if whole and len(ids) <= self._max_length:
            return TokenRow(ids, types, False, self._words_of(encoding, range(len(ids)), parts[0]))
        sequences = encoding.sequence_ids  # None for special tokens
        room = max(0, self._max_length - sequences.count(None))
        places = [[place for place, s in enumerate(sequences) if s == number] for number in range(len(parts))]
        if not whole and not out_of_time:
            for part, of_part in zip(parts, places, strict=True):
                if len(part) > characters and not self._settled(encoding, of_part, part[:characters], room):
                    return None
        counts = [len(of_part) for of_part in places]
        if len(parts) == 2 and min(counts) > room:
            countable = max(map(len, parts)) <= COUNTED_CHARACTERS_PER_TOKEN * self._max_length
            if countable and not whole and not out_of_time:
                return None
            if not (countable and whole):
                counts = [room + 1 + (len(parts[0]) > len(parts[1])), room + 1]
        kept = [of_part[:n] for of_part, n in zip(places, longest_first(*counts, room=room), strict=False)]
        stay = {place for of_part in kept for place in of_part}
        order = [place for place, s in enumerate(sequences) if s is None or place in stay]
        truncated = not whole or len(order) < len(ids)
        words = self._words_of(encoding, order, parts[0])
        return TokenRow([ids[place] for place in order], [types[place] for place in order], truncated, words)

    def _words_of(self, encoding: Encoding, order: Sequence[int], text: str) -> Words | None:
        """The words of a text whose row consists of the tokens ``order`` of its encoding."""
        if not self._words:
            return None
        sequences, offsets = encoding.sequence_ids, encoding.offsets
        return Words.of(
            text, [(row, *offsets[place]) for row, place in enumerate(order) if sequences[place] is not None]
        )

    def _settled(self, encoding: Encoding, places: list[int], prefix: str, room: int) -> bool:
        """True if the ``prefix`` of a text determines the first ``room`` tokens of the text and that it has more.

        A prefix determines the tokens of its complete words, because normalization and pre-tokenization look ahead at
        most one word, and the model tokenizes one word at a time. In a text without word boundaries, the tokens count
        as determined if shorter prefixes give the same tokens.
        """
        if len(places) <= room:
            return False
        last = places[room]
        end, words = encoding.offsets[last][1], encoding.word_ids
        word, last_word = words[last], words[places[-1]]
        if word is not None and last_word is not None and word < last_word - 1 and end <= len(prefix) - self._margin:
            return True
        if end > len(prefix.rstrip()) - self._margin:  # an added token may include the blanks before it
            return False
        ids = [encoding.ids[place] for place in places[: room + 1]]
        shorter = self._encode([prefix[:-cut] for cut in FURTHER_CUTS], special=False)
        return all(each.ids[: room + 1] == ids for each in shorter)


def _indent(text: Text) -> int:
    """Characters that ``checked_text`` removes before the first part of a text."""
    first = _parts(text)[0]
    return len(first) - len(first.lstrip())


def _converted(error: BaseException, what: str) -> BaseException:
    """An error of the tokenizers library as a BerxitError. A panic in it is no Exception in Python; other exceptions of
    that kind, such as a Ctrl-C, are returned unchanged."""
    panic = type(error).__name__ == "PanicException"
    return failure(what, error, "Export the bundle again") if panic or isinstance(error, Exception) else error


def growth(normalizer: dict[str, Any]) -> float:
    """An upper bound of the factor by which the insertions of a normalizer of tokenizer.json make a text longer."""
    kind = normalizer["type"]
    if kind == "Sequence":
        return math.prod(map(growth, normalizer["normalizers"]))
    if kind == "Prepend":
        return 1.0 + len(normalizer["prepend"])
    if kind == "Replace":
        fixed, content = normalizer["pattern"].get("String"), len(normalizer["content"])
        return max(1.0, content / len(fixed)) if fixed else 1.0 + content  # a regex may match between all characters
    return 1.0


def longest_first(first: int, second: int = 0, *, room: int) -> tuple[int, int]:
    """Numbers of tokens kept of each text of a pair, at most ``room`` in total.

    The longer text is truncated to the length of the shorter, then both equally. An odd token goes to the longer text,
    or to the second if both have the same length.
    """
    if first + second <= room:
        return first, second
    shorter, longer = sorted((first, second))
    if shorter > room // 2:
        shorter, longer = room // 2, room - room // 2
    else:
        longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)


def _parts(text: Text) -> tuple[str, ...]:
    return text if isinstance(text, tuple) else (text,)


def _prefix(text: Text, characters: int) -> Text:
    return (text[0][:characters], text[1][:characters]) if isinstance(text, tuple) else text[:characters]


def checked_text(text: object, where: str) -> Text:
    """Text or pair without surrounding whitespace, as training, evaluation and every runner tokenize it.

    Whitespace is removed because a byte-level tokenizer encodes it, but data files do not preserve it.
    Raises InputError, which starts with ``where``, for an empty text or an object that is not text.
    """
    parts = [part for part in (text if isinstance(text, tuple) else (text,)) if isinstance(part, str)]
    if len(parts) != (2 if isinstance(text, tuple) else 1):
        raise InputError(f"{where} is {type(text).__name__}: give a str, or a tuple of two for a pair")
    if not all(part.strip() for part in parts):
        raise InputError(f"{where} is empty: give at least one character that is not whitespace")
    try:
        "".join(parts).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} contains a lone surrogate, half of a character: decode it as UTF-8 again") from None
    return (parts[0].strip(), parts[1].strip()) if isinstance(text, tuple) else parts[0].strip()
