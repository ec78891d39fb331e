"""Warnings of evaluation and calibration about scores at chance."""

from __future__ import annotations

from berxit.runtime.chance import chance_message
from berxit.train.evaluation import OperatingPoint, Predictions, answers_at, places_at

LITTLE_SAVED = 0.05
"""Share of saved layers below which exits at chance are worth a warning."""
TRAIN_LONGER = "Train again with more --epochs, another --learning-rate or more data"


def depth_warning(predictions: Predictions) -> str | None:
    """Full depth scores no better than the constant prediction: nothing else in the pass means anything."""
    if not predictions.at_chance(predictions.full_depth):
        return None
    message = _chance("full depth", predictions, predictions.full_depth_score)
    return f"{message}. Thresholds and relative scores mean nothing here. {TRAIN_LONGER}"


def exits_warning(predictions: Predictions, saved: float) -> str | None:
    """Early exits at chance, where the policy saves hardly any layers. ``saved``: its share of saved layers."""
    if saved >= LITTLE_SAVED or not (weak := exits_at_chance(predictions)):
        return None
    return (
        f"early exits at chance, {saved:.0%} of the layers saved: after layers {', '.join(map(str, weak))},"
        f" {predictions.metric} does not exceed the constant prediction's {predictions.constant.score:.4f} by more than"
        " sampling error. Train again with --pooling mean, --head-learning-rate 1e-3 or more --epochs"
    )


def policy_warning(predictions: Predictions, criterion: str, point: OperatingPoint, stricter: str) -> str | None:
    """The policy at ``point`` scores no better than the constant prediction, or predicts one class for every example.

    ``stricter``: the option that asks for more, for the message.
    """
    chosen = answers_at(predictions, places_at(predictions, criterion, [point.threshold], point.tolerance))[0]
    constant = not predictions.regression and len(set(chosen.tolist())) == 1
    if not (constant or predictions.at_chance(chosen)):
        return None
    name = f"'{predictions.names[int(chosen[0])]}'" if predictions.names else f"class {chosen[0]}"
    predicted = f" (it predicts {name} for every example)" if constant else ""
    full = predictions.full_depth_score
    return (
        f"{_chance('the chosen policy', predictions, point.score)}{predicted}, while full depth scores {full:.4f}."
        f" Calibrate again with {stricter}"
    )


def exits_at_chance(predictions: Predictions) -> list[int]:
    """The layers before the last whose exits score no better than the constant prediction."""
    columns = zip(predictions.exit_layers[:-1].tolist(), predictions.answers().T, strict=False)
    return [layer for layer, answers in columns if predictions.at_chance(answers)]


def _chance(what: str, predictions: Predictions, score: float) -> str:
    return chance_message(what, predictions.metric, score, predictions.constant, len(predictions.labels))
