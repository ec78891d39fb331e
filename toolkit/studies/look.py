"""Plot styles of the studies: one color and one marker per strategy, the same in every figure.

The colors are Okabe and Ito's, which color-blind readers can distinguish. Markers and dashes distinguish the lines
without color.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.toolkit.studies.request import StudyRun, by_label
from berxit.train.strategies import STRATEGIES

BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6b7280"
DASHES = ("-", "--", ":", "-.")
HIGHEST = 120.0
"""Relative scores above this percentage are not drawn, because the reference is then too low."""
COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#000000", RED, "#56B4E9")
MARKERS = ("o", "s", "^", "D", "x", "v", "P")


def strategy_style(name: str) -> dict[str, str]:
    """Color and marker of a strategy. They repeat if there are more strategies than colors."""
    index = list(STRATEGIES).index(name) if name in STRATEGIES else len(STRATEGIES)
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def looks(models: Mapping[str, Sequence[StudyRun]]) -> dict[str, dict[str, Any]]:
    """Label (of ``by_label``) -> keywords for ``plot``. Labels of the same strategy have different dashes."""
    found: dict[str, dict[str, Any]] = {}
    for runs in models.values():
        for label, same in by_label(runs).items():
            style = strategy_style(same[0].strategy)
            before = sum(look["color"] == style["color"] for name, look in found.items() if name != label)
            found.setdefault(label, {**style, "ls": DASHES[before % len(DASHES)]})
    return found


def drawable(relative: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Relative scores for a figure; NaN (a gap) above HIGHEST."""
    values = np.asarray(relative, dtype=np.float64)
    return np.where(values > HIGHEST, np.nan, values)


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
