"""Report of berxit-eval: the score of every exit, and the trade-off curve of every exit criterion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from berxit.runtime.metrics import METRICS
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.reliability import CertaintyQuality
from berxit.runtime.tables import Table, markdown_table
from berxit.runtime.tokenization import Text
from berxit.train.chance_warnings import depth_warning, exits_warning
from berxit.train.curves import SAVED, Curve, area_above, curve_of
from berxit.train.diagnostics import PolicyDiagnostics, criterion_quality, policy_diagnostics
from berxit.train.evaluation import Predictions, layer_scores
from berxit.train.families import OperatingPoint, PolicySpec, applicable_criteria, operating_points

KEPT = 0.99
"""Share of full depth's score for which a report states the saved layers; the default of calibration."""


@dataclass(frozen=True)
class Summary:
    """Key values of a criterion's curve, relative to the last exit."""

    relative_at_saved: dict[str, float | None]
    """Share of saved layers -> relative score in percent, interpolated; None beyond the curve's ends."""
    area_above: dict[str, float]
    """Another criterion -> the area of this one's curve above that one's, in percent x layers."""


@dataclass(frozen=True)
class Evaluation:
    """eval.json"""

    metric: str
    examples: int
    layer_scores: tuple[float, ...]
    """(n,) the score if every example exits at that layer."""
    also: dict[str, tuple[float, ...]]
    """The second score that GLUE reports for the task: its name -> (n,); empty if there is none."""
    criterion: str
    """The criterion whose thresholds the report lists."""
    curves: dict[str, tuple[OperatingPoint, ...]]
    """Criterion -> some 200 thresholds, from exiting at the first exit to never exiting early."""
    summaries: dict[str, Summary]
    """Criterion -> key values of its curve; empty if the last exit's score is not above zero, or at chance."""
    constant_score: float
    """The score of the best prediction that is the same for every example: the floor of every table and figure."""
    constant_prediction: str | float
    """That prediction: a class name (its number if names are unknown); for regression the mean label."""
    quality: dict[str, tuple[CertaintyQuality, ...]]
    """Criterion -> quality of its certainty at each exit."""
    policy: PolicyDiagnostics | None = None
    """The calibrated policy of a classification model; None for others."""
    positive: str | None = None
    """The class that F1 scores; None for another metric."""
    warnings: tuple[str, ...] = ()
    """Warnings about scores at chance, with the next step."""

    @property
    def curve(self) -> tuple[OperatingPoint, ...]:
        return self.curves[self.criterion]

    def text(self) -> str:
        """All tables, as Markdown."""
        parts = [
            f"{self._metric} on {self.examples} examples; relative to the last exit. The constant prediction"
            f" ({self._constant}) scores {self.constant_score:.4f}",
            *(f"warning: {line}" for line in self.warnings),
            markdown_table(*self._layers()),
            markdown_table(*self._thresholds()),
        ]
        parts += [self._quality_title(), markdown_table(*self._quality())]
        if self.policy is not None:
            parts += policy_text(self.policy)
        if self.summaries:
            parts.append("relative score at equal saved layers; area of one curve above another, in percent x layers")
            parts.append(markdown_table(*self._criteria()))
        return "\n\n".join(parts)

    @property
    def _metric(self) -> str:
        return self.metric if self.positive is None else f"{self.metric} of '{self.positive}'"

    @property
    def _constant(self) -> str:
        value = self.constant_prediction
        return f"'{value}'" if isinstance(value, str) else f"the mean, {value:.4g}"

    def _layers(self) -> Table:
        rows = [
            [
                str(layer),
                f"{score:.4f}",
                self._relative(score),
                *(f"{also[layer - 1]:.4f}" for also in self.also.values()),
            ]
            for layer, score in enumerate(self.layer_scores, start=1)
        ]
        return Table(["exit layer", self.metric, "relative", *self.also], rows)

    def _thresholds(self) -> Table:
        rows = [
            [
                f"{point.threshold:.4g}",
                *([f"{point.tolerance:.3g}"] if self._searched else []),
                f"{point.average_exit_layer:.2f}",
                f"{point.saved_layers:.0%}",
                f"{point.score:.4f}",
                self._relative(point.score),
            ]
            for point in self.spread(10)
        ]
        columns = [f"{self.criterion} threshold", *(["tolerance"] if self._searched else [])]
        return Table([*columns, "average exit layer", "saved layers", self.metric, "relative"], rows)

    def _criteria(self) -> Table:
        rows = [
            [
                name,
                *("-" if kept is None else f"{kept:.1f}%" for kept in summary.relative_at_saved.values()),
                *("-" if other == name else f"{summary.area_above[other]:.2f}" for other in self.summaries),
            ]
            for name, summary in self.summaries.items()
        ]
        saved = [f"at {share:.0%} saved" for share in SAVED]
        return Table(["criterion", *saved, *(f"above {other}" for other in self.summaries)], rows)

    @property
    def regression(self) -> bool:
        """True if the predictions are values, not classes."""
        return all(each.auroc is None and not each.bins for exits in self.quality.values() for each in exits)

    def _quality_title(self) -> str:
        if self.regression:
            return "rank correlation of the certainty with the negative absolute error, per exit"
        return (
            "probability that a right prediction is more certain than a wrong one (AUROC), and calibration error of"
            " certainties that are probabilities (ECE), per exit"
        )

    def _quality(self) -> Table:
        rows = []
        for each in zip(*self.quality.values(), strict=True):
            cells = []
            for quality in each:
                value = quality.rank_correlation if quality.auroc is None else quality.auroc
                ece = "" if quality.ece is None else f" (ECE {quality.ece:.3f})"
                cells.append("-" if value is None else f"{value:.3f}{ece}")
            rows.append([str(each[0].exit_layer), *cells])
        return Table(["exit layer", *self.quality], rows)

    def _relative(self, score: float) -> str:
        return f"{score / self.layer_scores[-1]:.1%}" if self.summaries else "-"

    def spread(self, count: int) -> list[OperatingPoint]:
        """Points of the curve with evenly spaced average exit layers, cheapest first.

        If tolerances were searched, only points that are not dominated at the same or a lower cost.
        """
        points = self.curve if not self._searched else _undominated(self.curve)
        averages = np.array([point.average_exit_layer for point in points])
        wanted = np.linspace(averages.min(), averages.max(), count)
        chosen = {int(np.abs(averages - want).argmin()) for want in wanted}
        return sorted((points[i] for i in chosen), key=lambda point: point.average_exit_layer)

    @property
    def _searched(self) -> bool:
        """True if points of the curve differ in their tolerance, too: patience on regression."""
        return len({point.tolerance for point in self.curve}) > 1


