"""Figure of the side-by-side benchmark: milliseconds per row at full depth and with early exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.side_by_side.bars import Timings
from benchmarks.side_by_side.contenders import Case, Spec
from berxit.runtime.tables import plural
from berxit.toolkit.figures import CURVE, LAYERS, STYLE

HEIGHT = 0.38
"""Height of a bar, relative to the distance between two contenders."""


def draw(runs: Sequence[Timings], specs: Sequence[Spec], cases: Mapping[str, Case], title: str, path: Path) -> Path:
    """Draws one row of panels per thread count and one column per case, with the names of the contenders on the left.
    Returns ``path``."""
    shown = [spec for spec in specs if spec.kind != "products"]
    size = (2.6 + 2.7 * len(cases), 0.9 + (0.9 + 0.27 * len(shown)) * len(runs))
    with plt.rc_context({**STYLE, "axes.titlesize": 9, "figure.titlesize": 11, "axes.grid.axis": "x"}):
        figure, grid = plt.subplots(len(runs), len(cases), figsize=size, squeeze=False, sharey=True)
        for row, run in zip(grid, runs, strict=True):
            for axes, case in zip(row, cases.values(), strict=True):
                _panel(axes, run, case, shown)
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle(title)
        figure.savefig(path, dpi=150)
        plt.close(figure)
    return path


def _panel(axes: Axes, run: Timings, case: Case, specs: Sequence[Spec]) -> None:
    for task, color, label, shift in (("full", LAYERS, "full depth", -1), ("early", CURVE, "early exit", 1)):
        found = {i: ms for i, spec in enumerate(specs) if (ms := run.ms(case.name, task, spec.name))}
        both = [all(run.ms(case.name, each, spec.name) for each in ("full", "early")) for spec in specs]
        places = [i + shift * HEIGHT / 2 * both[i] for i in found]
        bars = axes.barh(places, list(found.values()), HEIGHT, color=color, label=label)
        axes.bar_label(
            bars, [f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}" for ms in found.values()], padding=2, fontsize=6
        )
    axes.set_yticks(range(len(specs)), [spec.name for spec in specs])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(specs) - 0.5, -0.5), xlabel="ms per row")
    axes.margins(x=0.15)
    axes.set_title(f"{case.name}, {plural(run.threads, 'thread')}")
