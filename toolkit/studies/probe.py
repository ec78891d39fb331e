"""Figure 8: confidence as a probe: its correlation with the word overlap of the two sentences, for every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics import BLEU

from berxit.runtime.errors import InputError
from berxit.runtime.metrics import METRICS
from berxit.runtime.policies import CRITERIA, Parameters
from berxit.runtime.tables import Table
from berxit.runtime.tokenization import Text
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import BLUE, GRAY, GREEN, ORANGE, RED, drawable, not_drawn, number, percent, plain
from berxit.toolkit.studies.request import Request, StudyRun
from berxit.train.curves import relative_score
from berxit.train.evaluation import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 10
"""Minimum number of examples of a correlation."""
STYLES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "marker": "s"},
    {"color": RED, "marker": "o"},
    {"color": GREEN, "marker": "^"},
    {"color": ORANGE, "marker": "D"},
)


def study(request: Request) -> Findings:
    rows, data, panels = [], [], []
    conditions = request.conditions()
    first = next(iter(request.models.values()))[0]
    if first.predictions.regression:
        raise InputError(f"the study probe needs the confidence of classes, and {request.task} is regression")
    examples = request.examples(first)
    if isinstance(examples.texts[0], str):
        raise InputError(f"the study probe needs pairs of sentences, and {request.task} has single ones")
    overlap = bleu_scores(examples.texts)
    for model, runs in request.models.items():
        reference = request.reference(runs)
        conditions.append(f"{model}: {reference}")
        for run in runs:
            labels = class_names(run)
            relative = relative_score(np.array(run.layer_scores), reference.score)
            conditions += not_drawn(f"{model}, {run.label}", [relative])
            found, counts = correlations(run.predictions, overlap)
            for layer in range(run.predictions.layers):
                cells = [f"{number(found[c][layer])} ({counts[c][layer]})" for c in range(len(labels))]
                rows.append([f"{model}, {run.label}", str(layer + 1), *cells, percent(relative[layer])])
            entry = {"model": model, "label": run.label, "folder": run.folder.name, "relative": plain(relative)}
            by_class = {name: {"correlation": found[c], "examples": counts[c]} for c, name in enumerate(labels)}
            data.append({**entry, "reference": reference.score, "predicted": by_class})
            panels.append(_panel(request, run, labels, found, relative))
    conditions += [
        f"BLEU-4 of the second sentence against the first, smoothed (sacrebleu); mean {overlap.mean():.1f} of 100",
        f"Pearson correlation with the highest class probability, over the examples for which the layer predicts the"
        f" class (their number in brackets), if there are at least {LEAST}",
    ]
    header = ["run", "layer", *(f"predicted {name}" for name in class_names(first)), "relative score"]
    return Findings(
        name=f"probe-{request.task}",
        title=f"Confidence and word overlap, {request.task}",
        conditions=conditions,
        tables=[("Correlation of BLEU-4 and confidence", Table(header, rows))],
        data={"runs": data},
        panels=panels,
    )


def bleu_scores(pairs: list[Text]) -> npt.NDArray[np.float64]:
    """(N,) BLEU-4 (0 to 100) of the second sentence of each pair, with the first as the reference."""
    bleu = BLEU(effective_order=True)  # Sentences of fewer than four words have lower orders only.
    return np.array([bleu.sentence_score(pair[1], [pair[0]]).score for pair in pairs])


def class_names(run: StudyRun) -> tuple[str, ...]:
    from berxit.train.configuration import MultiExitConfig

    return MultiExitConfig.from_pretrained(str(run.folder)).labels


def correlations(stored: Predictions, overlap: npt.NDArray) -> tuple[list[list[float | None]], list[list[int]]]:
    """For each class and layer: the correlation of overlap (N,) and confidence, and the number of examples for which
    the layer predicts the class."""
    predicted = stored.predicted()
    found: list[list[float | None]] = []
    counts: list[list[int]] = []
    confidence = CRITERIA["confidence"].certainty(stored.logits, None, None, Parameters())[0]
    for number_of_class in range(stored.logits.shape[2]):
        masks = [predicted[:, layer] == number_of_class for layer in range(stored.layers)]
        counts.append([int(mask.sum()) for mask in masks])
        found.append(
            [
                METRICS["pearson"](overlap[mask], confidence[mask, layer].astype(np.float64))
                if mask.sum() >= LEAST
                else None
                for layer, mask in enumerate(masks)
            ]
        )
    return found, counts


def _panel(
    request: Request, run: StudyRun, labels: tuple[str, ...], found: list[list[float | None]], relative: npt.NDArray
) -> Panel:
    layers = range(1, len(relative) + 1)

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=GRAY, lw=0.8)
        for c, values in enumerate(found):
            heights = [np.nan if value is None else value for value in values]
            axes.plot(layers, heights, **STYLES[c % len(STYLES)], lw=1.3, ms=4, label=f"predicted {labels[c]}")
        axes.set(xlabel="layer", ylabel="correlation of BLEU-4 and confidence")
        axes.set_xticks(layers)
        right = axes.twinx()
        right.plot(layers, drawable(relative), "k--", lw=1, label="relative score")
        right.set_ylabel(f"relative score (% of {request.metric})")
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        axes.set_title(f"{run.model}, {run.label}")

    return draw
