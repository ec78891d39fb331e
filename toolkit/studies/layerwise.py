"""Figures 2, 3, 10, 11: the score of every layer if all examples exit there, for each strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from berxit.runtime.tables import Table
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import looks, model_colors, not_drawn, percent, plain
from berxit.toolkit.studies.reference import Reference
from berxit.toolkit.studies.request import Request
from berxit.toolkit.studies.runs import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def study(request: Request) -> Findings:
    panels: list[Panel] = []
    data: list[dict[str, Any]] = []
    conditions = request.conditions()
    colors = model_colors(list(request.models))
    for model, groups in request.models.items():
        reference = request.reference(model)
        scores = {group.label: np.array([run.layer_scores for run in group.runs]) for group in groups}
        data += [_entry(request, group, scores[group.label], reference) for group in groups]
        conditions += not_drawn(model, (reference.relative(each.max(axis=0)) for each in scores.values()))
        panels.append(_panel(request, groups, scores, reference, colors[model]))
    return Findings(
        name=f"layerwise-{request.task}",
        title=f"{request.task}: {request.metric} if all examples exit at the same layer",
        conditions=conditions,
        tables=[
            (f"{request.metric} if every example exits at that layer", _table(data, "scores", "{:.4f}".format)),
            ("Relative score", _table(data, "relative", percent)),
        ],
        data={"lines": data},
        panels=panels,
        notes=["band: lowest and highest seed"] if any(len(group.runs) > 1 for group in request.groups) else [],
    )


def _entry(request: Request, group: Group, scores: npt.NDArray, reference: Reference) -> dict[str, Any]:
    """One line for the JSON file: scores (S, n) of S seeds."""
    return {
        **request.described(group),
        "runs": len(scores),
        "reference": reference.score,
        "reference_source": reference.source,
        "scores": plain(scores.mean(axis=0)),
        "relative": plain(reference.relative(scores.mean(axis=0))),
        "relative_constant": reference.relative_floor,
        "lowest": plain(scores.min(axis=0)),
        "highest": plain(scores.max(axis=0)),
    }


def _table(entries: Sequence[dict[str, Any]], what: str, text: Callable[[float], str]) -> Table:
    depth = max(len(entry[what]) for entry in entries)
    floor = "constant" if what == "scores" else "relative_constant"
    rows = [
        [
            entry["label"],
            entry["model"],
            ", ".join(map(str, entry["seeds"])),
            text(entry[floor]),
            *map(text, entry[what]),
            *["-"] * (depth - len(entry[what])),
        ]
        for entry in entries
    ]
    return Table(["strategy", "model", "seeds", "constant", *map(str, range(1, depth + 1))], rows)


def _panel(
    request: Request, groups: Sequence[Group], scores: dict[str, npt.NDArray], reference: Reference, color: str
) -> Panel:
    look = looks(groups, color, request.groups)

    def draw(axes: Axes) -> None:
        from berxit.toolkit.figures import Key, draw_floor
        from berxit.toolkit.studies import drawing

        key = Key()
        drawing.draw_hundred(axes)
        for group in groups:
            runs = reference.relative(scores[group.label])
            layers = np.arange(1, runs.shape[1] + 1)
            band = drawing.band_of(runs)
            drawing.draw_line(axes, key, layers, runs.mean(axis=0), group.name, look[group.label], band)
        draw_floor(axes, reference.relative_floor)
        axes.set(xlabel="exit layer of all examples", ylabel=f"relative score (% of {request.metric})")
        drawing.whole_ticks(axes, max(each.shape[1] for each in scores.values()))
        axes.set_title(drawing.title(groups[0].model, str(reference)))
        key.draw(axes)

    return draw
