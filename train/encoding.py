"""Tokenized examples: token ids, truncated to the maximum length and padded per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from berxit.runtime.examples import Examples
from berxit.runtime.heads import classes_in, heads_of
from berxit.runtime.kinds import TextWords, from_bits
from berxit.runtime.progress import Progress, silent
from berxit.runtime.spans import Words, tag_numbers
from berxit.runtime.tokenization import TextTokenizer, TokenBatch
from berxit.train.losses import IGNORED

CHUNK = 10_000
"""Number of rows per call of the tokenizer, about one second. Larger data sets show a progress bar."""


class EncodedExamples(Dataset):
    """Examples tokenized by the runtime's tokenizer. ``collate`` pads each batch to its longest row."""

    def __init__(self, examples: Examples, tokenizer: TextTokenizer, progress: Progress = silent) -> None:
        self.labels = examples.labels
        self._targets = self.labels
        if examples.kind == "multilabel":
            self._targets = from_bits(self.labels, len(examples.names)).astype(np.float64)
        elif examples.kind == "heads":
            self._targets = classes_in(self.labels, len(heads_of(examples.names)))
        self.words: list[Words] = []
        """(N,) the words of each text; empty unless the tokenizer finds words."""
        self.spans = examples.spans
        self.pad_token_id = tokenizer.pad_token_id
        self.input_ids: list[npt.NDArray[np.int32]] = []
        self.token_type_ids: list[npt.NDArray[np.int32]] = []
        many = len(examples) > CHUNK
        with (progress if many else silent)(len(examples)) as bar:
            for start in range(0, len(examples), CHUNK):
                batch = tokenizer(examples.texts[start : start + CHUNK])
                for ids, types, length in zip(batch.input_ids, batch.token_type_ids, batch.lengths, strict=True):
                    self.input_ids.append(ids[:length].copy())
                    self.token_type_ids.append(types[:length].copy())
                self.words += batch.words
                bar.update(len(batch))
        self._tags: list[npt.NDArray[np.int64]] = []
        for ids, words, spans in zip(self.input_ids, self.words, self.spans, strict=False):
            tags = np.full(len(ids), IGNORED, dtype=np.int64)
            tags[words.tokens] = tag_numbers(spans, words, examples.names)
            self._tags.append(tags)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "input_ids": self.input_ids[index],
            "token_type_ids": self.token_type_ids[index],
            "labels": self._tags[index] if self._tags else self._targets[index],
            "words": self.words[index] if self.words else None,
        }

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The model's inputs for B rows: ids, types and mask (B, S), padded as in every runner, and labels (B,),
        (B, C) of a multilabel model, (B, H) of the heads of a text, or tags (B, S)."""
        batch = self.batch(rows)
        targets = [row["labels"] for row in rows]
        if self._tags:
            length = batch.input_ids.shape[1]
            targets = [np.pad(tags, (0, length - len(tags)), constant_values=IGNORED) for tags in targets]
        labels = torch.tensor(np.array(targets))
        return {**as_tensors(batch), "labels": labels.float() if labels.is_floating_point() else labels}

    def batch(self, rows: Sequence[dict[str, Any]]) -> TokenBatch:
        """B rows, padded as in every runner."""
        words = tuple(row["words"] for row in rows) if self.words else ()
        ids, types = [row["input_ids"] for row in rows], [row["token_type_ids"] for row in rows]
        return TokenBatch.pad(ids, types, self.pad_token_id, words=words)

    @property
    def texts(self) -> list[TextWords]:
        """(N,) words and true spans of each text; empty unless the tokenizer finds words."""
        spans = self.spans or ((),) * len(self.words)
        return [TextWords(words, truth) for words, truth in zip(self.words, spans, strict=True)]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each row."""
        return [len(ids) for ids in self.input_ids]


def as_tensors(batch: TokenBatch) -> dict[str, Tensor]:
    """The model's keyword arguments: ids, types and mask, each (B, S) int64."""
    names = ("input_ids", "token_type_ids", "attention_mask")
    return {name: torch.from_numpy(getattr(batch, name)).long() for name in names}
