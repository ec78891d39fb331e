"""Every family on inputs up to 512 tokens, beyond local windows and linear buckets of distances, padded and not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENCODERS, quick_and_slow, tiny_config
from test_graph import Runner, batch_of
from transformers import AutoModel

from berxit.train.modeling import MultiExitModel

LENGTHS = (512, 200, 66, 65, 64, 2, 1)
"""Tokens of the rows: a window of 64 tokens on each side contains every input of up to 65 tokens."""


def long_backbone(family: str) -> torch.nn.Module:
    """A random encoder for 512 tokens, with ModernBERT's own window and DeBERTa-v3's kind of buckets."""
    config = tiny_config(family)
    config.max_position_embeddings = 514
    if family == "modernbert":
        config.local_attention = 128
    if family == "deberta-v2":
        config.position_buckets = 64
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


@pytest.mark.parametrize(
    ("family",), quick_and_slow([(family,) for family in ENCODERS], quick=[("modernbert",), ("deberta-v2",)])
)
def test_hidden_states_of_long_inputs_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    backbone = long_backbone(family)
    backbone.save_pretrained(tmp_path)
    model = MultiExitModel.from_backbone(tmp_path, max_length=512).eval()
    runner = Runner(model)
    adapter, norm = model.adapter, model.heads[-1].norm
    together = batch_of(LENGTHS)
    alone = [{name: value[i : i + 1, :length] for name, value in together.items()} for i, length in enumerate(LENGTHS)]
    for batch in (together, *alone):
        feeds = {name: torch.from_numpy(value).long() for name, value in batch.items()}
        if not adapter.has_token_types:
            feeds.pop("token_type_ids")
        with torch.no_grad():
            *expected, last = backbone(**feeds, output_hidden_states=True).hidden_states
            found = [torch.from_numpy(outputs["hidden"]) for outputs in runner(batch)]
            found[-1] = found[-1] if norm is None else norm(found[-1])
        kept = batch["attention_mask"].astype(bool)
        gaps = [np.abs((a - b).numpy()[kept]).max() for a, b in zip((*expected, last), found, strict=True)]
        assert max(gaps) <= 5e-6
