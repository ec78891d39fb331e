"""Exit policies: criteria, and the thresholds and settings that decide at which layer an input exits."""

from berxit.runtime.policies.criteria import (
    CRITERIA,
    UNBOUNDED,
    Bools,
    Certainty,
    Criterion,
    Floats,
    Ints,
    Memory,
    Parameters,
    Streak,
    criterion_named,
    softmax,
)
from berxit.runtime.policies.policy import ExitPolicy, FixedDepth, certainties, exit_layers, exit_layers_at

__all__ = [
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
    "certainties",
    "criterion_named",
    "exit_layers",
    "exit_layers_at",
    "softmax",
]