def policy_text(policy: PolicyDiagnostics) -> list[str]:
    """Tables of the calibrated policy: scores per class, confusion matrix, flips."""
    rows = [
        [each.name, str(each.examples), *map(_score, (each.precision, each.recall, each.f1, full.f1))]
        for each, full in zip(policy.classes, policy.full_depth_classes, strict=True)
    ]
    names = [each.name for each in policy.classes]
    confusion = [[name, *map(str, counts)] for name, counts in zip(names, policy.confusion, strict=True)]
    parts = [
        f"calibrated policy: average exit layer {policy.average_exit_layer:.2f}; {policy.flipped:.1%} of the"
        f" predictions differ from full depth's, {policy.fixed_by_exiting:.1%} are right where full depth is wrong",
        markdown_table(["class", "examples", "precision", "recall", "f1", "f1 at full depth"], rows),
        "confusion matrix under the calibrated policy: rows are labels, columns are predictions",
        markdown_table(["label", *names], confusion),
    ]
    if policy.flips:
        listed = [
            [
                _short(flip.text),
                str(flip.exit_layer),
                f"{flip.certainty:.3f}",
                flip.prediction,
                flip.full_depth,
                flip.label,
            ]
            for flip in policy.flips
        ]
        parts.append("predictions that differ from full depth's, the most certain first")
        header = ["text", "exit layer", "certainty", "prediction", "full depth", "label"]
        parts.append(markdown_table(header, listed))
    return parts


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _short(text: Text, length: int = 60) -> str:
    """A text or pair on one line of at most ``length`` characters, without the characters of a Markdown table."""
    line = " / ".join([text] if isinstance(text, str) else text)
    line = " ".join(line.replace("|", "\\|").split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def evaluate(
    predictions: Predictions,
    criterion: str | None = None,
    policy: ExitPolicy | None = None,
    texts: Sequence[Text] = (),
) -> Evaluation:
    """The evaluation of one stored pass. ``policy``: the calibrated policy; with it, ``texts`` (N,) of the examples.

    Raises InputError for a ``criterion`` that does not apply to this model, and as ``Predictions.check`` does.
    """
    predictions.check()
    criterion = criterion or predictions.default_criterion
    names = applicable_criteria(predictions)
    if criterion not in names:
        operating_points(predictions, PolicySpec(criterion))  # raises with the reason
    points = {name: operating_points(predictions, PolicySpec(name)) for name in names}
    scores = layer_scores(predictions)
    curves = {name: curve_of(found, len(scores)) for name, found in points.items()}
    second = METRICS[predictions.metric].second
    also = [second] if second else []
    depth = depth_warning(predictions)
    kept = [point.saved_layers for point in points[criterion] if point.score >= KEPT * scores[-1]]
    exits = exits_warning(predictions, max(kept, default=0.0)) if depth is None else None
    constant = predictions.constant
    return Evaluation(
        metric=predictions.metric,
        examples=len(predictions.labels),
        layer_scores=tuple(scores),
        also={name: tuple(layer_scores(predictions, name)) for name in also},
        criterion=criterion,
        curves={name: tuple(found) for name, found in points.items()},
        summaries=_summaries(curves, scores[-1]) if scores[-1] > 0 and depth is None else {},
        constant_score=constant.score,
        constant_prediction=_named(predictions, constant.prediction),
        quality={name: criterion_quality(predictions, name) for name in names},
        policy=policy_diagnostics(predictions, policy, texts) if policy and not predictions.regression else None,
        positive=predictions.positive,
        warnings=tuple(filter(None, (depth, exits))),
    )


def _named(predictions: Predictions, prediction: float) -> str | float:
    if predictions.regression:
        return prediction
    return predictions.names[int(prediction)] if predictions.names else f"class {prediction:.0f}"


def _summaries(curves: dict[str, Curve], full: float) -> dict[str, Summary]:
    relative = {name: curve.relative_to(full) for name, curve in curves.items()}
    areas = {(a, b): area_above(relative[a], relative[b]).area for a, b in permutations(relative, 2)}
    return {
        name: Summary(
            relative_at_saved={f"{share:g}": curve.at_saved(share) for share in SAVED},
            area_above={b: area for (a, b), area in areas.items() if a == name},
        )
        for name, curve in relative.items()
    }


def _undominated(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """The points that are not dominated, cheapest first."""
    best: list[OperatingPoint] = []
    for point in sorted(points, key=lambda point: (point.average_exit_layer, -point.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best
