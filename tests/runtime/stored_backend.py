"""Backend without a model: returns the outputs of a stored pass, and records the layers that were run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from berxit.runtime.loop import Backend
from berxit.runtime.tokenization import TokenBatch


class StoredBackend(Backend):
    """Backend for stored outputs: logits (B, n, C), lte (B, n) or None. Its state is the array of remaining rows."""

    name = "stored"

    def __init__(self, logits: npt.NDArray, lte: npt.NDArray | None = None) -> None:
        self.logits = logits
        self.lte = lte
        self.layers = logits.shape[1]
        self.exits = tuple(range(1, self.layers + 1))
        self.ran: list[tuple[int, list[int]]] = []
        """(layer, rows) of each run of a layer."""

    def embed(self, batch: TokenBatch) -> npt.NDArray:
        return np.arange(len(batch))

    def layer(self, layer: int, state: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray | None]:
        self.ran.append((layer, state.tolist()))
        return state, self.logits[state, layer - 1], None if self.lte is None else self.lte[state, layer - 1]

    def keep(self, state: npt.NDArray, rows: npt.NDArray) -> npt.NDArray:
        return state[rows]


def batch_of(rows: int) -> TokenBatch:
    """Batch of ``rows`` equal rows."""
    return TokenBatch.pad([[1, 2]] * rows, [[0, 0]] * rows, 0)
