"""Golden inputs for every length that a bundle names: a device plans each of them on its own, so each is checked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from runtime.tokenization import Text, TextTokenizer


def of_every_length(samples: Sequence[Text], lengths: Sequence[int], tokenizer: TextTokenizer) -> list[Text]:
    """The samples; and for each of the ascending ``lengths`` that none of them is padded to, their words strung
    together until the text is. A length that no such text has, as one below the special tokens, is left out."""
    taken = set(tokenizer(samples).lengths.tolist())
    found = list(samples)
    for shorter, length in pairwise((0, *lengths)):
        if not any(shorter < tokens <= length for tokens in taken):
            text = _longer_than(shorter, samples, tokenizer)
            if tokenizer([text]).lengths[0] in range(shorter + 1, length + 1):
                found.append(text)
    return found


def _longer_than(tokens: int, samples: Sequence[Text], tokenizer: TextTokenizer) -> Text:
    """The shortest beginning of the samples, one after the other and over again, that has more tokens."""
    parts = [part.strip() for sample in samples for part in ((sample,) if isinstance(sample, str) else sample)]
    words = " ".join(parts) + " "
    words *= 1 + 16 * (tokens + 1) // len(words)
    pair = isinstance(samples[0], tuple)

    def text(characters: int) -> Text:
        return (words[:characters], words[:characters]) if pair else words[:characters]

    ends = range(1, len(words))
    return text(1 + bisect_left(ends, tokens + 1, key=lambda end: int(tokenizer([text(end)]).lengths[0])))
