"""Objectives: the loss of each stage of a fine-tuning strategy. The strategies' names are in strategies.py.

The losses of single exits are in losses.py. With LTE, every L_i becomes L_i + J_i (section 4.2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor
from torch.nn import functional as F

from berxit.runtime.errors import InputError, first_line
from berxit.train.losses import distillation_losses, exit_losses, lte_losses
from berxit.train.modeling import MultiExitOutput
from berxit.train.strategies import Strategy


@dataclass(frozen=True)
class LossOptions:
    """Options from later papers that change a strategy's loss. All are off by default."""

    warm_up_steps: int = 0
    """Number of optimizer steps at the start that train the last exit only."""
    distillation: float = 0.0
    """Weight of the distillation loss (teacher: the last exit), which is added to the loss of every other exit."""
    layer_weights: tuple[float, ...] = ()
    """(n,) weight of each exit's loss; empty: 1 for all."""
    class_weights: tuple[float, ...] = ()
    """(C,) weight of each class in the cross-entropy; empty: 1 for all. It does not change the loss of
    distillation, which has no labels, and of the LTE module, which estimates the probability of a correct prediction on
    the data as it is."""


class Objective(ABC):
    """One stage of training: the loss that its optimizer steps minimize, and the parameters that it trains."""

    exits = slice(None)
    """The exits that the stage trains. The mean of their scores is the score of an epoch."""

    def __init__(self, options: LossOptions = LossOptions()) -> None:
        self.options = options

    def loss(self, step: int, outputs: MultiExitOutput, labels: Tensor, regression: bool) -> Tensor:
        """The scalar loss of optimizer step ``step``, counted from 1."""
        assert outputs.exit_logits is not None
        losses = exit_losses(outputs.exit_logits, labels, regression, self.options.class_weights)
        if outputs.certainties is not None:
            losses = losses + lte_losses(outputs.certainties, outputs.exit_logits, labels, regression)
        if self.options.distillation:
            distilled = self.options.distillation * distillation_losses(outputs.exit_logits, regression, labels)
            losses = losses + F.pad(distilled, (0, 1))
        if self.options.layer_weights:
            losses = losses * losses.new_tensor(self.options.layer_weights)
        return losses[-1] if step <= self.options.warm_up_steps else self.combine(step, losses)

    @abstractmethod
    def combine(self, step: int, losses: Tensor) -> Tensor:
        """The losses of all exits (n,) -> the scalar loss of this step."""

    def trains(self, parameter: str, layers: int) -> bool:
        """True if the stage trains the parameter of this name; else the parameter is frozen."""
        return True


class Raw(Objective):
    """Fine-tuning of the last exit only (equation 4). Its score is the 100% of relative scores."""

    exits = slice(-1, None)

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses[-1]


class Joint(Objective):
    """The sum of all exits' losses (equation 3), as in RTJ (Schwartz et al., 2020)."""

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses.sum()


class Alternating(Objective):
    """The paper's strategy: odd steps minimize the last exit's loss, even steps the sum of all (equations 5 and 6).

    At odd steps the gradients of the other exits are zero and not None, because the logits of all exits are one tensor.
    Distributed training needs that: every process must contribute the same gradients to every step.
    """

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses[-1] if step % 2 == 1 else losses.sum()


class OtherExits(Objective):
    """The second stage of two-stage (equation 7): trains the other exits, with encoder and last exit frozen.

    The LTE module is trained in this stage, too. The paper's equation contains only the classifiers, but the first
    stage trains the LTE module on the last layer only.
    """

    exits = slice(None, -1)

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses[:-1].sum()

    def trains(self, parameter: str, layers: int) -> bool:
        return not parameter.startswith(("backbone.", f"heads.{layers - 1}."))


class Distillation(OtherExits):
    """The second stage of self-distillation (FastBERT, Liu et al., 2020): the other exits learn the output distribution
    of the last exit instead of the labels."""

    def loss(self, step: int, outputs: MultiExitOutput, labels: Tensor, regression: bool) -> Tensor:
        assert outputs.exit_logits is not None
        losses = distillation_losses(outputs.exit_logits, regression, labels)
        if outputs.certainties is not None:
            losses = losses + lte_losses(outputs.certainties, outputs.exit_logits, labels, regression)[:-1]
        return losses.sum()


def stages_of(strategy: Strategy) -> tuple[type[Objective], ...]:
    """The classes of a strategy's stages in order: names in this module, or "module:name".

    Raises InputError for a stage that does not exist or is no Objective.
    """
    found = []
    for stage in strategy.stages:
        module, _, name = stage.rpartition(":")
        try:
            objective = getattr(import_module(module or __name__), name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"strategy {strategy.name}: no stage '{stage}': {first_line(error)}") from error
        if not (isinstance(objective, type) and issubclass(objective, Objective)):
            raise InputError(f"strategy {strategy.name}: stage '{stage}' is no subclass of train.objectives.Objective")
        found.append(objective)
    return tuple(found)


LAYER_WEIGHTS = ("uniform", "linear")


def layer_weights(text: str, layers: int) -> tuple[float, ...]:
    """The value of --layer-weights as numbers: uniform, linear (i / n, more weight for deeper exits), or n numbers
    separated by commas.

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
            f"--layer-weights is '{text}': give {' or '.join(LAYER_WEIGHTS)}, or {layers} numbers separated by commas"
        ) from None
    if len(weights) != layers or not all(0 <= weight < math.inf for weight in weights) or not weights[-1]:
        raise InputError(
            f"--layer-weights is '{text}': give one number of at least 0 for each of the {layers} layers, the last one"
            " above 0"
        )
    return weights
