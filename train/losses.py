"""The paper's losses of every exit: L_i (equation 2), the LTE module's J_i (equation 11), and distillation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from berxit.runtime.kinds import CERTAIN, Heads, Kind

IGNORED = -100
"""Label of a token that does not start a word."""


def exit_losses(logits: Tensor, labels: Tensor, regression: bool, class_weights: Sequence[float] = ()) -> Tensor:
    """L_i: logits (B, n, C), labels (B,) -> (n,). Cross-entropy for classes, mean squared error for regression.

    Labels (B, C) of a multilabel model, 1 for a label of the text: mean binary cross-entropy over texts and labels.
    Logits (B, n, S, C) and tags (B, S) of a tokens model, IGNORED between words: mean cross-entropy over words. Logits
    (B, n, H, K) and classes (B, H) of named heads (``by_head``): mean cross-entropy over texts and heads.
    ``class_weights`` (C,): factors of the rows' cross-entropies by label; empty: 1 for all.
    """
    if logits.ndim == 4:
        at_words = labels != IGNORED
        flat = logits.transpose(1, 2)[at_words]  # (words, n, C)
        tags = labels[at_words][:, None].expand(flat.shape[:2])
        return F.cross_entropy(flat.flatten(0, 1), tags.flatten(), reduction="none").view(tags.shape).mean(dim=0)
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, _each_exit(labels, logits), reduction="none").mean((0, 2))
    rows, layers, outputs = logits.shape
    if regression:
        return ((logits.squeeze(-1) - labels[:, None]) ** 2).mean(dim=0)
    flat = F.cross_entropy(logits.reshape(-1, outputs), labels.repeat_interleave(layers), reduction="none")
    losses = flat.view(rows, layers)
    if class_weights:
        losses = losses * losses.new_tensor(class_weights)[labels][:, None]
    return losses.mean(dim=0)


def by_head(logits: Tensor, kind: Kind) -> Tensor:
    """Logits (B, n, C) of a model with named heads -> those of each head, (B, n, H, K). A head with fewer than K
    classes is filled up, as in ``Heads.decisions``. Logits of other kinds do not change."""
    if not isinstance(kind, Heads):
        return logits
    return F.pad(logits, (0, 1), value=CERTAIN)[..., torch.from_numpy(kind.places).to(logits.device)]


def balanced_weights(labels: npt.NDArray, classes: int) -> tuple[float, ...]:
    """(C,) weight N / (C' x rows) of each class, so that all C' classes that occur contribute equally; 1 for a class
    without rows. The mean weight of the rows is 1, so the learning rate keeps its meaning."""
    counts = np.bincount(labels, minlength=classes)
    occurring = np.count_nonzero(counts)
    return tuple(float(len(labels) / (occurring * count)) if count else 1.0 for count in counts)


def lte_losses(certainties: Tensor, logits: Tensor, labels: Tensor, regression: bool) -> Tensor:
    """J_i: certainties u (B, n), logits (B, n, C), labels (B,) -> (n,), the mean of (u_i - target)^2 (equation 11)."""
    return ((certainties - lte_targets(logits, labels, regression)) ** 2).mean(dim=0)


@torch.no_grad()
def lte_targets(logits: Tensor, labels: Tensor, regression: bool) -> Tensor:
    """(B, n) the target of the certainty (equations 9 and 10): 1 if all labels, the tags of all words, or the classes
    of all heads are right. No gradient flows through it."""
    if logits.ndim == 4:
        right = (logits.argmax(dim=-1) == labels[:, None]) | (labels == IGNORED)[:, None]
        return right.all(dim=-1).to(logits.dtype)
    if labels.ndim == 2:
        return ((logits > 0) == _each_exit(labels, logits).bool()).all(dim=-1).to(logits.dtype)
    if regression:
        return 1 - torch.tanh((logits.squeeze(-1) - labels[:, None]).abs())
    return (logits.argmax(dim=-1) == labels[:, None]).to(logits.dtype)


def _each_exit(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels (B, C) for every exit: (B, n, C)."""
    return labels[:, None].expand_as(logits)


def distillation_losses(logits: Tensor, regression: bool, labels: Tensor | None = None) -> Tensor:
    """Distillation loss of exits 1 to n - 1: logits (B, n, C) -> (n - 1,). The last exit is the teacher and gets no
    gradient.

    Classification: KL(p_i || p_n), as in FastBERT (Liu et al., 2020). Regression: squared difference (FastBERT has no
    regression). Multilabel: the mean over labels of the KL divergence of the two outcomes. Tokens: the mean over words.
    Heads: the mean over heads. ``labels``: as in ``exit_losses``, for these kinds; only their form and the places of
    words are used.
    """
    if labels is not None and logits.ndim == 4:
        logits = logits.transpose(1, 2)[labels != IGNORED]  # (words, n, C)
    elif labels is not None and labels.ndim == 2:
        logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
    students, teacher = logits[:, :-1], logits[:, -1:].detach()
    if regression:
        return ((students - teacher) ** 2).mean(dim=(0, 2))
    log_students = students.log_softmax(dim=-1)
    difference = log_students - teacher.log_softmax(dim=-1)
    divergence = (log_students.exp() * difference).sum(dim=-1)
    return divergence.mean(dim=(0, *range(2, divergence.ndim)))
