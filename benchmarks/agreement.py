"""Comparison of another runner's predictions with those of the Python runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from berxit.runtime import EarlyExitRunner
from berxit.runtime.policies import Floats
from berxit.runtime.tokenization import Text

NEAR = 1e-5
"""A row may exit elsewhere if a certainty is so near to its threshold."""


@dataclass(frozen=True)
class Agreement:
    """Rows on which another runner agrees with Python, and the others by number."""

    rows: int
    different: list[int]
    """Rows with another exit layer or label, unless they are near a threshold."""
    near: list[int]
    """Rows with another exit layer or label that have a certainty within NEAR of a threshold."""
    exit_layers: dict[int, int]
    """Exit layer -> rows, in Python."""
    largest_difference: float
    """Of the certainties at every exit."""


def compare(
    bundle: Path,
    texts: Sequence[Text],
    labels: Sequence[object],
    exit_layers: Sequence[int],
    certainties: Sequence[Floats],
) -> Agreement:
    """Compares ``labels``, ``exit_layers`` and ``certainties`` (one per exit) of another runner with Python's."""
    different, near, counts, largest = [], [], dict[int, int](), 0.0
    with EarlyExitRunner.load(bundle, backend="onnxruntime", threads=1) as runner:
        thresholds = runner.policy.thresholds
        regression = runner.manifest.model.regression
        for row, text in enumerate(texts):
            parts = text if isinstance(text, tuple) else (text,)
            own = runner.predict(*parts)
            stream = list(runner.stream(*parts))
            counts[own.exit_layer] = counts.get(own.exit_layer, 0) + 1
            largest = max(
                largest, float(np.abs(np.array(certainties[row]) - [each.certainty for each in stream]).max())
            )
            equal = np.isclose(labels[row], own.label, rtol=1e-4, atol=1e-4) if regression else labels[row] == own.label  # type: ignore[arg-type]
            if equal and exit_layers[row] == own.exit_layer:
                continue
            gaps = [
                np.abs(np.array(thresholds[each.exit_layer - 1]) - each.certainty).min()
                for each in stream
                if each.exit_layer <= len(thresholds)
            ]
            (near if min(gaps) <= NEAR else different).append(row)
    return Agreement(len(texts), different, near, dict(sorted(counts.items())), largest)
