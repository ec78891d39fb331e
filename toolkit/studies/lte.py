"""Figure 6, table 3: learning to exit compared with one exit layer for all examples, and with patience (PABEE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from berxit.runtime.errors import InputError
from berxit.runtime.metrics import METRICS
from berxit.runtime.tables import Table
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import BLUE, GREEN, ORANGE, drawable, not_drawn, number, percent, plain
from berxit.toolkit.studies.request import Request, by_label
from berxit.toolkit.studies.tradeoff import marks, saved_layers_axis
from berxit.train.curves import Curve, area_above, criterion_curve, mean_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LTE, LINE, PATIENCE = "LTE", "layer-wise", "patience"
KEPT = (99.0, 97.0, 95.0, 90.0)
STYLES: dict[str, dict[str, Any]] = {
    LINE: {"color": ORANGE, "marker": "s", "ls": "--"},
    PATIENCE: {"color": GREEN, "marker": "^", "ls": ":"},
    LTE: {"color": BLUE, "marker": "o", "ls": "-"},
}


def study(request: Request) -> Findings:
    scores, layers, areas, panels = [], [], [], []
    data: list[dict[str, Any]] = []
    conditions = request.conditions()
    for model, runs in request.models.items():
        reference = request.reference(runs)
        conditions.append(f"{model}: {reference}")
        for label, same in by_label(runs).items():
            if missing := [run.folder for run in same if run.predictions.lte is None]:
                raise InputError(f"{missing[0]} was trained without LTE: retrain it with --lte, or omit it")
            curves = {
                name: curve.relative_to(reference.score)
                for name, curve in {
                    LINE: Curve.layer_wise(np.mean([run.layer_scores for run in same], axis=0).tolist()),
                    PATIENCE: mean_curve([criterion_curve(run.predictions, "patience") for run in same]),
                    LTE: mean_curve([criterion_curve(run.predictions, "lte") for run in same]),
                }.items()
            }
            depth, name = same[0].predictions.layers, f"{model}, {label}"
            conditions += not_drawn(name, (curve.scores for curve in curves.values()))
            scores += [
                [name, str(layer), f"{1 - layer / depth:.0%}", *(percent(curve.at(layer)) for curve in curves.values())]
                for layer in range(1, depth + 1)
            ]
            layers += [
                [name, f"{kept:g}%", *(number(curve.cheapest(kept)) for curve in curves.values())] for kept in KEPT
            ]
            comparisons = _areas(curves, depth)
            areas += [[f"{name}: {pair}", f"{above:.2f}", f"{below:.2f}"] for pair, above, below in comparisons]
            data.append(_entry(model, label, reference.score, curves, comparisons))
            panels.append(_panel(request, name, curves))
    conditions += [
        "patience: k = 1 to n - 1" + (PATIENCE_NOTE if METRICS[request.metric].values else ""),
        "areas are in percent x layers, over the average exit layers that both curves cover",
    ]
    return Findings(
        name=f"lte-{request.task}",
        title=f"Learning to exit, {request.task}",
        conditions=conditions,
        tables=[
            (
                "Relative score at equal average exit layer",
                Table(["run", "average exit layer", "saved layers", *STYLES], scores),
            ),
            ("Average exit layer that reaches a relative score", Table(["run", "relative score", *STYLES], layers)),
            ("Area above, and below", Table(["curves", "area above", "area below"], areas)),
        ],
        data={"lines": data},
        panels=panels,
    )


PATIENCE_NOTE = (
    ", with tolerances at the 10th to 90th percentile of the differences between consecutive layers; the curve is the"
    " envelope over all of them, which favours patience"
)


def _areas(curves: dict[str, Curve], depth: int) -> Sequence[tuple[str, float, float]]:
    """Names of the two curves, the area of LTE above the other curve, and the area of the other curve above LTE."""
    half = depth / 2
    return [
        (pair, area_above(curves[LTE], curves[other], until).area, area_above(curves[other], curves[LTE], until).area)
        for pair, other, until in (
            ("LTE, layer-wise", LINE, np.inf),
            (f"LTE, layer-wise, up to layer {half:g}", LINE, half),
            ("LTE, patience", PATIENCE, np.inf),
        )
    ]


def _entry(
    model: str, label: str, reference: float, curves: dict[str, Curve], areas: Sequence[tuple[str, float, float]]
) -> dict[str, Any]:
    return {
        "model": model,
        "label": label,
        "reference": reference,
        "curves": {
            name: {"average_exit_layer": plain(curve.layers), "relative": plain(curve.scores)}
            for name, curve in curves.items()
        },
        "areas": {pair: {"above": above, "below": below} for pair, above, below in areas},
    }


def _panel(request: Request, name: str, curves: dict[str, Curve]) -> Panel:
    def draw(axes: Axes) -> None:
        for label, curve in curves.items():
            axes.plot(
                curve.layers, drawable(curve.scores), **STYLES[label], markevery=marks(curve), lw=1.3, ms=4, label=label
            )
        axes.set(xlabel="average exit layer", ylabel=f"relative score (% of {request.metric})")
        saved_layers_axis(axes, curves[LINE].depth)
        axes.set_title(f"{name}")

    return draw
