"""Figure 8: confidence as a probe: its correlation with the word overlap of the two sentences, for every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics import BLEU

from berxit.runtime.errors import InputError
from berxit.runtime.metrics import METRICS
from berxit.runtime.policies import CRITERIA, Parameters
from berxit.runtime.tables import Table
from berxit.runtime.tokenization import Text
from berxit.toolkit.studies.certainty import score_panel
from berxit.toolkit.studies.findings import Findings, Panel
from berxit.toolkit.studies.look import (
    GRAY,
    line_style,
    looks,
    marker_fill,
    model_colors,
    not_drawn,
    number,
    percent,
    plain,
)
from berxit.toolkit.studies.request import Request
from berxit.toolkit.studies.runs import StudyRun
from berxit.train.evaluation import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 10
"""Minimum number of examples of a correlation."""


def study(request: Request) -> Findings:
    rows, data, panels = [], [], []
    conditions = request.conditions()
    first = request.runs[0]
    if (kind := first.predictions.task_kind.name) != "classification":
        raise InputError(f"the study probe needs one class per text, and {request.task} is of the kind {kind}")
    examples = request.examples(first)
    if isinstance(examples.texts[0], str):
        raise InputError(f"the study probe needs pairs of sentences, and {request.task} has single ones")
    overlap = bleu_scores(examples.texts)
    colors = model_colors(list(request.models))
    for group in request.groups:
        reference = request.reference(group.model)
        look = looks(request.models[group.model], colors[group.model], request.groups)[group.label]
        for run in group.runs:
            labels, name = class_names(run), group.name_of(run)
            relative = reference.relative(run.layer_scores)
            conditions += not_drawn(name, [relative])
            found, counts = correlations(run.predictions, overlap)
            for layer in range(run.predictions.layers):
                cells = [f"{number(found[c][layer])} ({counts[c][layer]})" for c in range(len(labels))]
                scores = [percent(relative[layer]), percent(reference.relative_floor)]
                rows.append([name, str(layer + 1), *cells, *scores])
            by_class = {label: {"correlation": found[c], "examples": counts[c]} for c, label in enumerate(labels)}
            data.append(
                {
                    **request.described(group),
                    "folder": run.folder.name,
                    "seed": run.seed,
                    "relative": plain(relative),
                    "relative_constant": reference.relative_floor,
                    "reference": reference.score,
                    "reference_source": reference.source,
                    "predicted": by_class,
                }
            )
            panels += [
                _correlation_panel(name, labels, found, colors[group.model]),
                score_panel(request, name, relative, reference, look),
            ]
    conditions += [
        f"BLEU-4 of the second sentence against the first, smoothed (sacrebleu); mean {overlap.mean():.1f} of 100",
        f"Pearson correlation with the highest class probability, over the examples for which the layer predicts the"
        f" class (their number in brackets), if there are at least {LEAST}",
    ]
    names = class_names(first)
    header = ["run", "layer", *(f"predicted {name}" for name in names), "relative score", "constant"]
    return Findings(
        name=f"probe-{request.task}",
        title=f"{request.task}: word overlap against confidence, and {request.metric} of every layer",
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


def _correlation_panel(name: str, labels: tuple[str, ...], found: list[list[float | None]], color: str) -> Panel:
    def draw(axes: Axes) -> None:
        from berxit.toolkit.figures import Key
        from berxit.toolkit.studies import drawing

        key = Key()
        axes.axhline(0, color=GRAY, lw=0.7)
        for c, values in enumerate(found):
            heights = [np.nan if value is None else value for value in values]
            style = {**line_style(c), "color": color, **marker_fill(min(c, 1), color)}
            few = f": fewer than {LEAST} examples at every layer" if np.isnan(heights).all() else ""
            label = f"predicted {labels[c]}{few}"
            drawing.draw_line(axes, key, np.arange(1, len(values) + 1), heights, label, style)
        axes.set(xlabel="layer", ylabel="correlation of BLEU-4 and confidence")
        drawing.whole_ticks(axes, len(found[0]))
        axes.set_title(drawing.title(name))
        key.draw(axes)

    return draw
