"""The calibration rule from options: exclusive rules, and options of a rule that was not chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from berxit.runtime import InputError
from berxit.toolkit.rule_options import RuleOptions
from berxit.train.rules import Keep, Risk


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, Keep(0.99, 0.1)),
        ({"keep": 0.9, "delta": 0.2}, Keep(0.9, 0.2)),
        ({"keep": 0.9, "optimistic": True}, Keep(0.9, 0.1, optimistic=True)),
        ({"risk": 0.1}, Risk(0.1)),
        ({"risk": 0.1, "risk_of": "misses:cat", "per": "all", "delta": 0.3}, Risk(0.1, 0.3, of="misses:cat")),
        ({"risk": 0.1, "risk_of": "label-error", "per": "class"}, Risk(0.1, of="label-error", per="class")),
    ],
)
def test_options_name_a_rule(options: dict[str, Any], rule: Keep | Risk) -> None:
    assert RuleOptions(**options).rule(Path("checkpoint")) == rule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.9, "risk": 0.1}, "--keep and --risk exclude each other: choose one"),
        ({"risk": 0.1, "optimistic": True}, "--optimistic goes with --keep"),
        ({"delta": 0.1, "optimistic": True}, "--delta goes with --keep or --risk"),
        ({"risk_of": "label-error"}, "--risk-of goes with --risk: add it, or omit --risk-of"),
        ({"per": "class", "keep": 0.9}, "--per goes with --risk: add it, or omit --per"),
        ({"bench": "bench.json"}, "--bench goes with --budget-ms"),
        ({"budget_ms": 5.0}, "--budget-ms needs --bench bench.json"),
    ],
)
def test_options_that_do_not_fit_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RuleOptions(**options)
