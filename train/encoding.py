"""Examples as the model takes them: token ids, cut to the longest input, padded batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from berxit.runtime.examples import Examples
from berxit.runtime.progress import Progress, silent

CHUNK = 10_000
"""Rows that are tokenised in a second or so: more than that, and a bar shows how far it is."""


class EncodedExamples(Dataset):
    """Tokenised examples; ``DataCollatorWithPadding`` pads each batch to its own longest row."""

    def __init__(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        progress: Progress = silent,
    ) -> None:
        names = ("input_ids", "token_type_ids", "attention_mask")
        self.columns: dict[str, Any] = {**{name: [] for name in names}, "labels": examples.labels}
        many = len(examples) > CHUNK
        with (progress if many else silent)(len(examples)) as bar:
            for start in range(0, len(examples), CHUNK):
                texts = examples.texts[start : start + CHUNK]
                first = [text if isinstance(text, str) else text[0] for text in texts]
                second = None if isinstance(texts[0], str) else [text[1] for text in texts]
                encoded = tokenizer(first, second, truncation=True, max_length=max_length, return_token_type_ids=True)
                for name in names:
                    self.columns[name] += encoded[name]
                bar.update(len(texts))

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {name: column[index] for name, column in self.columns.items()}
        dtype = torch.float32 if self.columns["labels"].dtype.kind == "f" else torch.int64
        return {**row, "labels": torch.tensor(row["labels"], dtype=dtype)}

    @property
    def lengths(self) -> list[int]:
        """Tokens per row."""
        return [len(ids) for ids in self.columns["input_ids"]]
