"""The paper's losses of every exit: L_i (equation 2), the LTE module's J_i (equation 11), and distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    """(B, n) the target of the certainty (equations 9 and 10). No gradient flows through it."""
    if regression:
        return 1 - torch.tanh((logits.squeeze(-1) - labels[:, None]).abs())
    return (logits.argmax(dim=-1) == labels[:, None]).to(logits.dtype)


def distillation_losses(logits: Tensor, regression: bool) -> Tensor:
    """Distillation loss of exits 1 to n - 1: logits (B, n, C) -> (n - 1,). The last exit is the teacher and gets no
    gradient.

    Classification: KL(p_i || p_n), as in FastBERT (Liu et al., 2020). Regression: squared difference (FastBERT has no
    regression).
    """
    students, teacher = logits[:, :-1], logits[:, -1:].detach()
    if regression:
        return ((students - teacher) ** 2).mean(dim=(0, 2))
    log_students = students.log_softmax(dim=-1)
    difference = log_students - teacher.log_softmax(dim=-1)
    return (log_students.exp() * difference).sum(dim=-1).mean(dim=0)
