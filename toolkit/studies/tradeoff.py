"""Figures 4 and 5, table 2: relative score over average exit layer, for all thresholds of a criterion."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from berxit.runtime.tables import Table
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import GRAY, drawable, looks, not_drawn, number, percent, plain
from berxit.toolkit.studies.request import Request, by_label
from berxit.train.curves import SAVED, Area, Curve, area_above, criterion_curve, mean_curve, relative_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT = (99.0, 97.0, 94.0)
"""Percent of the reference, as in the paper's table 2."""


def study(request: Request) -> Findings:
    points, areas, panels = [], [], []
    data: list[dict[str, Any]] = []
    conditions = request.conditions()
    criteria = set()
    for model, runs in request.models.items():
        reference = request.reference(runs)
        constant = relative_score(runs[0].predictions.constant.score, reference.score)
        conditions.append(f"{model}: {reference}; the best constant prediction reaches {percent(float(constant))}")
        curves: dict[str, Curve] = {}
        for label, same in by_label(runs).items():
            criterion = request.criterion or same[0].predictions.default_criterion
            criteria.add(criterion)
            curves[label] = mean_curve(
                [criterion_curve(run.predictions, criterion).relative_to(reference.score) for run in same]
            )
        conditions += not_drawn(model, (curve.scores for curve in curves.values()))
        pairs = {(a, b): area_above(curves[a], curves[b]) for a, b in permutations(curves, 2)}
        for label, curve in curves.items():
            points.append([label, model, *_kept_at(curve), *_saved_at(curve)])
            data.append(_entry(model, label, reference.score, curve, pairs))
        areas += [
            [
                a,
                b,
                model,
                number(pairs[a, b].area),
                number(pairs[b, a].area),
                f"{pairs[a, b].mean - pairs[b, a].mean:+.2f}",
            ]
            for a, b in combinations(curves, 2)
        ]
        panels.append(_panel(request, model, curves))
    criteria_names = " and ".join(sorted(criteria))
    conditions.append(
        f"thresholds of {criteria_names}, the same at every layer; scores between two thresholds are interpolated;"
        " saved layers are those of the cheapest threshold that keeps the score (slightly optimistic, because it is"
        " chosen on the same data)"
    )
    at = [f"at {share:.0%} saved" for share in SAVED] + [f"saved at {kept:g}%" for kept in KEPT]
    tables = [("Relative score, and saved layers", Table(["strategy", "model", *at], points))]
    if areas:
        conditions.append(
            "area of one curve above the other: in percent x layers, as in the paper's figure 4 (13.5 and 0.4 on RTE);"
            " mean difference: difference of the two areas divided by the range of layers that both curves cover, in"
            " percentage points"
        )
        header = ["A", "B", "model", "A above B", "B above A", "mean difference"]
        tables.append(("Area of one curve above the other", Table(header, areas)))
    return Findings(
        name=f"tradeoff-{request.task}",
        title=f"Trade-off by {criteria_names}, {request.task}",
        conditions=conditions,
        tables=tables,
        data={"criterion": criteria_names, "curves": data},
        panels=panels,
    )


def _kept_at(curve: Curve) -> list[str]:
    return [percent(curve.at_saved(share)) for share in SAVED]


def _saved_at(curve: Curve) -> list[str]:
    return ["-" if layer is None else f"{1 - layer / curve.depth:.0%}" for layer in map(curve.cheapest, KEPT)]


def _entry(
    model: str, label: str, reference: float, curve: Curve, pairs: Mapping[tuple[str, str], Area]
) -> dict[str, Any]:
    """One curve for the JSON file."""
    return {
        "model": model,
        "label": label,
        "reference": reference,
        "average_exit_layer": plain(curve.layers),
        "relative": plain(curve.scores),
        "relative_at_saved": {f"{share:g}": curve.at_saved(share) for share in SAVED},
        "average_exit_layer_at": {f"{kept:g}": curve.cheapest(kept) for kept in KEPT},
        "area_above": {b: {"area": area.area, "mean": area.mean} for (a, b), area in pairs.items() if a == label},
    }


def _panel(request: Request, model: str, curves: Mapping[str, Curve]) -> Panel:
    look = looks(request.models)

    def draw(axes: Axes) -> None:
        axes.axhline(100, color=GRAY, lw=0.8)
        for label, curve in curves.items():
            axes.plot(
                curve.layers, drawable(curve.scores), **look[label], markevery=marks(curve), lw=1.3, ms=4, label=label
            )
        depth = max(curve.depth for curve in curves.values())
        axes.set(xlabel="average exit layer", ylabel=f"relative score (% of {request.metric})")
        saved_layers_axis(axes, depth)
        axes.set_title(model)

    return draw


def marks(curve: Curve) -> list[int]:
    """Indices of about twelve points of a curve at even distances, for its markers."""
    wanted = np.linspace(float(curve.layers[0]), float(curve.layers[-1]), 12)
    return [int(place) for place in np.unique(np.searchsorted(curve.layers, wanted))]


def saved_layers_axis(axes: Axes, depth: int) -> None:
    """Adds ticks at every layer to the lower axis, and the share of saved layers as the upper axis."""

    def saved(layer: Any) -> Any:
        return 100 * (1 - layer / depth)

    def layer(saved: Any) -> Any:
        return depth * (1 - saved / 100)

    axes.set_xticks(range(1, depth + 1))
    top = axes.secondary_xaxis("top", functions=(saved, layer))
    top.set_xlabel("saved layers (%)")
    top.spines["top"].set_visible(False)
