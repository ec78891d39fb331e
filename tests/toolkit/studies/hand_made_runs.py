"""Runs of a study that are written out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from berxit.toolkit.studies.runs import StudyRun
from berxit.train.evaluation import Predictions


def hand_made_run(
    strategy: str, scores: list[float], /, model: str = "m", seed: int | None = None, **options: object
) -> StudyRun:
    """A run whose layers score ``scores``, in tenths of ten examples, of which five have each label."""
    labels = np.arange(10) % 2
    right = np.array([[row < round(10 * score) for score in scores] for row in range(10)])
    predicted = np.where(right, labels[:, None], 1 - labels[:, None])
    logits = np.stack([1 - predicted, predicted], axis=-1).astype(np.float32)
    return run_of(Predictions(logits, None, labels, "accuracy"), strategy, model, seed, **options)


def run_of(
    predictions: Predictions, strategy: str, model: str = "m", seed: int | None = None, **options: object
) -> StudyRun:
    name = "-".join(map(str, [model, strategy, seed, *options.values(), id(predictions)]))
    return StudyRun(Path(name), model, strategy, dict(options), seed, "t", predictions, name)
