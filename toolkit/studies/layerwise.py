"""Figures 2, 3, 10, 11: the score of every layer if all examples exit there, for each strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from berxit.runtime.tables import Table
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import GRAY, HIGHEST, drawable, looks, not_drawn, percent, plain
from berxit.toolkit.studies.request import Reference, Request, by_label
from berxit.train.curves import relative_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def study(request: Request) -> Findings:
    tables, panels = [], []
    data: list[dict[str, Any]] = []
    conditions = request.conditions()
    for model, runs in request.models.items():
        reference = request.reference(runs)
        constant = runs[0].predictions.constant.score
        conditions.append(f"{model}: {reference}; the best constant prediction scores {constant:.4f}")
        lines = {label: np.array([run.layer_scores for run in same]) for label, same in by_label(runs).items()}
        for label, scores in lines.items():
            relative = relative_score(scores.mean(axis=0), reference.score)
            tables.append((label, model, scores.mean(axis=0), relative))
            data.append(
                {
                    "model": model,
                    "label": label,
                    "runs": len(scores),
                    "reference": reference.score,
                    "scores": plain(scores.mean(axis=0)),
                    "relative": plain(relative),
                    "lowest": plain(scores.min(axis=0)),
                    "highest": plain(scores.max(axis=0)),
                }
            )
        conditions += not_drawn(model, (relative_score(s.max(axis=0), reference.score) for s in lines.values()))
        panels.append(_panel(request, model, lines, reference, constant))
    return Findings(
        name=f"layerwise-{request.task}",
        title=f"Layer-wise scores, {request.task}",
        conditions=conditions,
        tables=[
            (f"{request.metric} if every example exits at that layer", _table(tables, relative=False)),
            ("Relative score", _table(tables, relative=True)),
        ],
        data={"lines": data},
        panels=panels,
    )


def _table(rows: Sequence[tuple[str, str, npt.NDArray, npt.NDArray]], *, relative: bool) -> Table:
    depth = max(len(scores) for _, _, scores, _ in rows)
    cells = []
    for label, model, scores, relatives in rows:
        texts = [percent(value) for value in relatives] if relative else [f"{value:.4f}" for value in scores]
        cells.append([label, model, *texts, *["-"] * (depth - len(texts))])
    return Table(["strategy", "model", *(str(layer) for layer in range(1, depth + 1))], cells)


def _panel(request: Request, model: str, lines: dict[str, npt.NDArray], reference: Reference, constant: float) -> Panel:
    look: dict[str, dict[str, Any]] = looks(request.models)

    def draw(axes: Axes) -> None:
        axes.axhline(100, color=GRAY, lw=0.8)
        for label, scores in lines.items():
            relative = drawable(relative_score(scores, reference.score))
            layers = range(1, relative.shape[1] + 1)
            axes.plot(layers, relative.mean(axis=0), **look[label], lw=1.3, ms=4, label=label)
            if len(scores) > 1:
                band = relative.min(axis=0), relative.max(axis=0)
                axes.fill_between(layers, *band, color=look[label]["color"], alpha=0.15, lw=0)
        if 0 < relative_score(constant, reference.score) <= HIGHEST:
            axes.axhline(100 * constant / reference.score, color=GRAY, lw=0.8, ls=":", label="constant prediction")
        axes.set(xlabel="exit layer, the same for all examples", ylabel=f"relative score (% of {request.metric})")
        axes.set_xticks(range(1, max(scores.shape[1] for scores in lines.values()) + 1))
        axes.set_title(model)

    return draw
