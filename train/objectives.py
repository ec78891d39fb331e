"""Fine-tuning strategies: which losses a step minimises. The names that users give are in strategies.py.

The losses of single exits are in losses.py. With LTE every L_i becomes L_i + J_i (section 4.2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor
from torch.nn import functional as F

from berxit.runtime.errors import InputError
from berxit.train.losses import distillation_losses, exit_losses, lte_losses
from berxit.train.modeling import MultiExitOutput
from berxit.train.strategies import Strategy


@dataclass(frozen=True)
class LossOptions:
    """What may be added to a strategy's loss. None of it is in the paper; all of it is off by default."""

    warm_up_steps: int = 0
    """The first so many optimiser steps train the last exit alone."""
    distillation: float = 0.0
    """Weight of the distillation from the last exit that is added to the loss of every other exit."""
    layer_weights: tuple[float, ...] = ()
    """(n,) what each exit's loss is multiplied by; empty: 1 for all."""


class Objective(ABC):
    """What the optimiser steps of one stage of training minimise, and over which parameters."""

    def __init__(self, options: LossOptions = LossOptions()) -> None:
        self.options = options

    def loss(self, step: int, outputs: MultiExitOutput, labels: Tensor, regression: bool) -> Tensor:
        """The scalar of step ``step`` (optimiser steps, from 1)."""
        assert outputs.exit_logits is not None
        losses = exit_losses(outputs.exit_logits, labels, regression)
        if outputs.certainties is not None:
            losses = losses + lte_losses(outputs.certainties, outputs.exit_logits, labels, regression)
        if self.options.distillation:
            taught = self.options.distillation * distillation_losses(outputs.exit_logits, regression)
            losses = losses + F.pad(taught, (0, 1))
        if self.options.layer_weights:
            losses = losses * losses.new_tensor(self.options.layer_weights)
        return losses[-1] if step <= self.options.warm_up_steps else self.combine(step, losses)

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
    """The paper's: odd steps train the last exit, even steps the sum of all (equations 5 and 6).

    At odd steps the other exits' gradients are zero, not absent: all exits' logits are one tensor. With several
    processes each step then averages the same gradients everywhere, and none waits for one that another has not.
    """

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
    """The second stage of self-distillation (FastBERT, Liu et al., 2020): the other exits learn the last one's
    answers, not the labels."""

    def loss(self, step: int, outputs: MultiExitOutput, labels: Tensor, regression: bool) -> Tensor:
        assert outputs.exit_logits is not None
        losses = distillation_losses(outputs.exit_logits, regression)
        if outputs.certainties is not None:
            losses = losses + lte_losses(outputs.certainties, outputs.exit_logits, labels, regression)[:-1]
        return losses.sum()


def stages_of(strategy: Strategy) -> tuple[type[Objective], ...]:
    """The classes of a strategy's stages, in their order: names in this module, or "module:name"."""
    places = (name.rpartition(":") for name in strategy.stages)
    return tuple(getattr(import_module(module or __name__), name) for module, _, name in places)


LAYER_WEIGHTS = ("uniform", "linear")


def layer_weights(text: str, layers: int) -> tuple[float, ...]:
    """What --layer-weights says: uniform, linear (i / n, as deeper exits matter more), or n numbers with commas.

    Raises InputError for anything else.
    """
    if text == "uniform":
        return ()
    if text == "linear":
        return tuple(i / layers for i in range(1, layers + 1))
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--layer-weights is '{text}': say {' or '.join(LAYER_WEIGHTS)}, or {layers} numbers"
        ) from None
    if len(weights) != layers or not all(0 <= weight < math.inf for weight in weights) or not weights[-1]:
        raise InputError(
            f"--layer-weights has {len(weights)} numbers: give one for each of {layers} layers, from 0 up, and the last"
            " above 0"
        )
    return weights
