"""Helpers of the tests of CoreML bundles: the difference from PyTorch, and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from berxit.exporters.coreml.target import checking_backend
from berxit.runtime.bundle import read_manifest
from berxit.runtime.tokenization import TokenBatch
from berxit.train.checkpoint import load_checkpoint

ROWS = ([2, 6, 7, 8, 9, 3], [2, 11, 3], [2, *range(5, 20), 3])
"""Token ids of three rows of different length."""


LIMITS = {"fp32": 1e-5, "fp16": 1e-2}
"""Largest allowed difference of a hidden state."""


def hidden_gap(
    checkpoint: Path, bundle: Path, rows: tuple[list[int], ...] = ROWS, *, exact: bool = False
) -> tuple[float, float]:
    """Largest difference from PyTorch of hidden states, and of logits and LTE, over all layers and rows. ``exact``:
    from PyTorch in float64."""
    manifest = read_manifest(bundle)
    model, _ = load_checkpoint(checkpoint)
    if exact:
        model.double()
    backend = checking_backend(bundle, manifest, None)
    states, exits = [], []
    for ids in rows:
        row = torch.tensor([ids])
        types = (torch.arange(len(ids)) >= len(ids) // 2).long()[None]
        with torch.no_grad():
            expected = model(row, torch.ones_like(row), types, output_hidden_states=True)
        state = backend.embed(TokenBatch.pad([ids], types.tolist(), manifest.model.pad_token_id))
        for layer in (0, *manifest.exits):
            if layer:
                state, logits, lte = backend.layer(layer, state)
                exits += [np.abs(logits - expected.exit_logits[:, layer - 1].numpy()).max()]
                exits += [np.abs(lte - expected.certainties[:, layer - 1].numpy()).max()]
            hidden = state.rows[0].tensors["hidden"].astype(np.float32)
            if hidden.ndim == 4:  # (1, d, 1, S) -> (1, S, d)
                hidden = hidden[:, :, 0].transpose(0, 2, 1)
            states += [np.abs(hidden[:, : len(ids)] - expected.hidden_states[layer].numpy()).max()]
    return float(np.max(states)), float(np.max(exits))


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
