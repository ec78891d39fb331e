"""Text to token ids with the bundle's own tokenizer.json; the same ids that training saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from berxit.runtime.bundle_files import BundleFile
from berxit.runtime.errors import BerxitError, InputError

Text = str | tuple[str, str]
"""One text, or a pair."""


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
    """(B,) whether the text was longer than the model takes."""

    @classmethod
    def pad(
        cls,
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]],
        pad_token_id: int,
        truncated: tuple[bool, ...] = (),
    ) -> TokenBatch:
        """Rows of any length, filled up to the longest."""
        shape = (len(input_ids), max(len(ids) for ids in input_ids))
        ids = np.full(shape, pad_token_id, dtype=np.int32)
        types = np.zeros(shape, dtype=np.int32)
        mask = np.zeros(shape, dtype=np.int32)
        for row, (row_ids, row_types) in enumerate(zip(input_ids, token_type_ids, strict=True)):
            ids[row, : len(row_ids)] = row_ids
            types[row, : len(row_ids)] = row_types
            mask[row, : len(row_ids)] = 1
        return cls(ids, types, mask, truncated)

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: npt.NDArray[np.integer]) -> TokenBatch:
        """These rows, in this order, without padding that none of them needs."""
        here = np.ix_(rows, np.arange(self.lengths[rows].max()))
        truncated = tuple(self.truncated[row] for row in rows) if self.truncated else ()
        return TokenBatch(self.input_ids[here], self.token_type_ids[here], self.attention_mask[here], truncated)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(B,) tokens per row without padding."""
        return self.attention_mask.sum(axis=1)


class TextTokenizer:
    """Tokenises texts and pairs; what is longer than ``max_length`` is cut, the longer half of a pair first."""

    def __init__(self, path: Path | BundleFile, max_length: int, pad_token_id: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_buffer(path.read_bytes())
        except Exception as error:  # the library raises bare Exception
            raise BerxitError(f"cannot read tokenizer {path}: {error}. Export the bundle again") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        self.pad_token_id = pad_token_id

    def __call__(self, texts: Sequence[Text]) -> TokenBatch:
        """Raises InputError for an empty batch, an empty text, or anything that is not text."""
        if isinstance(texts, str):
            raise InputError("a batch is a list of texts, not one text: use predict for one")
        if len(texts) == 0:
            raise InputError("the batch is empty: give at least one text")
        texts = [checked_text(text, f"text {row}" if len(texts) > 1 else "the text") for row, text in enumerate(texts)]
        if len(texts) == 1:
            only = texts[0]
            encodings = [self._tokenizer.encode(*(only if isinstance(only, tuple) else (only,)))]
        else:
            encodings = self._tokenizer.encode_batch(list(texts))
        return TokenBatch.pad(
            [e.ids for e in encodings],
            [e.type_ids for e in encodings],
            self.pad_token_id,
            tuple(bool(e.overflowing) for e in encodings),
        )


def checked_text(text: object, where: str) -> Text:
    """The text, or both texts of a pair, without surrounding whitespace: what training, evaluation and every runner
    tokenize. A byte-level tokenizer encodes surrounding whitespace to ids, which data files do not preserve.

    Raises InputError, which starts with ``where``, for an empty text or anything that is not text.
    """
    parts = [part for part in (text if isinstance(text, tuple) else (text,)) if isinstance(part, str)]
    if len(parts) != (2 if isinstance(text, tuple) else 1):
        raise InputError(f"{where} is {type(text).__name__}: give a str, or a tuple of two for a pair")
    if not all(part.strip() for part in parts):
        raise InputError(f"{where} is empty: give it at least one character that is not blank")
    try:
        "".join(parts).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} has half a character (a lone surrogate): decode it as UTF-8 again") from None
    return (parts[0].strip(), parts[1].strip()) if isinstance(text, tuple) else parts[0].strip()
