"""Examples as the model takes them: token ids, cut to the longest input, padded batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from runtime.examples import Examples


class EncodedExamples(Dataset):
    """Tokenised examples; ``DataCollatorWithPadding`` pads each batch to its own longest row."""

    def __init__(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        first = [text if isinstance(text, str) else text[0] for text in examples.texts]
        second = None if isinstance(examples.texts[0], str) else [text[1] for text in examples.texts]
        encoded = tokenizer(first, second, truncation=True, max_length=max_length, return_token_type_ids=True)
        self.columns: dict[str, Any] = {
            **{name: encoded[name] for name in ("input_ids", "token_type_ids", "attention_mask")},
            "labels": examples.labels,
        }

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
