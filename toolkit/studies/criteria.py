"""Exit criteria compared on the same passes: each against one exit layer for all examples, and against the default."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from berxit.runtime.errors import InputError
from berxit.runtime.tables import Table
from berxit.toolkit.studies import claims
from berxit.toolkit.studies.claims import Claim, judge
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import criterion_look, model_colors, not_drawn, percent, plain
from berxit.toolkit.studies.operating import DEFINITION, GAIN, GAIN_HEADER, Operating, operating
from berxit.toolkit.studies.reference import Reference
from berxit.toolkit.studies.request import Request
from berxit.toolkit.studies.runs import Group
from berxit.toolkit.studies.tradeoff import (
    HELD_OUT,
    ORACLE,
    common_criterion,
    relative_at,
    relative_curve,
    seed_note,
    side_of,
)
from berxit.train.curves import Curve
from berxit.train.families import FOLDS, applicable_criteria
from berxit.train.sweeps import LAYER_WISE, Sweep, sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = "layer-wise"
"""The name of one exit layer for all examples, in tables and figures."""
KEPT = (99.0, 97.0, 95.0, 90.0)
"""Percent of the gain that a threshold has to keep."""


def study(request: Request) -> Findings:
    criteria = shared_criteria(request)
    default = request.criterion or common_criterion(request.runs)
    if default not in criteria:
        raise InputError(f"--criterion {default}: it does not fit all checkpoints. Choose one of {', '.join(criteria)}")
    others = [name for name in criteria if name != default]
    return compare(
        request,
        name="criteria",
        title="the exit criteria",
        methods={default: default, **{name: name for name in others}, LINE: LAYER_WISE},
        pairs=[(name, LINE) for name in (default, *others)] + [(name, default) for name in others],
    )


def shared_criteria(request: Request) -> list[str]:
    """The adaptive criteria that fit every checkpoint, with the rows that remain beside a fold."""
    rows = len(request.runs[0].predictions.labels)
    remaining = np.arange(rows - math.ceil(rows / FOLDS))
    fitting = [applicable_criteria(run.predictions.select_rows(remaining)) for run in request.runs]
    return [name for name in fitting[0] if all(name in each for each in fitting)]


def compare(
    request: Request,
    *,
    name: str,
    title: str,
    methods: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    early: Sequence[tuple[str, str]] = (),
) -> Findings:
    """Compares exit criteria on the passes of every group.

    ``methods``: name in tables and figures -> exit criterion; it contains LINE. ``pairs``: the claims "A is above B".
    ``early``: those that are judged for the first half of the layers, too.
    """
    scores, kept, panels, kinds = [], [], [], set()
    judged: list[Claim] = []
    data: list[dict[str, Any]] = []
    conditions = request.conditions()
    colors = model_colors(list(request.models))
    with request.bar("curves and intervals")(len(request.groups)) as bar:
        for group in request.groups:
            reference = request.reference(group.model)
            constant = percent(reference.relative_floor)
            line, depth = f"{group.model}, {group.name}", group.depth
            sweeps = {
                method: [sweep(run.predictions, criterion) for run in group.runs]
                for method, criterion in methods.items()
            }
            kinds |= {same[0].oracle for same in sweeps.values()}
            curves = {method: relative_curve(same, reference) for method, same in sweeps.items()}
            conditions += not_drawn(line, (curve.scores for curve in curves.values()))
            costs = [1 - layer / depth for layer in range(1, depth + 1)]
            points = {
                method: operating(
                    group,
                    methods[method],
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
                    line,
                    constant,
                    str(i + 1),
                    f"{share:.0%}",
                    *(percent(at.at_cost[i].relative) for at in points.values()),
                ]
                for i, share in enumerate(costs)
            ]
            kept += [[line, method, *cells, constant] for method, at in points.items() for cells in at.gain_cells()]
            judged += _claims(request, group, sweeps, reference, pairs, early)
            data.append(_entry(request, group, reference, curves, points))
            styles = {method: criterion_look(criterion, colors[group.model]) for method, criterion in methods.items()}
            panels.append(_panel(request, group, sweeps, curves, reference, styles))
            bar.update(1)
    curve_kinds = [text for text, oracle in ((ORACLE, True), (HELD_OUT, False)) if oracle in kinds]
    conditions += ["patience: k = 1 to n - 1", *curve_kinds, DEFINITION, GAIN, claims.DEFINITION]
    return Findings(
        name=f"{name}-{request.task}",
        title=f"{request.task}: {request.metric} with {title}",
        conditions=conditions,
        tables=[
            (
                "Relative score of thresholds that save as many layers on other rows",
                Table(["run", "constant", "average exit layer", "saved layers", *methods], scores),
            ),
            ("Saved layers, and the gain kept", Table(["run", "method", *GAIN_HEADER, "constant"], kept)),
            ("Claims: one curve is above another", claims.claims_table(judged)),
        ],
        data={"lines": data, "claims": claims.entries(judged)},
        panels=panels,
        notes=[*curve_kinds, *seed_note(request.groups)],
    )


def _claims(
    request: Request,
    group: Group,
    sweeps: Mapping[str, Sequence[Sweep]],
    reference: Reference,
    pairs: Sequence[tuple[str, str]],
    early: Sequence[tuple[str, str]],
) -> list[Claim]:
    """The claims about one group; both sides come from the same runs."""
    half = group.depth / 2
    name = f"{group.model}, {group.label}"
    sides = {method: side_of(request, group, same, reference, method) for method, same in sweeps.items()}
    found = []
    for first, second in pairs:
        found.append(judge(sides[first], sides[second], name, paired=True))
        if (first, second) in early:
            claim = judge(sides[first], sides[second], name, half, paired=True)
            found.append(replace(claim, second=f"{second}, up to layer {half:g}"))
    return found


def _entry(
    request: Request,
    group: Group,
    reference: Reference,
    curves: Mapping[str, Curve],
    points: Mapping[str, Operating],
) -> dict[str, Any]:
    """The curves of one group for the JSON file."""
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
    styles: Mapping[str, dict[str, Any]],
) -> Panel:
    """The curves of one group. ``styles``: method -> keywords for ``plot``."""

    def draw(axes: Axes) -> None:
        from berxit.toolkit.figures import Key, draw_floor
        from berxit.toolkit.studies import drawing

        key = Key()
        drawing.draw_hundred(axes)
        for method, curve in curves.items():
            band = drawing.band_of(relative_at(curve.layers, sweeps[method], reference))
            drawing.draw_line(axes, key, curve.layers, curve.scores, method, styles[method], band)
        draw_floor(axes, reference.relative_floor)
        axes.set(xlabel="average exit layer", ylabel=f"relative score (% of {request.metric})")
        drawing.saved_layers_axis(axes, curves[LINE].depth)
        axes.set_title(drawing.title(group.model, group.name, str(reference)))
        key.draw(axes)

    return draw
