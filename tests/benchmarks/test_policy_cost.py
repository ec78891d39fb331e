"""The benchmark of exit decisions: every policy is measured. The times themselves are not tested."""

from __future__ import annotations

import pytest

from benchmarks import policy_cost
from berxit.runtime.policies import CRITERIA


@pytest.mark.parametrize("outputs", [1, 3])
def test_every_policy_is_measured(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_cost, "ROUNDS", 1)
    monkeypatch.setattr(policy_cost, "REPEATS", 1)
    policies = policy_cost.policies_for(4, outputs)
    assert {name for name, each in CRITERIA.items() if each.for_regression or outputs > 1} <= set(policies)
    found = policy_cost.microseconds(policies, outputs)
    assert found.keys() == policies.keys()
    assert all(cost > 0 for cost in found.values())
    assert "| learned " in policy_cost.report({outputs: found})
