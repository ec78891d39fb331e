"""The figures, in one style: thin lines and direct labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, blended_transform_factory

from berxit.runtime.bench_result import CALIBRATED, ONE_GRAPH
from berxit.runtime.policies import CRITERIA
from berxit.runtime.storage import replacing

if TYPE_CHECKING:
    from berxit.runtime.bench_result import BenchResult
    from berxit.toolkit.evaluation_report import Evaluation

LAYERS, CURVE, CHOSEN = "#9aa5b1", "#2563eb", "#dc2626"
"""Colours of points with a fixed exit layer, of a criterion's thresholds, and of the calibrated policy."""

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
DASHES = ("-", "--", "-.", ":")
"""Okabe and Ito's palette, distinguishable for colour-blind readers, and dashes; entries repeat for more criteria."""


def criterion_style(name: str) -> dict[str, Any]:
    """Colour and dashes of an exit criterion, the same in every figure."""
    place = list(CRITERIA).index(name)
    return {"color": COLORS[place % len(COLORS)], "ls": DASHES[place % len(DASHES)]}


STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


KEY_WIDTH = 36
"""Characters per line of a key."""
KEY_LINE, KEY_GAP = 8.1, 4.5
"""Height of a line of a key, and space between two labels, in points."""


@dataclass
class Key:
    """The key of one panel, in which every line has its label at the height of its order."""

    entries: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    """Height by which the entries are ordered, label, and keywords of ``plot``."""

    def add(self, height: float, label: str, **style: Any) -> None:
        """Adds a line of the panel. ``style``: keywords of ``plot``."""
        self.entries.append((height, label, style))

    def draw(self, axes: Axes) -> None:
        """Writes the labels to the right of the axes, the highest line first."""
        down, figure = 0.0, axes.figure
        for _, label, style in sorted(self.entries, key=lambda entry: -entry[0]):
            text = wrap(label, KEY_WIDTH)
            place = axes.transAxes + ScaledTranslation(0, -down / 72, figure.dpi_scale_trans)
            middle = axes.transAxes + ScaledTranslation(0, -(down + KEY_LINE / 2) / 72, figure.dpi_scale_trans)
            line = Line2D([1.03, 1.065, 1.10], [1, 1, 1], transform=middle, clip_on=False, **style)
            line.set_markevery([1])
            axes.add_line(line)
            axes.text(1.12, 1, "\n".join(text), transform=place, va="top", fontsize=7, linespacing=1.15, gid="key")
            down += KEY_LINE * len(text) + KEY_GAP


def key_inches(axes: Axes) -> float:
    """Height of the keys of a panel, in inches."""
    lines = [text.get_text().count("\n") + 1 for text in axes.texts if text.get_gid() == "key"]
    return (KEY_LINE * sum(lines) + KEY_GAP * len(lines)) / 72


FLOOR = "floor"
"""Identifier of the line at the constant prediction, and of its name."""
FLOOR_GAP = 1.5
"""Space between this line and its name, in points."""


def draw_floor(axes: Axes, value: float) -> None:
    """A line at the score of the constant prediction, with its name. ``place_floor_names`` moves the name."""
    axes.axhline(value, color="black", lw=0.8, ls=(0, (1, 1.5)), gid=FLOOR)
    place = blended_transform_factory(axes.transAxes, axes.transData)
    name: dict[str, Any] = {"xycoords": place, "textcoords": "offset points", "fontsize": 6.5, "gid": FLOOR}
    axes.annotate("constant prediction", (0.995, value), (0, FLOOR_GAP), ha="right", va="bottom", **name)


def place_floor_names(figure: Figure) -> None:
    """Moves the names of the constant prediction to where they cover the shortest part of the other lines: above or
    below their line, at its right end, left end or middle. The figure must have its final layout."""
    for axes in figure.axes:
        lines = [_pixels(line) for line in axes.lines if line.get_gid() != FLOOR and line.get_clip_on()]
        points = np.concatenate([np.empty((0, 2)), *lines])
        for name in axes.texts:
            if isinstance(name, Annotation) and name.get_gid() == FLOOR:
                places = product(("bottom", "top"), (("right", 0.995), ("left", 0.005), ("center", 0.5)))
                covered = {place: _covered(axes, name, place, points) for place in places}
                _move(name, *min(covered, key=covered.__getitem__))


