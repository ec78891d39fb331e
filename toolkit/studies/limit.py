"""Figure 9 (limit): the score of the first i layers if they are fine-tuned alone, with one exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from berxit.runtime.errors import InputError
from berxit.runtime.tables import Table
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import BLUE, GREEN, ORANGE, RED, looks, plain
from berxit.toolkit.studies.request import Request, StudyRun, by_label
from berxit.train.strategies import STRATEGIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = ((RED, "v"), (BLUE, "o"), (GREEN, "^"), (ORANGE, "s"))


def study(request: Request) -> Findings:
    lines: dict[str, dict[int, float]] = {}
    for model, runs in request.models.items():
        lines[model] = limit_scores(runs)
        if not lines[model]:
            raise InputError(
                f"{model} has no limit checkpoint: train one with berxit-train --strategy limit --layers N for every N"
            )
    others = {model: [run for run in runs if not _last_exit_only(run)] for model, runs in request.models.items()}
    depths = sorted({layers for line in lines.values() for layers in line})
    rows = [
        [model, *(f"{line[layers]:.4f}" if layers in line else "-" for layers in depths)]
        for model, line in lines.items()
    ]
    for model, runs in others.items():
        for label, same in by_label(runs).items():
            scores = _mean_scores(same)
            cells = [f"{scores[layers - 1]:.4f}" if layers <= len(scores) else "-" for layers in depths]
            rows.append([f"{model}, {label}, exit at that layer", *cells])
    return Findings(
        name=f"limit-{request.task}",
        title=f"Limit: the first layers alone, {request.task}",
        conditions=[
            *request.conditions(),
            "raw is the limit of a model with all layers; with several seeds, scores are their mean",
        ],
        tables=[(f"{request.metric} of the first layers", Table(["model", *map(str, depths)], rows))],
        data={
            "limit": [
                {"model": model, "layers": list(line), "scores": plain(line.values())} for model, line in lines.items()
            ]
        },
        panels=[_panel(request, lines, others)],
    )


def limit_scores(runs: Sequence[StudyRun]) -> dict[int, float]:
    """Number of layers -> score of the last exit of the model with that many layers (mean over seeds), ascending."""
    scores: dict[int, list[float]] = {}
    for run in runs:
        if _last_exit_only(run):
            scores.setdefault(run.predictions.layers, []).append(run.full_depth)
    return {layers: sum(found) / len(found) for layers, found in sorted(scores.items())}


def _last_exit_only(run: StudyRun) -> bool:
    """False for a user's own strategy, which a study does not know."""
    return run.strategy in STRATEGIES and STRATEGIES[run.strategy].last_exit_only


def _mean_scores(runs: Sequence[StudyRun]) -> list[float]:
    columns = zip(*(run.layer_scores for run in runs), strict=True)
    return [sum(column) / len(column) for column in columns]


def _panel(request: Request, lines: dict[str, dict[int, float]], others: dict[str, list[StudyRun]]) -> Panel:
    look = looks(others)

    def draw(axes: Axes) -> None:
        for (model, line), (color, marker) in zip(lines.items(), STYLES * len(lines), strict=False):
            axes.plot(
                *zip(*line.items(), strict=True), color=color, marker=marker, lw=1.5, ms=5, label=f"{model}, limit"
            )
        for model, runs in others.items():
            for label, same in by_label(runs).items():
                scores = _mean_scores(same)
                layers = range(1, len(scores) + 1)
                axes.plot(layers, scores, **look[label], lw=1, ms=3.5, alpha=0.8, label=f"{model}, {label}, exits")
        axes.set(xlabel="layers of the model (limit) or exit layer (exits)", ylabel=request.metric)
        axes.set_xticks(range(1, max(layers for line in lines.values() for layers in line) + 1))
        axes.set_title("limit: every model is fine-tuned with its last exit only")

    return draw
