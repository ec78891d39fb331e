"""Figure 6, table 3: learning to exit compared with one exit layer for all examples, and with patience (PABEE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from berxit.runtime.errors import InputError
from berxit.runtime.tables import Table
from berxit.toolkit.studies import claims
from berxit.toolkit.studies.claims import Claim, judge
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import line_style, model_colors, not_drawn, percent, plain
from berxit.toolkit.studies.operating import DEFINITION, GAIN, GAIN_HEADER, Operating, operating
from berxit.toolkit.studies.reference import Reference
from berxit.toolkit.studies.request import Request
from berxit.toolkit.studies.runs import Group
from berxit.toolkit.studies.tradeoff import HELD_OUT, ORACLE, relative_at, relative_curve, seed_note, side_of
from berxit.train.curves import Curve
from berxit.train.sweeps import LAYER_WISE, Sweep, sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LTE, LINE, PATIENCE = "LTE", "layer-wise", "patience"
METHODS = {LINE: LAYER_WISE, PATIENCE: "patience", LTE: "lte"}
"""Name in tables and figures -> exit criterion."""
KEPT = (99.0, 97.0, 95.0, 90.0)


def study(request: Request) -> Findings:
    if missing := [run.folder for run in request.runs if run.predictions.lte is None]:
        raise InputError(f"{missing[0]} was trained without LTE: retrain it with --lte, or omit it")
    scores, kept, panels, kinds = [], [], [], set()
    judged: list[Claim] = []
    data: list[dict[str, Any]] = []
    conditions = request.conditions()
    colors = model_colors(list(request.models))
    with request.bar("curves and intervals")(len(request.groups)) as bar:
        for group in request.groups:
            model = group.model
            reference = request.reference(model)
            constant = percent(reference.relative_floor)
            name, depth = f"{model}, {group.name}", group.depth
            sweeps = {
                method: [sweep(run.predictions, criterion) for run in group.runs]
                for method, criterion in METHODS.items()
            }
            kinds |= {same[0].oracle for same in sweeps.values()}
            curves = {method: relative_curve(same, reference) for method, same in sweeps.items()}
            conditions += not_drawn(name, (curve.scores for curve in curves.values()))
            costs = [1 - layer / depth for layer in range(1, depth + 1)]
            points = {
                method: operating(
                    group,
                    METHODS[method],
                    reference,
                    request.bootstrap,
                    float(curve.layers[0]),
                    costs=costs,
                    gains=KEPT,
                )
                for method, curve in curves.items()
            }
            scores += [
                [
                    name,
                    constant,
                    str(layer),
                    f"{share:.0%}",
                    *(percent(at.at_cost[i].relative) for at in points.values()),
                ]
                for i, (layer, share) in enumerate(zip(range(1, depth + 1), costs, strict=True))
            ]
            kept += [[name, method, *cells, constant] for method, at in points.items() for cells in at.gain_cells()]
            found = _claims(request, group, sweeps, reference)
            judged += found
            data.append(_entry(request, group, reference, curves, points))
            panels.append(_panel(request, group, sweeps, curves, reference, colors[model]))
            bar.update(1)
    curve_kinds = [text for text, oracle in ((ORACLE, True), (HELD_OUT, False)) if oracle in kinds]
    conditions += ["patience: k = 1 to n - 1", *curve_kinds, DEFINITION, GAIN, claims.DEFINITION]
    return Findings(
        name=f"lte-{request.task}",
        title=f"{request.task}: {request.metric} with learning to exit, patience and one exit layer",
        conditions=conditions,
        tables=[
            (
                "Relative score of thresholds that save as many layers on other rows",
                Table(["run", "constant", "average exit layer", "saved layers", *METHODS], scores),
            ),
            ("Saved layers, and the gain kept", Table(["run", "method", *GAIN_HEADER, "constant"], kept)),
            ("Claims: one curve is above another", claims.claims_table(judged)),
        ],
        data={"lines": data, "claims": claims.entries(judged)},
        panels=panels,
        notes=[*curve_kinds, *seed_note(request.groups)],
    )


def _claims(request: Request, group: Group, sweeps: Mapping[str, Sequence[Sweep]], reference: Reference) -> list[Claim]:
    """LTE against the others, on the same runs."""
    half = group.depth / 2
    name = f"{group.model}, {group.label}"
    lte, line, patience = (side_of(request, group, sweeps[each], reference, each) for each in (LTE, LINE, PATIENCE))
    early = judge(lte, line, name, half, paired=True)
    return [
        judge(lte, line, name, paired=True),
        replace(early, second=f"{LINE}, up to layer {half:g}"),
        judge(lte, patience, name, paired=True),
    ]


def _entry(
    request: Request,
    group: Group,
    reference: Reference,
    curves: Mapping[str, Curve],
    points: Mapping[str, Operating],
) -> dict[str, Any]:
    return {
        **request.described(group),
        "reference": reference.score,
        "reference_source": reference.source,
        "relative_constant": reference.relative_floor,
        "curves": {
            method: {
                "average_exit_layer": plain(curve.layers),
                "relative": plain(curve.scores),
                **points[method].entry(),
            }
            for method, curve in curves.items()
        },
    }


def _panel(
    request: Request,
    group: Group,
    sweeps: Mapping[str, Sequence[Sweep]],
    curves: Mapping[str, Curve],
    reference: Reference,
    color: str,
) -> Panel:
    def draw(axes: Axes) -> None:
        from berxit.toolkit.figures import Key
        from berxit.toolkit.studies import drawing

        key = Key()
        drawing.draw_hundred(axes)
        for place, method in enumerate((LTE, LINE, PATIENCE)):
            curve = curves[method]
            band = drawing.band_of(relative_at(curve.layers, sweeps[method], reference))
            style = {**line_style(place), "color": color, "markerfacecolor": color if method == LTE else "white"}
            drawing.draw_line(axes, key, curve.layers, curve.scores, method, style, band)
        drawing.draw_floor(axes, reference.relative_floor)
        axes.set(xlabel="average exit layer", ylabel=f"relative score (% of {request.metric})")
        drawing.saved_layers_axis(axes, curves[LINE].depth)
        axes.set_title(drawing.title(group.model, group.name, str(reference)))
        key.draw(axes)

    return draw
