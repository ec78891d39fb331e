"""How a study's lines look: a colour and a marker per strategy, the same in every figure.

The colours are Okabe and Ito's, which colour-blind readers tell apart; markers and dashes say the same without colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from berxit.toolkit.studies.request import Run, by_label
from berxit.train.strategies import STRATEGIES

BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6b7280"
DASHES = ("-", "--", ":", "-.")
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


def plain(values: Iterable[float | None]) -> list[float | None]:
    """Numbers as JSON has them."""
    return [None if value is None else float(value) for value in values]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}%"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
