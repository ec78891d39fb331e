"""Warnings about a rule that no threshold satisfies."""

from __future__ import annotations

import pytest
from test_rules import in_both_classes, population, rounded

from berxit.train.calibration import choose
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec
from berxit.train.rules import Keep, Risk, Rule


def warning_of(rule: Rule, predictions: Predictions) -> str:
    found = choose(predictions, PolicySpec("confidence"), rule, "data", "0").calibration
    assert found.saved_layers == 0
    return found.warnings[-1]


def test_keep_names_the_share_that_the_examples_of_a_bundle_guarantee() -> None:
    before = in_both_classes(population(300, 0))
    after = rounded(before, 2)
    own, full = after.score(after.predicted()[:, -1]), before.full_depth_score
    assert 0.99 * full < own < full
    line = warning_of(Keep(0.99), after)
    assert line.startswith(
        "300 examples are too few to guarantee --keep 0.99 with probability 0.9: full depth scores"
        f" {own:.4f} in this precision, {full:.4f} in the checkpoint, so the policy never exits early."
    )
    share = float(line.partition("calibrate the checkpoint with --keep ")[2].partition(",")[0])
    assert choose(after, PolicySpec("confidence"), Keep(share), "data", "0").calibration.saved_layers > 0
    above = Keep(round(share + 0.01, 2))
    assert choose(after, PolicySpec("confidence"), above, "data", "0").calibration.saved_layers == 0
    assert line.endswith("which these examples can guarantee, or calibrate it on more examples")


def test_keep_states_that_the_precision_alone_loses_more() -> None:
    after = rounded(in_both_classes(population(300, 0)), 30)
    assert warning_of(Keep(0.99), after).startswith("no threshold satisfies the rule: full depth scores ")


@pytest.mark.parametrize("of", ["disagreement", "label-error"])
def test_risk_states_the_risk_of_the_precision(of: str) -> None:
    after = rounded(in_both_classes(population(400, 0)), 100)
    line = warning_of(Risk(0.1, of=of), after)
    assert line.startswith(f"no threshold satisfies the rule: the risk ({of}) of full depth is 0.")
    assert line.endswith("Export with another --precision, or calibrate the checkpoint with a higher --risk")


def test_risk_per_exit_of_a_checkpoint_asks_for_more_examples() -> None:
    predictions = in_both_classes(population(100, 0))
    predictions.logits[:, 0] = -predictions.logits[:, 0]
    line = warning_of(Risk(0.1, per="exit"), predictions)
    assert "precision" not in line
    assert line.endswith("so the policy never exits early. Calibrate on more examples, or with a higher --risk")