def _move(name: Annotation, vertical: str, horizontal: tuple[str, float]) -> None:
    name.set(va=vertical, ha=horizontal[0])
    name.xy = (horizontal[1], name.xy[1])
    name.set_position((0, FLOOR_GAP if vertical == "bottom" else -FLOOR_GAP))


def _covered(axes: Axes, name: Annotation, place: tuple[str, tuple[str, float]], points: npt.NDArray) -> float:
    """Number of points (P, 2) that the name covers at this place. Infinity if it is not within the axes."""
    _move(name, *place)
    box, frame = name.get_window_extent(), axes.bbox
    if box.y0 < frame.y0 or box.y1 > frame.y1:
        return math.inf
    return float(np.all((points >= box.min) & (points <= box.max), axis=1).sum())


def _pixels(line: Line2D) -> npt.NDArray[np.float64]:
    """(P, 2) points of a line at distances of about one pixel."""
    corners = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=np.float64))
    parts = [corners[:0]]
    for start, end in pairwise(corners):
        if np.isfinite([start, end]).all():
            parts.append(np.linspace(start, end, max(2, math.ceil(float(np.hypot(*(end - start)))))))
    return np.concatenate(parts)


def bench_figure(result: BenchResult, path: Path) -> Path:
    """Draws latency against average exit layer; for labelled inputs score against latency; the latencies' CDF."""
    panels = [
        _latency_panel,
        *([_score_panel] if result.metric else []),
        *([_cdf_panel] if result.records is not None else []),
    ]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.8), squeeze=False)
        for panel, each in zip(panels, axes[0], strict=True):
            panel(each, result)
        return _save(figure, path)


def _latency_panel(axes: Axes, result: BenchResult) -> None:
    layers = list(result.by_layer.values())
    thresholds = list(result.by_threshold.values())
    ends = np.array([1.0, result.layers])
    line = result.line
    if line is not None:
        axes.plot(ends, line.intercept_ms + line.ms_per_layer * ends, color="black", lw=0.8, ls="--", zorder=1)
        title = f"{line.intercept_ms:.2f} + {line.ms_per_layer:.2f} ms per layer, $R^2$ = {line.r_squared:.4f}"
        axes.set_title(title, fontsize=9)
    for points, color, label in (
        (layers, LAYERS, "all inputs exit at one layer"),
        (thresholds, CURVE, f"{result.criterion} thresholds"),
        ([result.policy] if result.policy else [], CHOSEN, "calibrated"),
    ):
        if points:
            x, y = [p.average_exit_layer for p in points], [p.latency.mean for p in points]
            axes.scatter(x, y, s=26, color=color, label=label, zorder=3)
            axes.vlines(x, y, [p.latency.p90 for p in points], color=color, lw=0.8, alpha=0.6)
    axes.set(xlabel="average exit layer", ylabel="milliseconds per input (mean; bar to p90)", ylim=(0, None))
    axes.legend(loc="upper left")


def _score_panel(axes: Axes, result: BenchResult) -> None:
    for points, color, label in (
        (result.by_layer.values(), LAYERS, "all inputs exit at one layer"),
        (result.by_threshold.values(), CURVE, f"{result.criterion} thresholds"),
    ):
        pairs = sorted((p.latency.mean, p.score) for p in points if p.score is not None)
        axes.plot(*zip(*pairs, strict=True), "o-", color=color, lw=1, ms=4, label=label)
    if result.policy is not None and result.policy.score is not None:
        axes.plot(result.policy.latency.mean, result.policy.score, "o", color=CHOSEN, ms=7, label="calibrated")
    axes.set(xlabel="milliseconds per input (mean)", ylabel=result.metric, xlim=(0, None))
    axes.set_title(f"{result.task} on {result.device}: score against latency", fontsize=9)
    axes.legend(loc="lower right")


def _cdf_panel(axes: Axes, result: BenchResult) -> None:
    """Cumulative distribution of the latency. Early exit makes it multi-modal, which a mean hides."""
    assert result.records is not None
    fixed = result.best_fixed
    lines = [
        (f"layer {result.layers}", "full depth", "black", "-"),
        *([(f"layer {fixed}", f"layer {fixed}, the best fixed exit", LAYERS, "-")] if fixed else []),
        (ONE_GRAPH, "one graph", CURVE, "--"),
        (CALIBRATED, CALIBRATED, CHOSEN, "-"),
    ]
    for name, label, color, dashes in lines:
        if name in result.records.queries and (
            name != f"layer {fixed}" or fixed != result.layers or label == "full depth"
        ):
            values = np.sort(result.records.queries[name].latency_ms, axis=None)
            axes.step(
                values,
                np.arange(1, len(values) + 1) / len(values),
                where="post",
                color=color,
                ls=dashes,
                lw=1.2,
                label=label,
            )
    slowest = np.quantile(result.records.queries[f"layer {result.layers}"].latency_ms, 0.99)
    axes.set(xlabel="milliseconds per input", ylabel="share of queries", xlim=(0, 1.15 * slowest), ylim=(0, 1.02))
    axes.set_title("latency of single queries: cumulative distribution", fontsize=9)
    axes.legend(loc="lower right")


