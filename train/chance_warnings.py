"""Warnings of evaluation and calibration about scores at chance."""

from __future__ import annotations

import numpy.typing as npt

from berxit.runtime.chance import chance_message
from berxit.train.evaluation import Predictions

LITTLE_SAVED = 0.05
"""Exits at chance cause a warning if the share of saved layers is below this value."""
TRAIN_LONGER = "Retrain with more --epochs, another --learning-rate or more data"


def depth_warning(predictions: Predictions) -> str | None:
    """A warning if full depth scores no better than the constant prediction; no other result of the pass is then
    meaningful."""
    if not predictions.at_chance(predictions.full_depth):
        return None
    message = _chance("full depth", predictions, predictions.full_depth_score)
    return f"{message}. Thresholds and relative scores are not meaningful for this model. {TRAIN_LONGER}"


def exits_warning(predictions: Predictions, saved: float) -> str | None:
    """A warning if early exits are at chance and the policy saves few layers. ``saved``: its share of saved layers."""
    if saved >= LITTLE_SAVED or not (weak := exits_at_chance(predictions)):
        return None
    return (
        f"early exits at chance, {saved:.0%} of the layers saved: after layers {', '.join(map(str, weak))},"
        f" {predictions.metric} does not exceed the constant prediction's {predictions.constant.score:.4f} by more than"
        " sampling error. Retrain with --pooling mean, --head-learning-rate 1e-3 or more --epochs"
    )


def policy_warning(predictions: Predictions, chosen: npt.NDArray, stricter: str) -> str | None:
    """A warning if a policy with the predictions ``chosen`` (N,) scores no better than the constant prediction, or
    predicts one class for every example.

    ``stricter``: the option that the message recommends.
    """
    constant = not predictions.regression and len(set(chosen.tolist())) == 1
    if not (constant or predictions.at_chance(chosen)):
        return None
    name = f"'{predictions.text(chosen[0])}'"
    predicted = f" (it predicts {name} for every example)" if constant else ""
    message = _chance("the chosen policy", predictions, predictions.score(chosen))
    return (
        f"{message}{predicted}, while full depth scores {predictions.full_depth_score:.4f}. Recalibrate with {stricter}"
    )


def exits_at_chance(predictions: Predictions) -> list[int]:
    """The layers before the last one whose exits score no better than the constant prediction."""
    columns = zip(predictions.exit_layers[:-1].tolist(), predictions.predicted().T, strict=False)
    return [layer for layer, predicted in columns if predictions.at_chance(predicted)]


def _chance(what: str, predictions: Predictions, score: float) -> str:
    return chance_message(what, predictions.metric, score, predictions.constant, len(predictions.labels))
