"""The rank of a setting: the area under its trade-off curve on rows that its training did not use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from berxit.runtime.examples import Examples
from berxit.runtime.progress import Progress, silent
from berxit.train.checkpoint import load_checkpoint
from berxit.train.curves import Curve
from berxit.train.evaluation import best_device, layer_scores, predict
from berxit.train.sweeps import sweep

POINTS = 60
"""Largest number of points of a curve that the results contain."""


@dataclass(frozen=True)
class Measure:
    """Scores of a checkpoint on one set of rows."""

    area: float
    """See ``area_under``."""
    layer_scores: tuple[float, ...]
    """(n,) the score of each exit."""
    layers: tuple[float, ...]
    """(P,) average exit layers of the trade-off curve."""
    scores: tuple[float, ...]
    """(P,) its scores."""
    constant: float
    """The score of the constant prediction."""

    @property
    def full_depth(self) -> float:
        return self.layer_scores[-1]


def measure(checkpoint: Path, examples: Examples, criterion: str | None, progress: Progress = silent) -> Measure:
    """Runs a checkpoint over labelled examples. ``criterion``: None for the task's default.

    Raises BerxitError for outputs without a score, such as NaN, and InputError for an unfit criterion.
    """
    model, tokenizer = load_checkpoint(checkpoint, best_device())
    predictions = predict(model, tokenizer, examples, progress=progress, source="the ranking rows")
    scores = layer_scores(predictions)
    curve = sweep(predictions, criterion or predictions.default_criterion).curve()
    places = np.unique(np.linspace(0, len(curve.layers) - 1, POINTS).round().astype(int))
    constant = predictions.constant.score
    return Measure(
        area_under(curve, constant),
        tuple(scores),
        tuple(curve.layers[places].tolist()),
        tuple(curve.scores[places].tolist()),
        constant,
    )


def area_under(curve: Curve, floor: float = -np.inf) -> float:
    """Area under a trade-off curve from average exit layer 1 to n, divided by n - 1: the mean score over all average
    exit layers, in units of the metric. Scores below ``floor``, that of the constant prediction, count as ``floor``.

    A curve that starts at a deeper layer, as that of patience, has its first score before. With one layer, it is the
    score.
    """
    if curve.depth == 1:
        return float(max(curve.scores[-1], floor))
    if floor > -np.inf:
        curve = curve.clipped(floor)
    knots = np.unique(np.concatenate([[1.0, curve.depth], curve.layers]))
    scores = np.interp(knots, curve.layers, curve.scores)
    return float((scores[1:] + scores[:-1]) / 2 @ np.diff(knots) / (curve.depth - 1))
