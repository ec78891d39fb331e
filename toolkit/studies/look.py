"""Plot styles of the studies: one color per model; one marker and one line style per strategy, the same in every
figure.

The colors are Okabe and Ito's, which color-blind readers can distinguish. Markers and line styles distinguish the
lines without color. Groups of one strategy that differ in options have different marker fills.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.toolkit.studies.runs import Group
from berxit.train.strategies import STRATEGIES

GRAY = "#6b7280"
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Without yellow, which is hard to see on white, and black."""
LINES: tuple[tuple[str, Any], ...] = (
    ("o", "-"),
    ("^", "--"),
    ("s", "-."),
    ("D", ":"),
    ("X", (0, (8, 2))),
    ("v", (0, (5, 1, 1, 1, 1, 1))),
    ("P", (0, (1, 3))),
)
"""Markers and line styles: of the strategies in the order of STRATEGIES, or of the criteria in a study of criteria."""
HIGHEST = 120.0
"""Relative scores above this percentage are not drawn, because the reference is then too low."""


def model_colors(models: Sequence[str]) -> dict[str, str]:
    """Model -> color. It follows from the model's name, so that a model has the same color in every figure, unless two
    models of a figure would have the same."""
    found: dict[str, str] = {}
    for model in models:
        start = int(hashlib.sha256(model.encode()).hexdigest(), 16) % len(COLORS)
        order = [*COLORS[start:], *COLORS[:start]]
        found[model] = next((color for color in order if color not in found.values()), order[0])
    return found


def line_style(place: int) -> dict[str, Any]:
    """Marker and line style number ``place``. They repeat after the last."""
    marker, line = LINES[place % len(LINES)]
    return {"marker": marker, "ls": line}


def fills(color: str) -> tuple[str, ...]:
    """Marker fills that distinguish groups of one strategy."""
    return (color, "white", "#d1d5db", "black")


def looks(groups: Sequence[Group], color: str) -> dict[str, dict[str, Any]]:
    """Label -> keywords for ``plot``, for the groups of one model."""
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        place = list(STRATEGIES).index(group.strategy) if group.strategy in STRATEGIES else len(STRATEGIES)
        before = sum(other.strategy == group.strategy for other in groups[: groups.index(group)])
        found[group.label] = {
            **line_style(place),
            "color": color,
            "markerfacecolor": fills(color)[before % len(fills(color))],
        }
    return found


def drawable(values: npt.ArrayLike, highest: float = HIGHEST) -> npt.NDArray[np.float64]:
    """Values for a figure, such as relative scores; NaN (a gap) above ``highest``."""
    found = np.asarray(values, dtype=np.float64)
    return np.where(found > highest, np.nan, found)


def not_drawn(model: str, relative: Iterable[npt.ArrayLike]) -> list[str]:
    """The warning about scores that the figure does not show; empty if it shows all."""
    highest = max((float(np.max(values)) for values in relative), default=0.0)
    if highest <= HIGHEST:
        return []
    return [
        f"warning: {model}: relative scores reach {highest:.0f}%, and the figure does not show those above"
        f" {HIGHEST:g}%: the reference is too low. Set --relative-to to a fully trained checkpoint, or to its score"
    ]


def plain(values: Iterable[float | None]) -> list[float | None]:
    """Numbers as plain floats, for JSON."""
    return [None if value is None else float(value) for value in values]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}%"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
