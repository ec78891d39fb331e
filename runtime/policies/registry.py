"""The exit criteria by name: those of this project, and a user's own after ``register_criterion``."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from berxit.runtime.errors import InputError, first_line
from berxit.runtime.extensions import UnregisteredError, check_name, is_reference, load_object
from berxit.runtime.policies.criteria import Agreement, Confidence, Criterion, Entropy, Fixed, Lte, Parameters, Patience
from berxit.runtime.policies.learned import Learned

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (Confidence(), Entropy(), Lte(), Patience(), Agreement(), Learned(), Fixed())
}
BUILT_IN = frozenset(CRITERIA)
"""The names of this project's criteria."""


def criterion_named(name: str) -> Criterion:
    """Criterion of CRITERIA. Raises UnregisteredError for an unknown name."""
    if name not in CRITERIA:
        raise UnregisteredError("criterion", name, CRITERIA)
    return CRITERIA[name]


def register_criterion(criterion: Criterion | type[Criterion]) -> str:
    """Adds a user's criterion to CRITERIA and returns its name. A second one of the same name replaces the first.

    Bundles contain the name only, so a device has to register the criterion before it loads the bundle. Raises
    InputError for a built-in name, and for a certainty that is not one number per row.
    """
    where = getattr(criterion, "__name__", type(criterion).__name__)
    if isinstance(criterion, type) and issubclass(criterion, Criterion):
        try:
            criterion = criterion()
        except TypeError as error:
            raise InputError(f"{where} cannot be created: {first_line(error)}. Fix the class") from error
    if not isinstance(criterion, Criterion):
        raise InputError(f"{where} is no criterion: it must be a subclass of berxit.runtime.policies.Criterion")
    name = check_name(getattr(criterion, "name", None), where, BUILT_IN)
    if not hasattr(criterion, "description"):
        criterion.description = (inspect.getdoc(criterion) or name).splitlines()[0].rstrip(".")
    _check(criterion, where)
    CRITERIA[name] = criterion
    return name


def criterion_from(text: str) -> str:
    """Name of the criterion that a user chose: a name of CRITERIA, or FILE.py:NAME or MODULE:NAME, which is imported
    and registered. Raises InputError as ``register_criterion`` and ``load_object`` do."""
    return register_criterion(load_object(text)) if is_reference(text) else criterion_named(text).name


def adaptive_criterion_from(text: str) -> str:
    """``criterion_from`` for a trade-off curve. Also raises InputError for a criterion without thresholds."""
    name = criterion_from(text)
    if not criterion_named(name).adaptive:
        raise InputError(f"--criterion {name} has no thresholds: choose an adaptive criterion")
    return name


def _check(criterion: Criterion, where: str) -> None:
    """Raises InputError unless the criterion computes one number per row at two consecutive exits of a small pass."""
    rows = 3
    generator = np.random.default_rng(0)
    for outputs in (2, 1) if criterion.for_regression else (2,):
        memory: Any = None
        for _exit in range(2):
            logits = generator.normal(size=(rows, outputs)).astype(np.float32)
            lte = np.full(rows, 0.5, np.float32)
            try:
                certainty, memory = criterion.certainty(logits, lte, memory, Parameters())
                memory = None if memory is None else memory.keep(np.ones(rows, dtype=bool))
                shape, kind = np.shape(certainty), np.asarray(certainty).dtype.kind
                low, high = criterion.bounds(max(outputs, 2))
            except Exception as error:
                raise InputError(
                    f"{where}.certainty fails on logits ({rows}, {outputs}): {type(error).__name__}:"
                    f" {first_line(error)}. Fix the class; it must return certainties (B,) and a state or None"
                ) from error
            if shape != (rows,) or kind not in "fiu":
                raise InputError(
                    f"{where}.certainty returns shape {shape}, dtype {np.asarray(certainty).dtype} for logits ({rows},"
                    f" {outputs}): it must return one number per row, and a state or None"
                )
            if not low < high:
                raise InputError(f"{where}.bounds returns {low:g} and {high:g}: the first must be the smaller")
