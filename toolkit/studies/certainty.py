"""Figure 7: the learned certainty (LTE) and the score of every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from berxit.runtime.errors import InputError
from berxit.runtime.metrics import METRICS
from berxit.runtime.tables import Table
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import looks, model_colors, not_drawn, number, percent, plain
from berxit.toolkit.studies.reference import Reference
from berxit.toolkit.studies.request import Request
from berxit.toolkit.studies.runs import StudyRun
from berxit.train.evaluation import Predictions
from berxit.train.losses import lte_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTILES = (5, 25, 50, 75, 95)
LEAST_RANGE = 0.1
"""Smallest range of the certainty axis. A smaller one would magnify noise."""


def study(request: Request) -> Findings:
    if missing := [run.folder for run in request.runs if run.predictions.lte is None]:
        raise InputError(f"{missing[0]} was trained without LTE: retrain it with --lte, or omit it")
    rows, data, panels = [], [], []
    conditions = request.conditions()
    colors = model_colors(list(request.models))
    for group in request.groups:
        reference = request.reference(group.model)
        look = looks(request.models[group.model], colors[group.model], request.groups)[group.label]
        constant = percent(reference.relative_floor)
        for run in group.runs:
            assert run.predictions.lte is not None
            learned = run.predictions.lte
            relative = reference.relative(run.layer_scores)
            across = METRICS["pearson"](learned.mean(axis=0), relative)
            targets = certainty_targets(run.predictions)
            within = [METRICS["pearson"](c, t) for c, t in zip(learned.T, targets.T, strict=True)]
            quantiles = np.percentile(learned, QUANTILES, axis=0)
            name = group.name_of(run)
            conditions += not_drawn(name, [relative])
            rows += [
                [
                    name,
                    str(layer + 1),
                    f"{learned[:, layer].mean():.3f}",
                    *(f"{q:.3f}" for q in quantiles[:, layer]),
                    percent(relative[layer]),
                    constant,
                    number(within[layer]),
                ]
                for layer in range(run.predictions.layers)
            ]
            conditions.append(f"{name}: Pearson correlation of mean certainty and score over the layers: {across:.3f}")
            entry = _entry(run, reference, relative, quantiles, across, within)
            data.append({"run": name, "folder": run.folder.name, "seed": run.seed, **request.described(group), **entry})
            panels += [
                _certainty_panel(name, learned, across, colors[group.model]),
                score_panel(request, name, relative, reference, look),
            ]
    conditions.append(
        "correlation with target: Pearson correlation of the certainty and its training target over the examples, per"
        " layer (equations 9 and 10: 1 if the prediction is correct, else 0; for regression 1 - tanh |error|)"
    )
    quantile_names = [f"p{q}" for q in QUANTILES]
    header = ["run", "layer", "mean certainty", *quantile_names, "relative score", "constant", "correlation"]
    return Findings(
        name=f"certainty-{request.task}",
        title=f"{request.task}: learned certainty and {request.metric} of every layer",
        conditions=conditions,
        tables=[("Certainty over the examples, score of the layer, correlation with target", Table(header, rows))],
        data={"runs": data},
        panels=panels,
        notes=["boxes: quartiles of the certainty; whiskers: 5% to 95%"],
    )


def certainty_targets(stored: Predictions) -> npt.NDArray:
    """(N, n) the training target of every certainty (equations 9 and 10)."""
    if stored.task_kind.several:
        return (stored.predicted() == stored.labels[:, None]).astype(np.float32)
    targets = lte_targets(torch.from_numpy(stored.logits), torch.from_numpy(stored.labels), stored.regression)
    return np.asarray(targets.numpy())


def _entry(
    run: StudyRun,
    reference: Reference,
    relative: npt.NDArray,
    quantiles: npt.NDArray,
    across: float,
    within: list[float],
) -> dict[str, Any]:
    assert run.predictions.lte is not None
    return {
        "reference": reference.score,
        "reference_source": reference.source,
        "relative_constant": reference.relative_floor,
        "mean_certainty": plain(run.predictions.lte.mean(axis=0)),
        "quantiles": {f"p{q}": plain(values) for q, values in zip(QUANTILES, quantiles, strict=True)},
        "relative": plain(relative),
        "correlation_over_layers": across,
        "correlation_with_truth": plain(within),
    }


def _certainty_panel(name: str, learned: npt.NDArray, across: float, color: str) -> Panel:
    def draw(axes: Axes) -> None:
        from berxit.toolkit.studies import drawing

        axes.boxplot(
            learned,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            widths=0.55,
            boxprops={"facecolor": color, "alpha": 0.35, "lw": 0.7},
            medianprops={"color": "black", "lw": 1.2},
            whiskerprops={"lw": 0.7},
            capprops={"lw": 0.7},
        )
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="layer", ylabel="certainty $u_i$")
        if np.ptp(axes.get_ylim()) < LEAST_RANGE:
            middle = float(np.mean(axes.get_ylim()))
            axes.set_ylim(middle - LEAST_RANGE / 2, middle + LEAST_RANGE / 2)
        axes.set_title(drawing.title(name, f"correlation with the score over the layers: {across:.2f}"))

    return draw


def score_panel(
    request: Request, name: str, relative: npt.NDArray, reference: Reference, look: dict[str, Any]
) -> Panel:
    """The relative score of every layer of a run. ``look``: keywords for ``plot``."""

    def draw(axes: Axes) -> None:
        from berxit.toolkit.figures import Key, draw_floor
        from berxit.toolkit.studies import drawing

        layers = np.arange(1, len(relative) + 1)
        drawing.draw_hundred(axes)
        drawing.draw_line(axes, Key(), layers, relative, name, look)
        draw_floor(axes, reference.relative_floor)
        axes.set(xlabel="layer", ylabel=f"relative score (% of {request.metric})")
        drawing.whole_ticks(axes, len(relative))
        axes.set_title(drawing.title(name, str(reference)))

    return draw
