"""What berxit-eval shows: the score of every exit, and the trade-off curve of a criterion."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from runtime.errors import BerxitError
from runtime.json_data import write_json
from runtime.tables import markdown_table
from train.evaluation import (
    OperatingPoint,
    Predictions,
    candidate_thresholds,
    default_criterion,
    layer_scores,
    trade_off,
)


@dataclass(frozen=True)
class Evaluation:
    """eval.json"""

    metric: str
    examples: int
    layer_scores: tuple[float, ...]
    """(n,) the score when every example leaves at that layer."""
    criterion: str
    curve: tuple[OperatingPoint, ...]
    """Some 200 thresholds, from always to never stopping."""

    def text(self) -> str:
        """Both tables, as Markdown."""
        full = self.layer_scores[-1]
        layers = [
            [str(layer), f"{score:.4f}", _relative(score, full)]
            for layer, score in enumerate(self.layer_scores, start=1)
        ]
        points = [
            [
                f"{point.threshold:.4g}",
                f"{point.average_exit_layer:.2f}",
                f"{point.saved_layers:.0%}",
                f"{point.score:.4f}",
                _relative(point.score, full),
            ]
            for point in self.spread(10)
        ]
        return "\n\n".join(
            [
                f"{self.metric} on {self.examples} examples; relative to the last exit",
                markdown_table(["exit layer", self.metric, "relative"], layers),
                markdown_table(
                    [f"{self.criterion} threshold", "average exit layer", "saved layers", self.metric, "relative"],
                    points,
                ),
            ]
        )

    def spread(self, count: int) -> list[OperatingPoint]:
        """Points of the curve whose average exit layers lie evenly, cheapest first."""
        averages = np.array([point.average_exit_layer for point in self.curve])
        wanted = np.linspace(averages.min(), averages.max(), count)
        chosen = {int(np.abs(averages - want).argmin()) for want in wanted}
        return sorted((self.curve[i] for i in chosen), key=lambda point: point.average_exit_layer)


def evaluate(predictions: Predictions, criterion: str | None = None) -> Evaluation:
    """Everything from one stored pass."""
    criterion = criterion or default_criterion(predictions)
    curve = trade_off(predictions, criterion, candidate_thresholds(predictions, criterion))
    return Evaluation(
        predictions.metric, len(predictions.labels), tuple(layer_scores(predictions)), criterion, tuple(curve)
    )


def write_evaluation(evaluation: Evaluation, predictions: Predictions, folder: Path) -> list[Path]:
    """predictions.npz, eval.json, eval.md and, where matplotlib is installed, eval.png."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / name for name in ("predictions.npz", "eval.json", "eval.md")]
        predictions.save(files[0])
        write_json(asdict(evaluation), files[1])
        files[2].write_text(evaluation.text() + "\n", encoding="utf-8")
    except OSError as error:
        raise BerxitError(f"cannot write results to {folder}: {error.strerror}. Choose another --output") from error
    try:
        from toolkit.figures import evaluation_figure

        files.append(evaluation_figure(evaluation, folder / "eval.png"))
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
    return files


def _relative(score: float, full: float) -> str:
    return f"{score / full:.1%}" if full > 0 else "-"
