"""Text of a policy's diagnostics: scores per class, confusion matrix, wrong rows, flips."""

from __future__ import annotations

from collections.abc import Sequence

from berxit.runtime.tables import markdown_table, plural
from berxit.runtime.tokenization import Text
from berxit.toolkit.row_tables import confusion_table, shortened
from berxit.train.diagnostics import PolicyDiagnostics, WrongRow

LISTED = 10
"""Largest number of wrong rows in the text; eval.json contains more."""


def policy_text(policy: PolicyDiagnostics, *, calibrated: bool) -> list[str]:
    """Tables of a model with classes or labels under its policy; without a calibrated one, at full depth."""
    rows = [
        [
            each.name,
            str(each.examples),
            *map(_score, (each.precision, each.recall, each.f1)),
            *([_score(full.f1)] if calibrated else []),
        ]
        for each, full in zip(policy.classes, policy.full_depth_classes, strict=True)
    ]
    title = "scores per class at full depth (berxit-calibrate chooses a policy)"
    if calibrated:
        title = (
            f"calibrated policy: average exit layer {policy.average_exit_layer:.2f}; {policy.flipped:.1%} of the"
            f" predictions differ from full depth's, {policy.fixed_by_exiting:.1%} are right where full depth is wrong"
        )
    header = ["class", "examples", "precision", "recall", "f1", *(["f1 at full depth"] if calibrated else [])]
    parts = [title, markdown_table(header, rows)]
    parts += confusion_table(policy.confusion, [each.name for each in policy.classes]) if policy.confusion else []
    if policy.flips:
        listed = [
            [
                _text(flip.text),
                str(flip.exit_layer),
                f"{flip.certainty:.3f}",
                flip.prediction,
                flip.full_depth,
                flip.label,
            ]
            for flip in policy.flips
        ]
        parts.append("predictions that differ from full depth's, the most certain first")
        header = ["text", "exit layer", "certainty", "prediction", "full depth", "label"]
        parts.append(markdown_table(header, listed))
    return parts


def wrong_text(wrong: Sequence[WrongRow], count: int, examples: int, *, regression: bool) -> list[str]:
    """Table of wrong rows. ``count``: the number of all wrong rows among ``examples``."""
    if not wrong:
        return [] if regression else [f"no wrong rows among {plural(examples, 'example')}"]
    header = ["text", "label", "prediction", "exit layer"]
    rows = [
        [_text(each.text), _value(each.label), _value(each.prediction), str(each.exit_layer)] for each in wrong[:LISTED]
    ]
    if regression:  # patience, the criterion of an uncalibrated regression, has no certainty that a reader can compare
        return ["rows with the largest errors", markdown_table(header, rows)]
    title = f"wrong rows, {count} of {examples}, the most certain first"
    certain = [[*row, f"{each.certainty:.3f}"] for row, each in zip(rows, wrong, strict=False)]
    return [title, markdown_table([*header, "certainty"], certain)]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _text(text: Text) -> str:
    return " / ".join(map(shortened, (text,) if isinstance(text, str) else text))
