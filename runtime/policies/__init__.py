"""Exit policies: criteria, and the thresholds and settings that decide at which layer an input exits."""

from berxit.runtime.policies.criteria import (
    UNBOUNDED,
    Bools,
    Certainty,
    Criterion,
    Floats,
    Ints,
    Memory,
    Parameters,
    Streak,
    softmax,
)
from berxit.runtime.policies.policy import ExitPolicy, FixedDepth, certainties, exit_layers, exit_layers_at
from berxit.runtime.policies.registry import (
    BUILT_IN,
    CRITERIA,
    adaptive_criterion_from,
    criterion_from,
    criterion_named,
    register_criterion,
)

__all__ = [
    "BUILT_IN",
    "CRITERIA",
    "UNBOUNDED",
    "Bools",
    "Certainty",
    "Criterion",
    "ExitPolicy",
    "FixedDepth",
    "Floats",
    "Ints",
    "Memory",
    "Parameters",
    "Streak",
    "adaptive_criterion_from",
    "certainties",
    "criterion_from",
    "criterion_named",
    "exit_layers",
    "exit_layers_at",
    "register_criterion",
    "softmax",
]
