"""Fine-tuning strategies: which losses a step minimises. A new one is one class here and one entry in STRATEGIES.

L_i is exit i's own loss (equation 2), J_i the LTE module's (equation 11). With LTE every L_i becomes L_i + J_i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from train.modeling import MultiExitOutput


def exit_losses(logits: Tensor, labels: Tensor, regression: bool) -> Tensor:
    """L_i: logits (B, n, C), labels (B,) -> (n,). Cross-entropy for classes, mean squared error for regression."""
    rows, layers, outputs = logits.shape
    if regression:
        return ((logits.squeeze(-1) - labels[:, None]) ** 2).mean(dim=0)
    flat = F.cross_entropy(logits.reshape(-1, outputs), labels.repeat_interleave(layers), reduction="none")
    return flat.view(rows, layers).mean(dim=0)


def lte_losses(certainties: Tensor, logits: Tensor, labels: Tensor, regression: bool) -> Tensor:
    """J_i: certainties u (B, n), logits (B, n, C), labels (B,) -> (n,), the mean of (u_i - target)^2 (equation 11)."""
    return ((certainties - lte_targets(logits, labels, regression)) ** 2).mean(dim=0)


@torch.no_grad()
def lte_targets(logits: Tensor, labels: Tensor, regression: bool) -> Tensor:
    """What the certainty ought to be (equations 9 and 10): (B, n). A truth to learn: no gradient flows through it."""
    if regression:
        return 1 - torch.tanh((logits.squeeze(-1) - labels[:, None]).abs())
    return (logits.argmax(dim=-1) == labels[:, None]).to(logits.dtype)


class Objective(ABC):
    """What one optimiser step minimises."""

    def loss(self, step: int, outputs: MultiExitOutput, labels: Tensor, regression: bool) -> Tensor:
        """The scalar of step ``step`` (optimiser steps, from 1)."""
        assert outputs.logits is not None
        losses = exit_losses(outputs.logits, labels, regression)
        if outputs.certainties is not None:
            losses = losses + lte_losses(outputs.certainties, outputs.logits, labels, regression)
        return self.combine(step, losses)

    @abstractmethod
    def combine(self, step: int, losses: Tensor) -> Tensor:
        """The exits' losses (n,) -> the scalar of this step."""


class Raw(Objective):
    """Plain fine-tuning of the last exit (equation 4): the 100% of every relative score."""

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses[-1]


class Alternating(Objective):
    """The paper's: odd steps train the last exit, even steps the sum of all (equations 5 and 6)."""

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses[-1] if step % 2 == 1 else losses.sum()


STRATEGIES: dict[str, type[Objective]] = {"raw": Raw, "alternating": Alternating}
