"""How a study's lines look: a colour and a marker per strategy, the same in every figure.

The colours are Okabe and Ito's, which colour-blind readers tell apart; markers and dashes say the same without colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.toolkit.studies.request import Run, by_label
from berxit.train.strategies import STRATEGIES

BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6b7280"
DASHES = ("-", "--", ":", "-.")
HIGHEST = 120.0
"""Relative score in percent above which a figure has a gap: the reference is then no 100%."""
COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#000000", RED, "#56B4E9")
MARKERS = ("o", "s", "^", "D", "x", "v", "P")


def strategy_style(name: str) -> dict[str, str]:
    """Colour and marker of a strategy, the same in every figure; they repeat where there are more strategies."""
    place = list(STRATEGIES).index(name) if name in STRATEGIES else len(STRATEGIES)
    return {"color": COLORS[place % len(COLORS)], "marker": MARKERS[place % len(MARKERS)]}


def looks(models: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """Label (as ``by_label`` has it) -> keywords for ``plot``. Labels of one strategy differ in their dashes."""
    found: dict[str, dict[str, Any]] = {}
    for runs in models.values():
        for label, same in by_label(runs).items():
            style = strategy_style(same[0].strategy)
            before = sum(look["color"] == style["color"] for name, look in found.items() if name != label)
            found.setdefault(label, {**style, "ls": DASHES[before % len(DASHES)]})
    return found


def drawable(relative: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Relative scores for a figure: NaN, a gap, above HIGHEST."""
    values = np.asarray(relative, dtype=np.float64)
    return np.where(values > HIGHEST, np.nan, values)


def not_drawn(model: str, relative: Iterable[npt.ArrayLike]) -> list[str]:
    """The condition that states what the figure leaves out; empty where it shows everything."""
    highest = max((float(np.max(values)) for values in relative), default=0.0)
    if highest <= HIGHEST:
        return []
    return [
        f"warning: {model}: relative scores reach {highest:.0f}%, and the figure leaves out those above {HIGHEST:g}%:"
        " the reference is too low for a 100%. Give --relative-to a fully trained checkpoint, or its score"
    ]


def plain(values: Iterable[float | None]) -> list[float | None]:
    """Numbers as JSON has them."""
    return [None if value is None else float(value) for value in values]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}%"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
