"""Report of berxit-eval: the score of every exit, and the trade-off curve of every exit criterion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from berxit.runtime.heads import heads_of
from berxit.runtime.kinds import from_bits
from berxit.runtime.metrics import METRICS, average_precision, scores_of_heads
from berxit.runtime.policies import ExitPolicy, adaptive_criterion_from
from berxit.runtime.reliability import CertaintyQuality
from berxit.runtime.tables import Table, markdown_table
from berxit.runtime.tokenization import Text
from berxit.toolkit.policy_report import policy_text, wrong_text
from berxit.train.chance_warnings import depth_warning, exits_warning
from berxit.train.curves import SAVED, Curve, area_above, curve_of
from berxit.train.diagnostics import PolicyDiagnostics, WrongRows, criterion_quality, policy_diagnostics, wrong_rows
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
    """Further scores, such as the second one that GLUE reports for the task: name -> (n,)."""
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
    """The calibrated policy, or full depth without one; None for regression."""
    calibrated: bool = False
    """True if the checkpoint has a calibrated policy."""
    wrong_rows: WrongRows | None = None
    """Wrong rows under the policy, with their texts; None if the texts are not known."""
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
            parts += policy_text(self.policy, calibrated=self.calibrated)
        if self.wrong_rows is not None:
            wrong = self.wrong_rows
            parts += wrong_text(wrong.rows, wrong.count, self.examples, regression=self.regression)
        if self.summaries:
            parts.append(
                "oracle curves (every threshold is applied to the reported rows): relative score at equal saved layers;"
                " area of one curve above another, in percent x layers"
            )
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


def evaluate(
    predictions: Predictions,
    criterion: str | None = None,
    policy: ExitPolicy | None = None,
    texts: Sequence[Text] = (),
) -> Evaluation:
    """The evaluation of one stored pass. ``policy``: the calibrated policy, if there is one. ``texts`` (N,) of the
    examples; without them, the evaluation lists no rows.

    Raises InputError for a ``criterion`` that does not apply to this model or has no thresholds, and as
    ``Predictions.check`` does.
    """
    predictions.check()
    criterion = adaptive_criterion_from(criterion or predictions.default_criterion)
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
    under = policy or ExitPolicy.full_depth(int(predictions.exit_layers[-1]), predictions.regression)
    return Evaluation(
        metric=predictions.metric,
        examples=len(predictions.labels),
        layer_scores=tuple(scores),
        also={name: tuple(layer_scores(predictions, name)) for name in also}
        | _average_precision(predictions)
        | _scores_per_head(predictions),
        criterion=criterion,
        curves={name: tuple(found) for name, found in points.items()},
        summaries=_summaries(curves, scores[-1]) if scores[-1] > 0 and depth is None else {},
        constant_score=constant.score,
        constant_prediction=predictions.text(constant.prediction),
        quality={name: criterion_quality(predictions, name) for name in names},
        policy=None if predictions.regression else policy_diagnostics(predictions, under, texts),
        calibrated=policy is not None,
        wrong_rows=wrong_rows(predictions, under, texts) if len(texts) else None,
        positive=predictions.positive,
        warnings=tuple(filter(None, (depth, exits))),
    )


def _average_precision(predictions: Predictions) -> dict[str, tuple[float, ...]]:
    """The mean average precision of the labels at each exit; empty unless the model is multilabel."""
    if predictions.kind != "multilabel":
        return {}
    scores = predictions.logits[..., 1] - predictions.logits[..., 0]
    truth = from_bits(predictions.labels, len(predictions.names))
    return {"average precision": tuple(average_precision(scores[:, exit_], truth) for exit_ in range(scores.shape[1]))}


def _scores_per_head(predictions: Predictions) -> dict[str, tuple[float, ...]]:
    """The score of each named head at each exit; empty unless the kind is heads."""
    if predictions.kind != "heads":
        return {}
    metric = predictions.metric.removeprefix("heads-")
    metric = metric if metric in METRICS else "accuracy"
    found = scores_of_heads(METRICS[metric].scores, predictions.predicted().T, predictions.labels)
    heads = zip(heads_of(predictions.names), found.tolist(), strict=True)
    return {f"{metric} of {head.name}": tuple(scores) for head, scores in heads}


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
