"""Golden inputs for every length that a bundle names: a device plans each of them on its own, so each is checked."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise

from berxit.runtime.tokenization import Text, TextTokenizer


def of_every_length(samples: Sequence[Text], lengths: Sequence[int], tokenizer: TextTokenizer) -> list[Text]:
    """The samples; and for each of the ascending ``lengths`` that none of them is padded to, their words strung
    together until the text is. A length that no such text has, as one below the special tokens, is left out."""
    taken = set(tokenizer(samples).lengths.tolist())
    found = list(samples)
    for shorter, length in pairwise((0, *lengths)):
        if not any(shorter < tokens <= length for tokens in taken):
            longer = _longer_than(shorter, samples, tokenizer)
            found += [text for text in longer if tokenizer([text]).lengths[0] in range(shorter + 1, length + 1)][:1]
    return found


def _longer_than(tokens: int, samples: Sequence[Text], tokenizer: TextTokenizer) -> Iterator[Text]:
    """The shortest beginnings of the samples, one after the other and over again, that have more tokens: cut between
    words, and cut anywhere, for languages without blanks."""
    parts = [part.strip() for sample in samples for part in ((sample,) if isinstance(sample, str) else sample)]
    words = " ".join(parts) + " "
    words *= 1 + 16 * (tokens + 1) // len(words)
    pair = isinstance(samples[0], tuple)

    def text(end: int) -> Text:
        return (words[:end], words[:end]) if pair else words[:end]

    for ends in ([word.end() for word in re.finditer(r"\S+", words)], range(1, len(words))):
        place = bisect_left(ends, tokens + 1, key=lambda end: int(tokenizer([text(end)]).lengths[0]))
        if place < len(ends):
            yield text(ends[place])
