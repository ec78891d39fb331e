"""The training options among which a sweep searches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from berxit.runtime.errors import InputError
from berxit.train.configuration import POOLINGS
from berxit.train.options import TrainingOptions
from berxit.train.recipes import DEFAULT
from berxit.train.strategies import STRATEGIES

if TYPE_CHECKING:
    from optuna import Trial

Setting = dict[str, Any]
"""Name of a training option -> its value."""


def searchable() -> tuple[str, ...]:
    """The strategies that train all exits, without which there is no trade-off curve; the user's own included."""
    return tuple(name for name, each in STRATEGIES.items() if not each.last_exit_only)


@dataclass(frozen=True)
class Space:
    """Choices and ranges. A choice of one value, or a range of one number, is fixed.

    Raises InputError for a strategy that trains only the last exit, an unknown name, or a range that is not ascending.
    """

    strategy: Sequence[str] = field(default_factory=searchable)
    pooling: Sequence[str] = tuple(POOLINGS)
    learning_rate: tuple[float, float] = (1e-5, 5e-4)
    head_learning_rate: tuple[float, float] = (1e-5, 1e-2)
    """Learning rate of exits and LTE module."""

    def __post_init__(self) -> None:
        allowed = searchable()
        for strategy in self.strategy:
            if strategy not in allowed:
                only = " that trains all exits" if strategy in STRATEGIES else ""
                raise InputError(f"--strategy {strategy}: choose one{only} of {', '.join(allowed)}")
        for pooling in self.pooling:
            if pooling not in POOLINGS:
                raise InputError(f"--pooling {pooling}: choose one of {', '.join(POOLINGS)}")
        for name in ("learning_rate", "head_learning_rate"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {low:g} {high:g}: give two numbers above 0, the smaller first")

    def recorded(self) -> dict[str, Any]:
        """The space as JSON types."""
        return {name: list(value) for name, value in asdict(self).items()}

    def first(self, base: TrainingOptions) -> Setting:
        """The setting of the first trial: the values of ``base``, or the nearest ones in the space."""
        rates = {
            "learning_rate": base.learning_rate,
            "head_learning_rate": base.head_learning_rate or base.learning_rate,
        }
        names = {"strategy": base.strategy, "pooling": base.pooling or DEFAULT["pooling"]}
        return {
            **{name: self._nearest_choice(name, value) for name, value in names.items()},
            **{name: min(max(value, getattr(self, name)[0]), getattr(self, name)[1]) for name, value in rates.items()},
        }

    def _nearest_choice(self, name: str, value: str) -> str:
        choices: Sequence[str] = getattr(self, name)
        return value if value in choices else choices[0]

    def suggest(self, trial: Trial) -> Setting:
        """The setting of a trial: Optuna's suggestions."""
        return {
            **{name: trial.suggest_categorical(name, list(getattr(self, name))) for name in ("strategy", "pooling")},
            **{
                name: trial.suggest_float(name, *getattr(self, name), log=True)
                for name in ("learning_rate", "head_learning_rate")
            },
        }


def options_of(base: TrainingOptions, setting: Setting) -> TrainingOptions:
    """The options of a trial, which trains on all rows of its file.

    Learning rates have two significant digits, so that a command line can repeat them.
    """
    rounded: Setting = {
        name: float(f"{value:.1e}") if isinstance(value, float) else value for name, value in setting.items()
    }
    return replace(base, dev_fraction=0, **rounded)
