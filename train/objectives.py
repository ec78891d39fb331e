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
    """What the optimiser steps of one stage of training minimise, and over which parameters."""

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

    def trains(self, parameter: str, layers: int) -> bool:
        """Whether a parameter of the model, by its name, may change."""
        return True


class Raw(Objective):
    """Plain fine-tuning of the last exit (equation 4): the 100% of every relative score."""

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses[-1]


class Joint(Objective):
    """The sum of all exits' losses (equation 3), as in RTJ (Schwartz et al., 2020)."""

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses.sum()


class Alternating(Objective):
    """The paper's: odd steps train the last exit, even steps the sum of all (equations 5 and 6)."""

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses[-1] if step % 2 == 1 else losses.sum()


class OtherExits(Objective):
    """The second stage of two-stage (equation 7): encoder and last exit stand still, the other exits learn.

    The LTE module learns on here; the paper's equation names only the classifiers, and a module that has seen nothing
    but the last layer would know nothing of the others.
    """

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses[:-1].sum()

    def trains(self, parameter: str, layers: int) -> bool:
        return not parameter.startswith(("backbone.", f"heads.{layers - 1}."))


class Distillation(OtherExits):
    """The second stage of self-distillation (FastBERT, Liu et al., 2020): the other exits learn the last one's answers.

    Classes: the sum over layers of KL(p_i || p_n). FastBERT has no regression; there it is the squared difference.
    """

    def loss(self, step: int, outputs: MultiExitOutput, labels: Tensor, regression: bool) -> Tensor:
        assert outputs.logits is not None
        students, teacher = outputs.logits[:, :-1], outputs.logits[:, -1:].detach()
        if regression:
            losses = ((students - teacher) ** 2).mean(dim=(0, 2))
        else:
            log_students = students.log_softmax(dim=-1)
            difference = log_students - teacher.log_softmax(dim=-1)
            losses = (log_students.exp() * difference).sum(dim=-1).mean(dim=0)
        if outputs.certainties is not None:
            losses = losses + lte_losses(outputs.certainties, outputs.logits, labels, regression)[:-1]
        return losses.sum()


STRATEGIES: dict[str, tuple[type[Objective], ...]] = {
    "raw": (Raw,),
    "joint": (Joint,),
    "two-stage": (Raw, OtherExits),
    "alternating": (Alternating,),
    "self-distillation": (Raw, Distillation),
    "limit": (Raw,),
}
"""Name -> its stages, each trained for all epochs with a learning rate that starts afresh. ``limit`` is raw on the
first layers of the encoder only (``--layers``): the upper bound of figure 9."""
