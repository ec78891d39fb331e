"""Figure 9 (limit): the score of the first i layers if they are fine-tuned alone, with one exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from berxit.runtime.errors import InputError
from berxit.runtime.tables import Table
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import line_style, looks, marker_fill, model_colors
from berxit.toolkit.studies.request import Request
from berxit.toolkit.studies.runs import Group, StudyRun, shown_options
from berxit.train.strategies import STRATEGIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Limit = dict[int, list[float]]
"""Number of layers -> scores of the seeds, ascending."""


def study(request: Request) -> Findings:
    lines: dict[str, dict[str, Limit]] = {}
    others: dict[str, list[Group]] = {}
    for model, groups in request.models.items():
        lines[model] = limit_scores([run for group in groups for run in group.runs], request.runs)
        if not lines[model]:
            raise InputError(
                f"{model} has no limit checkpoint: train one with berxit-train --strategy limit --layers N for every N"
            )
        others[model] = [group for group in groups if not _last_exit_only(group.strategy)]
    depths = sorted({layers for same in lines.values() for line in same.values() for layers in line})
    constant = f"{request.runs[0].floor:.4f}"
    rows = []
    for model, same in lines.items():
        for label, line in same.items():
            cells = [f"{np.mean(line[layers]):.4f}" if layers in line else "-" for layers in depths]
            rows.append([f"{model}, {label}", constant, *cells])
        for group in others[model]:
            scores = group.mean_layer_scores
            cells = [f"{scores[layers - 1]:.4f}" if layers <= len(scores) else "-" for layers in depths]
            rows.append([f"{model}, {group.name}, exit at that layer", constant, *cells])
    colors = model_colors(list(lines))
    return Findings(
        name=f"limit-{request.task}",
        title=f"{request.task}: {request.metric} of the first layers alone, and of the exits of all layers",
        conditions=[
            *request.conditions(relative=False),
            "limit: a model of the first layers with one exit; raw is the limit of a model with all layers; with"
            " several seeds, scores are their mean",
        ],
        tables=[(f"{request.metric} of the first layers", Table(["model", "constant", *map(str, depths)], rows))],
        data={
            "limit": [
                {
                    "model": model,
                    "label": label,
                    "constant": request.runs[0].floor,
                    "layers": list(line),
                    "scores": [float(np.mean(scores)) for scores in line.values()],
                    "by_seed": list(line.values()),
                }
                for model, same in lines.items()
                for label, line in same.items()
            ],
            "groups": [request.described(group) for group in request.groups],
            "exits": [
                {"model": group.model, "label": group.label, "scores": group.mean_layer_scores}
                for groups in others.values()
                for group in groups
            ],
        },
        panels=[_panel(request, model, lines[model], others[model], colors[model]) for model in lines],
        notes=["band: lowest and highest seed"] if any(len(group.runs) > 1 for group in request.groups) else [],
    )


def limit_scores(runs: Sequence[StudyRun], study: Sequence[StudyRun]) -> dict[str, Limit]:
    """Label -> scores of the last exit of models with i layers. A line connects runs that differ in nothing but layers
    and seed. ``study``: all runs of the study."""
    found: dict[str, Limit] = {}
    for run in runs:
        if _last_exit_only(run.strategy):
            label = ", ".join(["limit", *shown_options(run, study, without=("layers",))])
            found.setdefault(label, {}).setdefault(run.predictions.layers, []).append(run.full_depth)
    return {label: dict(sorted(line.items())) for label, line in found.items()}


def _last_exit_only(strategy: str) -> bool:
    """False for a user's own strategy, which a study does not know."""
    return strategy in STRATEGIES and STRATEGIES[strategy].last_exit_only


def _panel(request: Request, model: str, lines: dict[str, Limit], others: list[Group], color: str) -> Panel:
    look = looks(others, color, request.groups)
    limit = line_style(list(STRATEGIES).index("limit"))

    def draw(axes: Axes) -> None:
        from berxit.toolkit.figures import Key, draw_floor
        from berxit.toolkit.studies import drawing

        key = Key()
        for place, (label, line) in enumerate(lines.items()):
            style = {**limit, "color": color, **marker_fill(place, color)}
            means = [np.mean(scores) for scores in line.values()]
            ends = [min(scores) for scores in line.values()], [max(scores) for scores in line.values()]
            drawing.draw_line(axes, key, list(line), means, label, style, ends)
        for group in others:
            scores = np.array([run.layer_scores for run in group.runs])
            layers, label = np.arange(1, scores.shape[1] + 1), f"exits of {group.name}"
            band = drawing.band_of(scores)
            drawing.draw_line(axes, key, layers, scores.mean(axis=0), label, look[group.label], band)
        draw_floor(axes, request.runs[0].floor)
        axes.set(xlabel="layers of the model (limit), or exit layer", ylabel=request.metric)
        last = max([*(max(line) for line in lines.values()), *(group.depth for group in others)])
        drawing.whole_ticks(axes, last)
        axes.set_title(model)
        key.draw(axes)

    return draw
