"""Texts of the golden inputs: the checkpoint's samples, texts of --data, or random tokens. One text per length."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from berxit.runtime.errors import InputError
from berxit.runtime.tokenization import Text, TextTokenizer
from berxit.train.checkpoint import SAMPLES_FILE, read_samples, spread_samples
from berxit.train.configuration import MultiExitConfig
from berxit.train.tasks import task_of
from berxit.train.tokenizing import TOKENIZER_FILE

RANDOM_TEXTS = 8


def golden_texts(
    checkpoint: Path,
    config: MultiExitConfig,
    data: Path | None,
    needed_by: str | None,
    warn: Callable[[str], None],
) -> list[Text]:
    """Texts for the golden inputs: the checkpoint's samples; else texts of ``data`` (a file, or a folder with a dev
    split); else random tokens of the vocabulary, and ``warn`` receives a line about it.

    ``needed_by``: a precision whose rounding depends on texts of the task. Raises InputError if there are only tokens.
    """
    if samples := read_samples(checkpoint):
        return samples
    if data is not None:
        return spread_samples(task_of(config).read(data, "dev").texts)
    if needed_by is not None:
        raise InputError(
            f"--precision {needed_by} needs texts of the task, and {checkpoint} has no {SAMPLES_FILE}: give --data, a"
            " file or folder of the task's data"
        )
    warn(
        f"{checkpoint} has no {SAMPLES_FILE}: the golden inputs are random tokens of its vocabulary. --data takes texts"
        " of the task instead"
    )
    return random_texts(checkpoint / TOKENIZER_FILE, config.max_length, pairs=len(config.text_columns) == 2)


def random_texts(tokenizer_file: Path, max_length: int, *, pairs: bool) -> list[Text]:
    """Texts of random tokens, no special ones, from one token to half of ``max_length``. The seed is fixed."""
    drawn = np.random.default_rng(0)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    lengths = np.linspace(1, max(1, max_length // 2), RANDOM_TEXTS).astype(int).tolist()

    def text(length: int) -> str:
        while not (found := tokenizer.decode(drawn.choice(ids, length).tolist()).strip()):
            pass
        return found

    return [(text(length), text(length)) if pairs else text(length) for length in lengths]


def of_every_length(samples: Sequence[Text], lengths: Sequence[int], tokenizer: TextTokenizer) -> list[Text]:
    """The samples, and one more text for each of the ascending ``lengths`` that no sample is padded to.

    The additional text repeats the words of the samples. A length that no such text can have (fewer tokens than the
    special ones) is skipped.
    """
    taken = set(tokenizer(samples).lengths.tolist())
    found = list(samples)
    for shorter, length in pairwise((0, *lengths)):
        if not any(shorter < tokens <= length for tokens in taken):
            longer = _longer_than(shorter, samples, tokenizer)
            found += [text for text in longer if tokenizer([text]).lengths[0] in range(shorter + 1, length + 1)][:1]
    return found


def _longer_than(tokens: int, samples: Sequence[Text], tokenizer: TextTokenizer) -> Iterator[Text]:
    """The shortest prefixes of the repeated samples with more than ``tokens`` tokens: one that ends between words, and
    one that ends anywhere, for languages without blanks."""
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
