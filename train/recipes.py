"""Recipes: values of training options that were chosen together."""

from __future__ import annotations

from typing import Any

DEFAULT: dict[str, Any] = {
    "pooling": "mean",
    "batch_size": 16,
    "learning_rate": 5e-5,
    "head_learning_rate": 1e-3,
}
"""The first token of most encoders contains little of the text in early layers, and exit heads are not pre-trained.
For the numbers, see docs/training.md (Recipes)."""

PAPER: dict[str, Any] = {
    "pooling": "first",
    "batch_size": 8,
    "learning_rate": 2e-5,
    "head_learning_rate": None,
}
"""The paper's recipe (equation 1, appendix B). ``None``: the same learning rate for exits and encoder."""
