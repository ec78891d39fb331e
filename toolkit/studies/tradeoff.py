"""Figures 4 and 5, table 2: relative score over average exit layer, for all thresholds of a criterion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from berxit.runtime.tables import Table
from berxit.toolkit.studies import claims
from berxit.toolkit.studies.claims import Claim, Side, choices_that_differ, judge
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import looks, model_colors, not_drawn, percent, plain
from berxit.toolkit.studies.operating import DEFINITION, GAIN, GAIN_HEADER, Operating, operating
from berxit.toolkit.studies.reference import Reference
from berxit.toolkit.studies.request import Request
from berxit.toolkit.studies.runs import Group, StudyRun
from berxit.train.curves import SAVED, Curve, mean_curve
from berxit.train.evaluation import default_criterion
from berxit.train.strategies import STRATEGIES
from berxit.train.sweeps import Sweep, sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORACLE = "oracle curve: every point applies one threshold to all reported rows; no point was chosen on other rows"
HELD_OUT = "held-out curve: for each cost, patience and tolerance are chosen on the other folds"


def study(request: Request) -> Findings:
    points, kept, panels, kinds = [], [], [], set()
    judged: list[Claim] = []
    data: list[dict[str, Any]] = []
    conditions = request.conditions()
    colors = model_colors(list(request.models))
    criterion = request.criterion or common_criterion(request.runs)
    with request.bar("curves and intervals")(len(request.groups)) as bar:
        for model, groups in request.models.items():
            reference = request.reference(model)
            constant = percent(reference.relative_floor)
            sweeps = {group.label: [sweep(run.predictions, criterion) for run in group.runs] for group in groups}
            kinds |= {each.oracle for same in sweeps.values() for each in same}
            curves = {label: relative_curve(same, reference) for label, same in sweeps.items()}
            conditions += not_drawn(model, (curve.scores for curve in curves.values()))
            judged += _claims(request, groups, sweeps, reference)
            for group in groups:
                curve = curves[group.label]
                at = operating(group, criterion, reference, request.bootstrap, float(curve.layers[0]))
                start = [group.label, model]
                points.append([*start, group.seeds, constant, percent(100 * _full(group, reference)), *_at_cost(at)])
                kept += [[*start, *cells, constant] for cells in at.gain_cells()]
                data.append(_entry(request, group, reference, curve, at))
                bar.update(1)
            panels.append(_panel(request, groups, sweeps, curves, reference, colors[model]))
    curve_kinds = [text for text, oracle in ((ORACLE, True), (HELD_OUT, False)) if oracle in kinds]
    conditions += [*curve_kinds, DEFINITION, GAIN]
    header = ["strategy", "model", "seeds", "constant", "full depth", *(f"at {share:.0%} saved" for share in SAVED)]
    tables = [
        ("Relative score", Table(header, points)),
        ("Saved layers, and the gain kept", Table(["strategy", "model", *GAIN_HEADER, "constant"], kept)),
    ]
    if judged:
        conditions.append(claims.DEFINITION)
        tables.append(("Claims: one curve is above another", claims.claims_table(judged)))
    kind = "oracle curves" if kinds == {True} else "held-out curves" if kinds == {False} else "curves"
    return Findings(
        name=f"tradeoff-{request.task}",
        title=f"{request.task}: {request.metric} against average exit layer, {kind} of {criterion}",
        conditions=conditions,
        tables=tables,
        data={"criterion": criterion, "curves": data, "claims": claims.entries(judged)},
        panels=panels,
        notes=[*curve_kinds, *seed_note(request.groups)],
    )


def common_criterion(runs: Sequence[StudyRun]) -> str:
    """The default criterion of models like these: that of LTE only if all runs have it."""
    lte = all(run.predictions.lte is not None for run in runs)
    return default_criterion(regression=runs[0].predictions.regression, lte=lte)


def relative_curve(sweeps: Sequence[Sweep], reference: Reference) -> Curve:
    """The mean over the seeds of the relative curves."""
    return mean_curve([each.curve().relative_to(reference.score) for each in sweeps])


def seed_note(groups: Sequence[Group]) -> list[str]:
    """The note about bands, if a group has several seeds."""
    return ["band: lowest and highest seed"] if any(len(group.runs) > 1 for group in groups) else []


def _full(group: Group, reference: Reference) -> float:
    return group.mean_layer_scores[-1] / reference.score


def _at_cost(at: Operating) -> list[str]:
    return [percent(each.relative) for each in at.at_cost]


def _claims(
    request: Request, groups: Sequence[Group], sweeps: Mapping[str, Sequence[Sweep]], reference: Reference
) -> list[Claim]:
    """Every pair of groups with equal depth. The paper's claim is about alternating, so alternating is A."""
    first = next(iter(STRATEGIES))
    ordered = sorted(groups, key=lambda group: group.strategy != first)
    sides = {group.label: side_of(request, group, sweeps[group.label], reference) for group in groups}
    return [
        judge(sides[a.label], sides[b.label], a.model, differ_in=choices_that_differ(a, b))
        for a, b in combinations(ordered, 2)
        if a.depth == b.depth
    ]


def side_of(request: Request, group: Group, sweeps: Sequence[Sweep], reference: Reference, name: str = "") -> Side:
    """The group as one side of a claim, without the runs at the constant prediction. ``name``: other than its label."""
    pairs = [(run, each) for run, each in zip(group.runs, sweeps, strict=True) if run.above_floor]
    runs, found = zip(*pairs, strict=True) if pairs else ((), ())
    return Side(name or group.label, runs, found, reference, request.bootstrap)


def _entry(request: Request, group: Group, reference: Reference, curve: Curve, at: Operating) -> dict[str, Any]:
    """One curve for the JSON file."""
    return {
        **request.described(group),
        "reference": reference.score,
        "reference_source": reference.source,
        "relative_constant": reference.relative_floor,
        "average_exit_layer": plain(curve.layers),
        "relative": plain(curve.scores),
        **at.entry(),
    }


def _panel(
    request: Request,
    groups: Sequence[Group],
    sweeps: Mapping[str, Sequence[Sweep]],
    curves: Mapping[str, Curve],
    reference: Reference,
    color: str,
) -> Panel:
    look = looks(groups, color, request.groups)

    def draw(axes: Axes) -> None:
        from berxit.toolkit.figures import Key, draw_floor
        from berxit.toolkit.studies import drawing

        key = Key()
        drawing.draw_hundred(axes)
        for group in groups:
            curve = curves[group.label]
            band = drawing.band_of(relative_at(curve.layers, sweeps[group.label], reference))
            drawing.draw_line(axes, key, curve.layers, curve.scores, group.name, look[group.label], band)
        draw_floor(axes, reference.relative_floor)
        axes.set(xlabel="average exit layer", ylabel=f"relative score (% of {request.metric})")
        drawing.saved_layers_axis(axes, max(curve.depth for curve in curves.values()))
        axes.set_title(drawing.title(groups[0].model, str(reference)))
        key.draw(axes)

    return draw


def relative_at(layers: npt.NDArray, sweeps: Sequence[Sweep], reference: Reference) -> npt.NDArray:
    """(S, P) relative scores of the curves of S seeds at average exit layers (P,)."""
    curves = [each.curve() for each in sweeps]
    return reference.relative([np.interp(layers, curve.layers, curve.scores) for curve in curves])
