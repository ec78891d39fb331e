"""The files of berxit-eval."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from berxit.runtime.results import write_results
from berxit.toolkit.evaluation_report import Evaluation
from berxit.train.evaluation import Predictions


def write_evaluation(evaluation: Evaluation, predictions: Predictions, folder: Path) -> list[Path]:
    """Writes predictions.npz, eval.json, eval.md and, if matplotlib is installed, eval.png."""

    def draw(path: Path) -> None:
        from berxit.toolkit.figures import evaluation_figure  # matplotlib is optional

        evaluation_figure(evaluation, path)

    arrays = {"predictions.npz": predictions.save}
    return write_results(folder, "eval", asdict(evaluation), evaluation.text(), figure=draw, more=arrays)
