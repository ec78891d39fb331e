"""Options of a fine-tuning, with the range of each number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from berxit.runtime.errors import InputError
from berxit.runtime.extensions import is_reference
from berxit.train.configuration import EXIT_HEADS, POOLINGS
from berxit.train.recipes import DEFAULT, PAPER
from berxit.train.strategies import CLASS_WEIGHTS, STRATEGIES, strategy_named


class Bound(NamedTuple):
    """Range of a number."""

    contains: Callable[[float], bool]
    description: str


ABOVE_ZERO = Bound(lambda value: 0 < value < math.inf, "above 0, and finite")
FROM_ZERO = Bound(lambda value: 0 <= value < math.inf, "0 (off) or above, and finite")

BOUNDS: dict[str, Bound] = {
    "epochs": ABOVE_ZERO,
    "max_steps": ABOVE_ZERO,
    "batch_size": ABOVE_ZERO,
    "gradient_accumulation": ABOVE_ZERO,
    "learning_rate": ABOVE_ZERO,
    "head_learning_rate": ABOVE_ZERO,
    "limit_train": ABOVE_ZERO,
    "dev_fraction": Bound(lambda value: 0 <= value < 1, "0 (off) or above, and below 1: the share of rows to hold out"),
    "early_stopping": ABOVE_ZERO,
    "layers": ABOVE_ZERO,
    "warm_up_steps": FROM_ZERO,
    "distillation": FROM_ZERO,
    "seed": Bound(lambda value: 0 <= value < 2**32, "from 0 to 2^32 - 1"),
    "max_length": Bound(lambda value: value >= 4, "4 or more, because special tokens surround the text"),
}
"""Option -> its range. None, for an option that allows it, means that the option was not given."""

CHOICES: dict[str, Sequence[str]] = {"exit_head": EXIT_HEADS, "pooling": POOLINGS, "class_weights": CLASS_WEIGHTS}


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a fine-tuning. Defaults: train/recipes.py; ``TrainingOptions.paper`` has those of the paper. Raises
    InputError for a value out of range, and for options that exclude each other."""

    model: str
    strategy: str = "alternating"
    """A name in STRATEGIES; FILE.py:NAME or MODULE:NAME imports and registers a strategy, and becomes its name."""
    lte: bool = True
    layers: int | None = None
    """Number of the encoder's first layers to use; None: all."""
    exit_head: str = "linear"
    pooling: str | None = None
    """Input of the exits: mean over the tokens, or first token. None: the mean. A checkpoint that is continued keeps
    its own."""
    epochs: float = 3
    max_steps: int | None = None
    batch_size: int = DEFAULT["batch_size"]
    """Rows per batch and process."""
    gradient_accumulation: int = 1
    """Batches per optimizer step."""
    learning_rate: float = DEFAULT["learning_rate"]
    head_learning_rate: float | None = DEFAULT["head_learning_rate"]
    """Learning rate of exit heads and LTE module; None: ``learning_rate``, as in the paper."""
    seed: int = 42
    max_length: int = 128
    limit_train: int | None = None
    bf16: bool = False
    """Mixed precision: matrix multiplications in bfloat16, weights and losses in float32."""
    warm_up_steps: int = 0
    """See train.objectives.LossOptions, for the next two options, too."""
    distillation: float = 0.0
    layer_weights: str = "uniform"
    """uniform, linear, or n numbers separated by commas."""
    skip_bad_rows: bool = False
    """Skip rows of the data that do not fit, instead of rejecting the file."""
    dev_fraction: float | None = None
    """Share of the training rows to hold out as the dev split; only for data without a dev split. None: a tenth if
    there is no dev split; 0: nothing."""
    class_weights: str = "none"
    """balanced: the loss of a row is multiplied by N / (C x rows of its class)."""
    early_stopping: int | None = None
    """Stop after so many epochs without a better score on held-out training rows, and keep the best epoch's weights."""

    @classmethod
    def paper(cls, model: str, **options: Any) -> TrainingOptions:
        """The options of the paper's recipe; ``options`` take precedence."""
        return cls(model, **{**PAPER, **options})

    def __post_init__(self) -> None:
        if is_reference(self.strategy):
            from berxit.train.user_strategies import strategy_from  # imports torch

            object.__setattr__(self, "strategy", strategy_from(self.strategy))
        strategy = strategy_named(self.strategy)
        for name, choices in CHOICES.items():
            if (chosen := getattr(self, name)) is not None and chosen not in choices:
                raise InputError(f"unknown {_flag(name)} '{chosen}': choose one of {', '.join(choices)}")
        for name, bound in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not bound.contains(value):
                raise InputError(f"{_flag(name)} is {value}: it must be {bound.description}")
        given = {
            "warm_up_steps": self.warm_up_steps > 0,
            "distillation": self.distillation > 0,
            "layer_weights": self.layer_weights != "uniform",
        }
        for name in (name for name, is_given in given.items() if is_given):
            if name not in strategy.options:
                using = [each.name for each in STRATEGIES.values() if name in each.options]
                raise InputError(
                    f"{_flag(name)} has no effect with --strategy {self.strategy}: omit it, or choose --strategy"
                    f" {' or '.join(using)}"
                )
        if strategy.first_layers_only and self.layers is None:
            raise InputError(f"--strategy {self.strategy} needs --layers: add the number of the encoder's first layers")

    def recorded(self) -> dict[str, Any]:
        """All options for a record. A model folder is recorded by its name, so that no local path is published."""
        code = strategy_named(self.strategy).code_sha256
        own = {"strategy_code_sha256": code} if code else {}
        return {**asdict(self), "model": recorded_model(self.model), **own}


def recorded_model(model: str) -> str:
    """The name of a model folder without its path; a hub name unchanged."""
    return model_name_of(model) if model and Path(model).is_dir() else model


def model_name_of(model: str) -> str:
    """A model's name from its folder or hub name: the last part that identifies the model."""
    path = Path(model)
    parts = (path.resolve() if path.is_dir() else path).parts
    named = [part for part in parts if part.lower() not in ("model", "models", "snapshots", "/")]
    return named[-1] if named else model


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
