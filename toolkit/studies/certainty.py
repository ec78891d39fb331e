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
from berxit.toolkit.studies.look import BLUE, drawable, not_drawn, number, percent, plain
from berxit.toolkit.studies.request import Request, StudyRun
from berxit.train.curves import relative_score
from berxit.train.evaluation import Predictions
from berxit.train.losses import lte_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

YELLOW = "#F0E442"
QUANTILES = (5, 25, 50, 75, 95)


def study(request: Request) -> Findings:
    rows, data, panels = [], [], []
    conditions = request.conditions()
    for model, runs in request.models.items():
        reference = request.reference(runs)
        conditions.append(f"{model}: {reference}")
        for run in runs:
            if run.predictions.lte is None:
                raise InputError(f"{run.folder} was trained without LTE: retrain it with --lte, or omit it")
            learned = run.predictions.lte
            relative = relative_score(np.array(run.layer_scores), reference.score)
            across = METRICS["pearson"](learned.mean(axis=0), relative)
            targets = certainty_targets(run.predictions)
            within = [METRICS["pearson"](c, t) for c, t in zip(learned.T, targets.T, strict=True)]
            quantiles = np.percentile(learned, QUANTILES, axis=0)
            name = _name(run)
            conditions += not_drawn(name, [relative])
            rows += [
                [
                    name,
                    str(layer + 1),
                    f"{learned[:, layer].mean():.3f}",
                    *(f"{q:.3f}" for q in quantiles[:, layer]),
                    percent(relative[layer]),
                    number(within[layer]),
                ]
                for layer in range(run.predictions.layers)
            ]
            conditions.append(f"{name}: Pearson correlation of mean certainty and score over the layers: {across:.3f}")
            data.append(_entry(run, reference.score, relative, quantiles, across, within))
            panels.append(_panel(request, run, relative, across))
    conditions.append(
        "correlation with target: Pearson correlation of the certainty and its training target over the examples, per"
        " layer (equations 9 and 10: 1 if the prediction is correct, else 0; for regression 1 - tanh |error|)"
    )
    header = ["run", "layer", "mean certainty", *(f"p{q}" for q in QUANTILES), "relative score", "correlation"]
    return Findings(
        name=f"certainty-{request.task}",
        title=f"Learned certainty by layer, {request.task}",
        conditions=conditions,
        tables=[("Certainty over the examples, score of the layer, correlation with target", Table(header, rows))],
        data={"runs": data},
        panels=panels,
    )


def certainty_targets(stored: Predictions) -> npt.NDArray:
    """(N, n) the training target of every certainty (equations 9 and 10)."""
    targets = lte_targets(torch.from_numpy(stored.logits), torch.from_numpy(stored.labels), stored.regression)
    return np.asarray(targets.numpy())


def _name(run: StudyRun) -> str:
    seed = run.options.get("seed")
    return f"{run.model}, {run.label}" + ("" if seed is None else f", seed {seed}")


def _entry(
    run: StudyRun,
    reference: float,
    relative: npt.NDArray,
    quantiles: npt.NDArray,
    across: float,
    within: list[float],
) -> dict[str, Any]:
    assert run.predictions.lte is not None
    return {
        "run": _name(run),
        "reference": reference,
        "mean_certainty": plain(run.predictions.lte.mean(axis=0)),
        "quantiles": {f"p{q}": plain(values) for q, values in zip(QUANTILES, quantiles, strict=True)},
        "relative": plain(relative),
        "correlation_over_layers": across,
        "correlation_with_truth": plain(within),
    }


def _panel(request: Request, run: StudyRun, relative: npt.NDArray, across: float) -> Panel:
    def draw(axes: Axes) -> None:
        assert run.predictions.lte is not None
        boxes = axes.boxplot(
            run.predictions.lte,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            widths=0.55,
            boxprops={"facecolor": YELLOW, "lw": 0.7},
            medianprops={"color": "black", "lw": 1.2},
            whiskerprops={"lw": 0.7},
            capprops={"lw": 0.7},
        )
        boxes["boxes"][0].set_label("certainty: quartiles, whiskers from 5 to 95%")
        axes.set(xlabel="layer", ylabel="certainty $u_i$")
        if np.ptp(axes.get_ylim()) < 0.1:  # A smaller range would magnify noise.
            middle = float(np.mean(axes.get_ylim()))
            axes.set_ylim(middle - 0.05, middle + 0.05)
        right = axes.twinx()
        right.plot(
            range(1, len(relative) + 1), drawable(relative), "o-", color=BLUE, lw=1.3, ms=4, label="relative score"
        )
        right.spines["right"].set_visible(True)
        right.spines["right"].set_color(BLUE)
        right.tick_params(axis="y", colors=BLUE)
        right.set_ylabel(f"relative score (% of {request.metric})", color=BLUE)
        right.grid(visible=False)
        axes.set_title(f"{_name(run)}\ncorrelation over layers {across:.2f}")

    return draw