def evaluation_figure(evaluation: Evaluation, path: Path) -> Path:
    """Trade-off curves, the quality of each criterion's certainty per exit, and reliability curves."""
    panels = [_trade_off_panel, _quality_panel, *([] if evaluation.regression else [_reliability_panel])]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(5.9 * len(panels), 3.9), squeeze=False)
        for panel, each in zip(panels, axes[0], strict=True):
            panel(each, evaluation)
        return _save(figure, path)


def _trade_off_panel(axes: Axes, evaluation: Evaluation) -> None:
    """Score against average exit layer: for every exit, and for the thresholds of every criterion."""
    from berxit.train.curves import curve_of  # Imports torch, which is not installed on a device that draws a bench.

    key = Key()
    wise: dict[str, Any] = {"color": LAYERS, "marker": "o", "lw": 1.0, "ms": 4}
    layers = range(1, len(evaluation.layer_scores) + 1)
    axes.plot(layers, evaluation.layer_scores, **wise)
    key.add(float(np.mean(evaluation.layer_scores)), "all examples exit at one layer", **wise)
    for name, points in evaluation.curves.items():
        curve = curve_of(points, len(layers))
        style = {"lw": 1.2, **criterion_style(name)}
        axes.plot(curve.layers, curve.scores, **style)
        key.add(float(curve.scores.mean()), name, **style)
    draw_floor(axes, evaluation.constant_score)
    axes.set(xlabel="average exit layer", ylabel=evaluation.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("oracle curves: thresholds on the evaluated rows", fontsize=9)
    key.draw(axes)


def _quality_panel(axes: Axes, evaluation: Evaluation) -> None:
    """AUROC of each criterion per exit; for regression the rank correlation with the error."""
    key = Key()
    for name, exits in evaluation.quality.items():
        values = [each.rank_correlation if evaluation.regression else each.auroc for each in exits]
        points = [(each.exit_layer, value) for each, value in zip(exits, values, strict=True) if value is not None]
        if points:
            style = {"lw": 1.2, **criterion_style(name)}
            axes.plot(*zip(*points, strict=True), **style)
            key.add(float(np.mean([value for _, value in points])), name, **style)
    label = "rank correlation with the negative error" if evaluation.regression else "AUROC: right against wrong"
    axes.set(xlabel="exit layer", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("does certainty separate right from wrong?", fontsize=9)
    key.draw(axes)


def _reliability_panel(axes: Axes, evaluation: Evaluation) -> None:
    """Accuracy against certainty at the first, the middle and the last exit, for the listed criterion or confidence."""
    key, markers = Key(), ("o", "s", "^")
    name = evaluation.criterion if evaluation.quality[evaluation.criterion][0].bins else "confidence"
    exits = evaluation.quality[name]
    axes.plot([0, 1], [0, 1], color=LAYERS, lw=0.8, ls="--")
    for place, color, marker in zip(sorted({0, len(exits) // 2, len(exits) - 1}), COLORS, markers, strict=False):
        bins = exits[place].bins
        style: dict[str, Any] = {"marker": marker, "ms": 3.5, "lw": 1.0, "color": color}
        axes.plot([b.certainty for b in bins], [b.accuracy for b in bins], **style)
        key.add(-place, f"exit {exits[place].exit_layer}, ECE {exits[place].ece:.3f}", **style)
    low = min(value for each in exits for b in each.bins for value in (b.certainty, b.accuracy))
    axes.set(xlabel=name, ylabel="share of right predictions", xlim=(low - 0.02, 1.02), ylim=(low - 0.02, 1.02))
    axes.set_title(f"reliability of {name}", fontsize=9)
    key.draw(axes)


def _save(figure: Figure, path: Path) -> Path:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    place_floor_names(figure)
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=150)
    plt.close(figure)
    return path
