"""The fine-tuning strategies by name. Imports no torch, so that help texts and options can list them.

A new strategy is a class in ``train/objectives.py`` for each of its stages that does not exist yet, and an entry here.
``train/user_strategies.py`` adds a user's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from berxit.runtime.errors import InputError

LOSS_OPTIONS = ("warm_up_steps", "distillation", "layer_weights")
"""Fields of train.objectives.LossOptions that not every strategy uses."""
CLASS_WEIGHTS = ("none", "balanced")
"""Weights of the classes in the cross-entropy."""


@dataclass(frozen=True)
class Strategy:
    """One way to fine-tune a multi-exit model."""

    name: str
    description: str
    """One line for help texts and documentation."""
    stages: tuple[str, ...]
    """Classes in train.objectives, or "module:name" of a class elsewhere. Each stage trains for all epochs, with a
    learning rate schedule of its own."""
    options: tuple[str, ...] = ()
    """The LossOptions that the strategy uses."""
    last_exit_only: bool = False
    """Only the last exit is trained; its score is the 100% of relative scores."""
    first_layers_only: bool = False
    """``--layers`` is required."""
    code_sha256: str | None = None
    """sha256 of the user's file with the strategy; None for those of this project. A run is not continued, and not
    recognized as finished, after the file has changed."""


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "alternating",
            "odd steps minimize the last exit's loss, even steps the sum of all (equations 5 and 6)",
            ("Alternating",),
            LOSS_OPTIONS,
        ),
        Strategy("joint", "every step minimizes the sum of all losses (equation 3)", ("Joint",), LOSS_OPTIONS),
        Strategy(
            "two-stage",
            "the last exit first; then the other exits, with encoder and last exit frozen (equations 4 and 7)",
            ("Raw", "OtherExits"),
        ),
        Strategy(
            "self-distillation",
            "the last exit first; then the other exits learn its output distribution (appendix A)",
            ("Raw", "Distillation"),
        ),
        Strategy("raw", "only the last exit is trained (equation 4)", ("Raw",), last_exit_only=True),
        Strategy(
            "limit",
            "raw, on the first --layers layers of the encoder (figure 9)",
            ("Raw",),
            last_exit_only=True,
            first_layers_only=True,
        ),
    )
}
"""Name -> strategy, the default first."""


BUILT_IN = frozenset(STRATEGIES)


def strategy_named(name: str) -> Strategy:
    """The entry of STRATEGIES. Raises InputError for an unknown name."""
    if name not in STRATEGIES:
        raise InputError(
            f"unknown --strategy '{name}': choose one of {', '.join(STRATEGIES)}, or your own (FILE.py:NAME)"
        )
    return STRATEGIES[name]
