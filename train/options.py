"""What may be chosen for a fine-tuning, and what each number may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from berxit.runtime.errors import InputError
from berxit.train.configuration import EXIT_HEADS, POOLINGS
from berxit.train.strategies import STRATEGIES, strategy_named


class Bound(NamedTuple):
    """Which numbers an option takes."""

    holds: Callable[[float], bool]
    words: str


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
    "dev_fraction": Bound(lambda value: 0 < value < 1, "above 0 and below 1: the share of rows to hold out"),
    "layers": ABOVE_ZERO,
    "warm_up_steps": FROM_ZERO,
    "distillation": FROM_ZERO,
    "seed": Bound(lambda value: 0 <= value < 2**32, "from 0 to 2^32 - 1"),
    "max_length": Bound(lambda value: value >= 4, "4 or more: a text stands between special tokens"),
}
"""Option -> what it may be; None, where it is allowed, means that it was not given."""

CHOICES: dict[str, Sequence[str]] = {"exit_head": EXIT_HEADS, "pooling": POOLINGS}


@dataclass(frozen=True)
class TrainingOptions:
    """What the user chose; the defaults are the paper's (appendix B). Raises InputError for what cannot be."""

    model: str
    strategy: str = "alternating"
    lte: bool = True
    layers: int | None = None
    """Only the first so many layers of the encoder; None takes all."""
    exit_head: str = "linear"
    pooling: str = "first"
    epochs: float = 3
    max_steps: int | None = None
    batch_size: int = 8
    """Rows per process and batch."""
    gradient_accumulation: int = 1
    """Batches per optimiser step."""
    learning_rate: float = 2e-5
    head_learning_rate: float | None = None
    """Of the exits and the LTE module; None takes ``learning_rate``, as the paper does."""
    seed: int = 42
    max_length: int = 128
    limit_train: int | None = None
    bf16: bool = False
    """Mixed precision: matrix products in bfloat16, weights and losses in float32."""
    warm_up_steps: int = 0
    """This and the next two: see train.objectives.LossOptions."""
    distillation: float = 0.0
    layer_weights: str = "uniform"
    """uniform, linear, or n numbers with commas."""
    skip_bad_rows: bool = False
    """Leave out rows of the data that do not fit, instead of refusing the file."""
    dev_fraction: float | None = None
    """Share of the training rows to hold out as the dev split, where the data has none."""

    def __post_init__(self) -> None:
        strategy = strategy_named(self.strategy)
        for name, choices in CHOICES.items():
            if (chosen := getattr(self, name)) not in choices:
                raise InputError(f"unknown {_flag(name)} '{chosen}': choose one of {', '.join(choices)}")
        for name, bound in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not bound.holds(value):
                raise InputError(f"{_flag(name)} is {value}: it must be {bound.words}")
        given = {
            "warm_up_steps": self.warm_up_steps > 0,
            "distillation": self.distillation > 0,
            "layer_weights": self.layer_weights != "uniform",
        }
        for name in (name for name, is_given in given.items() if is_given):
            if name not in strategy.options:
                takes = [each.name for each in STRATEGIES.values() if name in each.options]
                raise InputError(f"{_flag(name)} goes with --strategy {' or '.join(takes)}")
        if strategy.first_layers_only and self.layers is None:
            raise InputError(f"--strategy {self.strategy} needs --layers: the number of the encoder's first layers")

    def recorded(self) -> dict[str, Any]:
        """All options, for a file: of a model folder only its name, so that no path leaves this machine."""
        return {**asdict(self), "model": recorded_model(self.model)}


def recorded_model(model: str) -> str:
    """A model folder's name without the path to it; a hub name as it is."""
    return model_name_of(model) if model and Path(model).is_dir() else model


def model_name_of(model: str) -> str:
    """A model's name from its folder or hub name: the last part that tells models apart."""
    path = Path(model)
    parts = (path.resolve() if path.is_dir() else path).parts
    named = [part for part in parts if part.lower() not in ("model", "models", "snapshots", "/")]
    return named[-1] if named else model


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
