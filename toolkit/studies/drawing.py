"""Figures of the studies: panels with a key next to the lines, seed bands, the constant prediction, and PNG, PDF and
SVG files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from berxit.runtime.storage import replacing
from berxit.toolkit.figures import STYLE, Key, key_inches, place_floor_names
from berxit.toolkit.studies.look import GRAY, HIGHEST, drawable

WIDTH, HEIGHT = 6.2, 3.4
"""Inches of a panel with its key. A long key makes all panels higher."""
FRAME = 1.5
"""Inches of a panel's title and axis labels."""
DPI = 150
"""Of the PNG file. The layout uses it, too, because the width of a text depends on it."""
TITLE_WIDTH = 64
"""Characters per line of a panel's title."""
MARKERS = 12
"""About this many markers per line."""
DETERMINISTIC = {"png": {"Software": ""}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Metadata without the date, so that equal numbers give equal files."""


Band = tuple[npt.ArrayLike, npt.ArrayLike]


def band_of(runs: npt.NDArray) -> Band | None:
    """The lowest and the highest value of several seeds: runs (S, P) -> two arrays (P,). None for one seed."""
    return (runs.min(axis=0), runs.max(axis=0)) if len(runs) > 1 else None


def draw_line(
    axes: Axes,
    key: Key,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    label: str,
    style: dict[str, Any],
    band: Band | None = None,
    *,
    highest: float = HIGHEST,
) -> None:
    """Draws a line through P points with about MARKERS markers, and a band: x (P,), y (P,).

    Values above ``highest`` are gaps.
    """
    places, values = np.asarray(x, dtype=np.float64), drawable(y, highest)
    look = {"lw": 1.2, "ms": 4, "markeredgewidth": 0.9, **style}
    axes.plot(places, values, **look, markevery=_spread(places, MARKERS))
    if band is not None:
        low, high = (drawable(each, highest) for each in band)
        axes.fill_between(places, low, high, color=style["color"], alpha=0.13, lw=0)
    finite = values[np.isfinite(values)]
    key.add(float(finite.mean()) if len(finite) else highest, label, **look)


def _spread(places: npt.NDArray, count: int) -> list[int]:
    """Indices of about ``count`` points at even distances."""
    if len(places) <= count:
        return list(range(len(places)))
    wanted = np.linspace(places[0], places[-1], count)
    return [int(place) for place in np.unique(np.searchsorted(places, wanted))]


def draw_hundred(axes: Axes) -> None:
    """A line at 100%."""
    axes.axhline(100, color=GRAY, lw=0.7)


def title(*parts: str) -> str:
    """The title of a panel, with long parts wrapped to lines of similar length."""
    return "\n".join(line for part in parts for line in _balanced(part))


def _balanced(text: str) -> list[str]:
    """As few lines as possible, and as narrow as this number of lines permits."""
    lines = wrap(text, TITLE_WIDTH)
    longest_word = max(map(len, text.split()), default=1)
    widths = range(min(longest_word, TITLE_WIDTH), TITLE_WIDTH)
    return next((narrow for width in widths if len(narrow := wrap(text, width)) == len(lines)), lines)


def whole_ticks(axes: Axes, last: int) -> None:
    """Ticks at layers 1 to ``last``."""
    axes.set_xticks(range(1, last + 1))


def saved_layers_axis(axes: Axes, depth: int) -> None:
    """Adds ticks at every layer to the lower axis, and the share of saved layers as the upper axis."""

    def saved(layer: Any) -> Any:
        return 100 * (1 - layer / depth)

    def layer(saved: Any) -> Any:
        return depth * (1 - saved / 100)

    whole_ticks(axes, depth)
    top = axes.secondary_xaxis("top", functions=(saved, layer))
    top.set_xlabel("saved layers (%)", fontsize=8)
    top.tick_params(labelsize=7)
    top.spines["top"].set_visible(False)


def panels_figure(panels: Sequence[Callable[[Axes], None]], title: str, notes: Sequence[str] = ()) -> Figure:
    """A study's panels, up to two per row, with one title. ``notes``: lines below the panels."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    with plt.rc_context({**STYLE, "axes.titlesize": 8, "figure.titlesize": 11, **EMBEDDED}):
        figure, grid = plt.subplots(rows, columns, dpi=DPI, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            panel(axes)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        high = max(HEIGHT, *(key_inches(axes) + FRAME for axes in grid.flat))
        figure.set_size_inches(WIDTH * columns, high * rows + 0.4 + 0.16 * len(notes))
        figure.suptitle(title)
        if notes:
            figure.supxlabel("\n".join(notes), fontsize=7, x=0.01, ha="left")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # Three files need the layout only once.
        place_floor_names(figure)
        plt.close(figure)
        return figure


EMBEDDED = {"svg.fonttype": "none", "svg.hashsalt": "berxit", "pdf.fonttype": 42}
"""Texts stay texts in PDF and SVG, and SVG identifiers do not change between runs."""


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure in the format of the suffix: .png, .pdf or .svg."""
    kind = path.suffix[1:]
    with plt.rc_context({**STYLE, **EMBEDDED}), replacing(path) as scratch:
        figure.savefig(scratch, dpi=DPI, format=kind, metadata=DETERMINISTIC[kind])
