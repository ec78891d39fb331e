"""Plot styles of the studies: one color per model; one marker and one line style per strategy, the same in every
figure.

The colors are Okabe and Ito's, which color-blind readers can distinguish. Markers and line styles distinguish the
lines without color. Groups of one strategy that differ in options have different marker fills. Where lines are exit
criteria, each criterion has one marker and one line style.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.runtime.policies import CRITERIA
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
    ("p", (0, (3, 1))),
    ("<", (0, (1, 3))),
    ("P", (0, (6, 1, 1, 1))),
    (">", (0, (2, 2, 6, 2))),
    ("*", (0, (10, 1, 2, 1))),
    ("h", (0, (1, 1, 4, 1))),
)
"""Markers and line styles: of the strategies in the order of STRATEGIES, or of the criteria in the order of CRITERIA.
Those of users come last."""
LARGE = {"X": 5.5, "P": 5.5, "*": 6.5}
"""Sizes of markers with a small area, in points, so that their fill is visible."""
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
    return {"marker": marker, "ls": line, **({"ms": LARGE[marker]} if marker in LARGE else {})}


def marker_fill(place: int, color: str) -> dict[str, Any]:
    """Marker fill number ``place``, which distinguishes groups of one strategy. They repeat after the eighth."""
    whole, half = (color, "white", "#d1d5db", "black"), ("left", "bottom", "right", "top")
    place %= len(whole) + len(half)
    if place < len(whole):
        return {"markerfacecolor": whole[place]}
    return {"markerfacecolor": color, "markerfacecoloralt": "white", "fillstyle": half[place - len(whole)]}


def criterion_look(criterion: str, color: str) -> dict[str, Any]:
    """Keywords for ``plot``. They follow from the criterion alone, so that it looks the same in every study."""
    place = list(CRITERIA).index(criterion)
    return {**line_style(place), "color": color, **marker_fill(place % 2, color)}


def looks(groups: Sequence[Group], color: str, study: Sequence[Group] = ()) -> dict[str, dict[str, Any]]:
    """Label -> keywords for ``plot``, for the groups of one model. ``study``: all groups of the study, so that a
    strategy that is not registered looks the same for every model."""
    unregistered = {group.strategy for group in (*groups, *study)} - set(STRATEGIES)
    order = [*STRATEGIES, *sorted(unregistered)]
    found: dict[str, dict[str, Any]] = {}
    for i, group in enumerate(groups):
        before = sum(other.strategy == group.strategy for other in groups[:i])
        style = line_style(order.index(group.strategy))
        found[group.label] = {**style, "color": color, **marker_fill(before, color)}
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
