"""Warnings about a rule that no threshold satisfies: the reason, and a change that helps. The policy never exits early.

On the pass of a bundle, a rule compares with full depth of the checkpoint. So the precision alone may break the rule,
or leave too little margin for a guarantee from so few examples.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from berxit.train.evaluation import Predictions, layer_scores
from berxit.train.families import PolicySpec
from berxit.train.guarantee import least_rows
from berxit.train.risks import Loss
from berxit.train.rules import Keep, Risk, Rule

NEVER = "so the policy never exits early"


def unmet(rule: Rule, predictions: Predictions, spec: PolicySpec) -> str:
    """Reason and advice in one line. ``rule`` chose full depth on ``predictions``, because no threshold passed."""
    if isinstance(rule, Keep):
        return _keep(rule, predictions, spec)
    assert isinstance(rule, Risk)  # a budget is satisfied or raises an error
    return _risk(rule, predictions)


def _keep(rule: Keep, predictions: Predictions, spec: PolicySpec) -> str:
    rows, own, full = len(predictions.labels), layer_scores(predictions)[-1], predictions.full_depth_score
    few = f"{rows} examples are too few to guarantee --keep {rule.keep:g} with probability {1 - rule.delta:g}"
    lower = _lower_keep(rule, predictions, spec)
    instead = f"--keep {lower:g}" + ("" if rule.optimistic else ", which these examples can guarantee") if lower else ""
    if own >= full:
        needed = least_rows(full, rule.keep, rule.delta) if predictions.metric == "accuracy" else 0
        line = f"{few}, {NEVER}" + (f"; that takes at least {max(needed, rows + 1)} examples" if needed else "")
        optimistic = "or with --optimistic, which does not allow for chance"
        return f"{line}. Calibrate with {instead or 'more examples'}, {optimistic}"
    scores = f"full depth scores {own:.4f} in this precision, {full:.4f} in the checkpoint, {NEVER}"
    enough = own >= rule.keep * full and not rule.optimistic
    advice = ["Export with another --precision"]
    advice += [f"calibrate the checkpoint with {instead}"] if instead else []
    advice += ["calibrate it on more examples"] if enough else []
    return f"{few if enough else 'no threshold satisfies the rule'}: {scores}. {', or '.join(advice)}"


def _lower_keep(rule: Keep, predictions: Predictions, spec: PolicySpec) -> float | None:
    """The largest share in percent, at least 0.5, for which a threshold passes on the same examples; None if there is
    none."""
    shares = (np.arange(math.ceil(100 * rule.keep) - 1, 49, -1) / 100).tolist()
    choices = ((keep, replace(rule, keep=keep).choose(predictions, spec)) for keep in shares)
    return next((keep for keep, choice in choices if choice.met and choice.point.saved_layers > 0), None)


def _risk(rule: Risk, predictions: Predictions) -> str:
    if predictions.reference is None:  # only a risk per exit: full depth has no loss
        return (
            f"no threshold satisfies the rule: {len(predictions.labels)} examples do not show a risk of at most"
            f" {rule.risk:g} among the inputs of any exit, {NEVER}. Calibrate on more examples, or with a higher --risk"
        )
    found = float(Loss(predictions, rule.of)(predictions.predicted()[:, -1]).mean())
    return (
        f"no threshold satisfies the rule: the risk ({rule.of}) of full depth is {found:.4f} in this precision,"
        f" {NEVER}. Export with another --precision, or calibrate the checkpoint with a higher --risk"
    )
