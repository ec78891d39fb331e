"""Spans of a text and the IOB2 tags of its words: slots, entities, personal data.

A span is a range of characters with a label. A tag is O, B-LABEL (the first word of a span) or I-LABEL (a further one).
"""

from __future__ import annotations

import json
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError

OUTSIDE = "O"
BEGIN, INSIDE = "B-", "I-"
COUNT_BITS = 15
HASH_BITS = 31
MOST_SPANS = 2**COUNT_BITS - 1
"""Largest number of spans of a text that are counted."""


class Span(NamedTuple):
    """Characters ``start`` to before ``end`` of a text, which is stripped of surrounding whitespace."""

    start: int
    end: int
    label: str
    score: float = 1.0
    """Smallest probability of the tags of its words; 1 for a label of data."""


class Words(NamedTuple):
    """The W words of a tokenized text."""

    tokens: npt.NDArray[np.int32]
    """(W,) position of the first token of each word in the row."""
    starts: npt.NDArray[np.int32]
    """(W,) first character of each word."""
    ends: npt.NDArray[np.int32]
    """(W,) character after each word."""

    @classmethod
    def of(cls, text: str, tokens: Sequence[tuple[int, int, int]]) -> Words:
        """The words of a text: ``tokens`` are (position, start, end) of its tokens, without special tokens.

        A token continues the word before it if it starts where that ends, between two letters, marks or digits of
        scripts that separate words by blanks. Any other token starts a word.
        """
        found: list[list[int]] = []
        for position, first, end in tokens:
            part = text[first:end]
            start = end - len(part.lstrip())  # some tokenizers include the blank before a word
            if start >= end:
                continue
            before = found[-1][2] if found else -1
            if start < before or (start == before and _joins(text[start - 1]) and _joins(text[start])):
                found[-1][2] = max(before, end)
            else:
                found.append([position, start, end])
        columns = np.array(found, dtype=np.int32).reshape(-1, 3).T
        return cls(*columns)

    def moved(self, characters: int) -> Words:
        """The words of the same text with ``characters`` more characters before it."""
        return self._replace(starts=self.starts + characters, ends=self.ends + characters) if characters else self


def _joins(character: str) -> bool:
    """True for a letter, mark or digit of a script that separates words by blanks."""
    if unicodedata.category(character)[0] not in "LMN":
        return False
    code = ord(character)
    return not any(low <= code <= high for low, high in UNSPACED)


UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Characters of scripts without blanks between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese. Each token of such
a text is a word."""


def tags_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The tags for the labels of spans: O, then B and I of each label."""
    return (OUTSIDE, *(prefix + label for label in labels for prefix in (BEGIN, INSIDE)))


def tag_numbers(spans: Sequence[Span], words: Words, tags: Sequence[str]) -> npt.NDArray[np.int64]:
    """(W,) the number of the tag of each word. A word belongs to the first span that it overlaps."""
    number, found = {tag: place for place, tag in enumerate(tags)}, np.zeros(len(words.tokens), dtype=np.int64)
    for span in spans:
        inside = np.flatnonzero((words.starts < span.end) & (words.ends > span.start) & (found == 0))
        found[inside] = number[INSIDE + span.label]
        found[inside[:1]] = number[BEGIN + span.label]
    return found


def spans_of(tags: Sequence[str], words: Words, scores: Sequence[float] | None = None) -> tuple[Span, ...]:
    """The spans of a sequence of tags, one per word. An I that continues no span of its label begins one, as in
    conlleval. ``scores``: probability of each tag."""
    found: list[Span] = []
    open_label = ""
    for place, tag in enumerate(tags):
        label = tag[2:] if tag != OUTSIDE else ""
        start, end = int(words.starts[place]), int(words.ends[place])
        score = 1.0 if scores is None else scores[place]
        if label and label == open_label and tag.startswith(INSIDE):
            found[-1] = found[-1]._replace(end=end, score=min(found[-1].score, score))
        elif label:
            found.append(Span(start, end, label, score))
        open_label = label
    return tuple(found)


def span_number(spans: Sequence[Span], truth: Sequence[Span]) -> int:
    """A prediction of spans as one number: how many are right, how many there are, and a hash of them. Equal numbers
    mean equal spans, for the same ``truth``."""
    named = [span[:3] for span in spans]
    right = len(set(named) & {span[:3] for span in truth})
    checksum = zlib.crc32(json.dumps(sorted(named)).encode()) >> (32 - HASH_BITS)
    return (min(right, MOST_SPANS) << COUNT_BITS | min(len(named), MOST_SPANS)) << HASH_BITS | checksum


def right_spans(numbers: npt.NDArray) -> npt.NDArray[np.int64]:
    """Number of right spans of predictions: numbers (...,) -> (...,)."""
    return np.asarray(numbers, dtype=np.int64) >> (COUNT_BITS + HASH_BITS)


def count_spans(numbers: npt.NDArray) -> npt.NDArray[np.int64]:
    """Number of spans of predictions or labels: numbers (...,) -> (...,)."""
    return np.asarray(numbers, dtype=np.int64) >> HASH_BITS & MOST_SPANS


def read_spans(value: str, text: str, column: str, where: str) -> tuple[Span, ...]:
    """The spans in a column of a data file: a JSON list of [start, end, label], or of objects with these keys. Offsets
    count the characters of ``text`` as the file contains it; those of the result count without its leading whitespace.

    Raises InputError for anything else, and for spans that overlap or are not in the text.
    """
    try:
        parts = json.loads(value) if value.strip() else []
        found = sorted(_span(part) for part in parts)
    except (ValueError, TypeError, KeyError):
        raise InputError(
            f"{where}: column '{column}' is no list of [start, end, label]: {value[:60]}. Fix or delete the line"
        ) from None
    indent, last, kept = len(text) - len(text.lstrip()), 0, []
    for span in found:
        part = text[max(0, span.start) : span.end]
        if not (0 <= span.start < span.end <= len(text)) or not part.strip():
            raise InputError(f"{where}: span {list(span[:3])} is not in the text of {len(text)} characters. Fix it")
        if span.start < last:
            raise InputError(f"{where}: span {list(span[:3])} overlaps another. Fix or delete one of them")
        last, start = span.end, span.start + len(part) - len(part.lstrip()) - indent
        kept.append(span._replace(start=start, end=start + len(part.strip())))
    return tuple(kept)


def _span(part: Any) -> Span:
    start, end, label = (part["start"], part["end"], part["label"]) if isinstance(part, dict) else part
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(label, str) and label.strip()):
        raise TypeError
    return Span(start, end, label.strip())
