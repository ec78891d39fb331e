"""The exit criteria by name."""

from __future__ import annotations

from berxit.runtime.errors import InputError
from berxit.runtime.policies.criteria import Agreement, Confidence, Criterion, Entropy, Fixed, Lte, Patience
from berxit.runtime.policies.learned import Learned

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (Confidence(), Entropy(), Lte(), Patience(), Agreement(), Learned(), Fixed())
}


def criterion_named(name: str) -> Criterion:
    """Criterion of CRITERIA. Raises InputError for an unknown name."""
    if name not in CRITERIA:
        raise InputError(f"unknown exit criterion '{name}': choose one of {', '.join(CRITERIA)}")
    return CRITERIA[name]
