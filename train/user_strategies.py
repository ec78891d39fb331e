"""A user's own fine-tuning strategy, from a file of the user or from a notebook."""

from __future__ import annotations

import hashlib
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from berxit.runtime.errors import InputError
from berxit.runtime.extensions import check_name, is_reference, load_object
from berxit.train.objectives import Objective, stages_of
from berxit.train.strategies import BUILT_IN, LOSS_OPTIONS, STRATEGIES, Strategy, strategy_named


def register_strategy(strategy: Any) -> str:
    """Adds a user's strategy to STRATEGIES and returns its name. A second one of the same name replaces the first.

    ``strategy``: a Strategy, or a subclass of train.objectives.Objective, which becomes a strategy of one stage. Raises
    InputError for a built-in name, and for a stage that is no Objective.
    """
    where = getattr(strategy, "__name__", type(strategy).__name__)
    if isinstance(strategy, type) and issubclass(strategy, Objective):
        if inspect.isabstract(strategy):
            missing = ", ".join(sorted(strategy.__abstractmethods__))
            raise InputError(f"{where} does not define {missing}: define it as train/objectives.py does")
        strategy = Strategy(
            getattr(strategy, "name", where),
            (inspect.getdoc(strategy) or where).splitlines()[0].rstrip("."),
            (f"{strategy.__module__}:{where}",),
            LOSS_OPTIONS if strategy.loss is Objective.loss else (),
        )
    if not isinstance(strategy, Strategy):
        raise InputError(f"{where} is no strategy: it must be a Strategy, or a subclass of train.objectives.Objective")
    check_name(strategy.name, where, BUILT_IN)
    classes = stages_of(strategy)
    own = [file for each in classes if each.__module__ != Objective.__module__ and (file := _file_of(each))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in own)).hexdigest() if own else None
    STRATEGIES[strategy.name] = replace(strategy, code_sha256=digest)
    return strategy.name


def strategy_from(text: str) -> str:
    """Name of the strategy that a user chose: a name of STRATEGIES, or FILE.py:NAME or MODULE:NAME, which is imported
    and registered. Raises InputError as ``register_strategy`` and ``load_object`` do."""
    return register_strategy(load_object(text)) if is_reference(text) else strategy_named(text).name


def _file_of(objective: type) -> Path | None:
    """The file that defines a class; None for a class of a notebook."""
    file = getattr(sys.modules.get(objective.__module__), "__file__", None)
    return Path(file) if file and Path(file).is_file() else None
