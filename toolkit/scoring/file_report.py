"""Report on the predictions for a file: exit layers; with labels, the score and the wrong rows; flips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.runtime.bundle import ModelInfo
from berxit.runtime.chance import check_labels
from berxit.runtime.errors import InputError
from berxit.runtime.metrics import confusion_matrix, metric_named
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table, plural
from berxit.runtime.tokenization import Text
from berxit.toolkit.row_tables import MATRIX_CLASSES, confusion_table, shortened
from berxit.toolkit.scoring.inputs import InputFile, has_label
from berxit.toolkit.scoring.outputs import Outputs

FIRST = 20
"""Number of rows whose predictions the screen shows if there is no output file."""
ON_SCREEN, IN_REPORT = 10, 100
"""Largest numbers of wrong rows, and of flips, that are listed on the screen and in the report's files."""


@dataclass(frozen=True)
class ListedRow:
    """One row with its text and its predictions."""

    line: int
    text: tuple[str, ...]
    """The text, or both texts of a pair."""
    prediction: str | float
    exit_layer: int
    certainty: float
    label: str | float | None
    """The true label; None if the row has none."""
    full_depth: str | float | None
    """The prediction at full depth; None if full depth did not run."""


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class; 0 if they are not defined."""

    name: str
    rows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class LabelReport:
    """Predictions against the labels of the file."""

    rows: int
    """Number of rows with a label."""
    metric: str
    score: float | None
    """None if the metric is not defined on these labels."""
    full_depth_score: float | None
    """None if full depth did not run, too."""
    undefined: str
    """Reason why there is no score; empty if there is one."""
    wrong: int
    """Number of wrong rows; for regression, of rows that differ from the label at all."""
    mean_absolute_error: float | None
    """Regression only."""
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Number of rows of each label with each prediction: [label][prediction]."""
    wrong_rows: tuple[ListedRow, ...]
    """At most IN_REPORT: those with the highest probability; for regression, with the largest error."""


@dataclass(frozen=True)
class FlipReport:
    """Predictions that differ from those of full depth."""

    flips: int
    mean_absolute_difference: float | None
    """Regression only."""
    rows: tuple[ListedRow, ...]
    """At most IN_REPORT; for regression, those with the largest difference."""


@dataclass(frozen=True)
class FileReport:
    """Summary of the predictions for a file."""

    file: str
    rows: int
    skipped: int
    truncated: int
    """Number of texts that were truncated to the model's maximum length."""
    layers: int
    average_exit_layer: float
    exit_histogram: tuple[int, ...]
    """(n,) number of rows that exit at each layer."""
    predictions: dict[str, int]
    """Class or label name -> number of predictions; empty for regression."""
    first: tuple[ListedRow, ...]
    """The first rows of the file."""
    labels: LabelReport | None
    """None if the file has no labels."""
    flips: FlipReport | None
    """None if full depth did not run."""

    def text(self, most: int = ON_SCREEN) -> str:
        """The report as Markdown. ``most``: largest number of wrong rows, and of flips, that are listed."""
        share = [f"{count / self.rows:.1%}" for count in self.exit_histogram]
        parts = [
            f"{self.file}: {plural(self.rows, 'row')}, average exit layer {self.average_exit_layer:.2f} of"
            f" {self.layers}" + (f", {self.truncated} truncated" if self.truncated else ""),
            markdown_table(["exit layer", *map(str, range(1, self.layers + 1))], [["rows", *share]]),
        ]
        if self.predictions:
            counts = sorted(self.predictions.items(), key=lambda pair: -pair[1])
            parts.append(f"predictions: {', '.join(f'{name} {count}' for name, count in counts[:MATRIX_CLASSES])}")
        if self.labels is not None:
            parts += _label_text(self.labels, tuple(self.predictions), most)
        if self.flips is not None:
            parts += _flip_text(self.flips, self.rows, most)
        return "\n\n".join(parts)

    def table(self) -> str:
        """The first rows of the file, for the screen."""
        more = self.rows - len(self.first)
        return listed_table(self.first) + (f"\n\n{more} more rows: write all with --output FILE.csv" if more else "")

    def write(self, folder: Path) -> list[Path]:
        """Writes predict.json and predict.md. Raises BerxitError if the folder cannot be written."""
        return write_results(folder, "predict", asdict(self), self.text(IN_REPORT))


class Selection(NamedTuple):
    """Row numbers of the rows that a report lists, in its order."""

    first: list[int]
    wrong: list[int]
    flips: list[int]


def select_rows(outputs: Outputs, labels: npt.NDArray | None) -> Selection:
    """The rows whose texts a report needs. ``labels`` (N,) as in InputFile."""
    return Selection(
        list(range(min(FIRST, len(outputs)))),
        [] if labels is None else _largest(_errors(outputs.labels, labels), _weights(outputs), has_label(labels)),
        _largest(_errors(outputs.labels, outputs.full_depth), _weights(outputs)) if len(outputs.full_depth) else [],
    )


def file_report(
    model: ModelInfo, data: InputFile, outputs: Outputs, selection: Selection, texts: Mapping[int, tuple[int, Text]]
) -> FileReport:
    """``texts``: row number -> (line, text), of every selected row."""

    def name(value: float) -> str | float:
        return model.task_kind.shown(value, model.labels)

    def listed(rows: Sequence[int]) -> tuple[ListedRow, ...]:
        known = None if data.labels is None else has_label(data.labels)
        return tuple(
            ListedRow(
                line=texts[row][0],
                text=text if isinstance(text := texts[row][1], tuple) else (text,),
                prediction=name(outputs.labels[row]),
                exit_layer=int(outputs.exit_layers[row]),
                certainty=float(outputs.certainty[row]),
                label=name(data.labels[row]) if known is not None and data.labels is not None and known[row] else None,
                full_depth=name(outputs.full_depth[row]) if len(outputs.full_depth) else None,
            )
            for row in rows
        )

    counted = [] if model.regression else model.task_kind.counts(outputs.labels, outputs.labels, model.labels)
    flips = None
    if len(outputs.full_depth):
        differs = _errors(outputs.labels, outputs.full_depth)
        flips = FlipReport(
            int(np.count_nonzero(differs)), float(differs.mean()) if model.regression else None, listed(selection.flips)
        )
    return FileReport(
        file=data.path.name,
        rows=len(outputs),
        skipped=len(data.skipped),
        truncated=int(np.count_nonzero(outputs.truncated)),
        layers=model.layers,
        average_exit_layer=float(outputs.exit_layers.mean()),
        exit_histogram=tuple(np.bincount(outputs.exit_layers, minlength=model.layers + 1)[1:].tolist()),
        predictions={each.name: each.predicted for each in counted},
        first=listed(selection.first),
        labels=None if data.labels is None else _label_report(model, data.labels, outputs, listed(selection.wrong)),
        flips=flips,
    )


def _label_report(
    model: ModelInfo, labels: npt.NDArray, outputs: Outputs, wrong_rows: tuple[ListedRow, ...]
) -> LabelReport:
    known = has_label(labels)
    true, predicted = labels[known], outputs.labels[known]
    metric, undefined = metric_named(model.metric), ""
    try:
        check_labels(model.metric, true, "")
    except InputError as error:
        undefined = str(error).removeprefix(": ").partition(". ")[0]
    errors = _errors(predicted, true)
    confusion = None
    if model.kind == "classification":
        confusion = confusion_matrix(predicted, true, len(model.labels))
    full = outputs.full_depth[known] if len(outputs.full_depth) else None
    return LabelReport(
        rows=len(true),
        metric=model.metric if model.positive is None else f"{model.metric} of '{model.positive}'",
        score=None if undefined else metric(predicted, true),
        full_depth_score=None if undefined or full is None else metric(full, true),
        undefined=undefined,
        wrong=int(np.count_nonzero(errors)),
        mean_absolute_error=float(errors.mean()) if model.regression else None,
        classes=() if model.regression else _class_scores(model, predicted, true),
        confusion=() if confusion is None else tuple(map(tuple, confusion.tolist())),
        wrong_rows=wrong_rows,
    )


def _class_scores(model: ModelInfo, predicted: npt.NDArray, true: npt.NDArray) -> tuple[ClassScore, ...]:
    def ratio(above: int, below: int) -> float:
        return above / below if below else 0.0

    return tuple(
        ClassScore(
            each.name,
            each.rows,
            ratio(each.right, each.predicted),
            ratio(each.right, each.rows),
            ratio(2 * each.right, each.rows + each.predicted),
        )
        for each in model.task_kind.counts(predicted, true, model.labels)
    )


def _errors(predictions: npt.NDArray, labels: npt.NDArray) -> npt.NDArray[np.float64]:
    """(N,) distance between two values; for class numbers, 1 if they differ. NaN for a value without a label."""
    if predictions.dtype.kind == "f":
        return np.abs(predictions - labels)
    return (predictions != labels).astype(np.float64)


def _weights(outputs: Outputs) -> npt.NDArray[np.float64]:
    """(N,) order among rows with equal errors: the probability of the prediction; for regression none."""
    found: npt.NDArray[np.float64] = (
        outputs.scores.max(axis=1) if outputs.scores.shape[1] else np.zeros(len(outputs), dtype=np.float64)
    )
    return found


def _largest(errors: npt.NDArray, weights: npt.NDArray, known: npt.NDArray[np.bool_] | None = None) -> list[int]:
    """Numbers of the rows with the largest errors above 0, and among equal errors with the largest weight."""
    rows = np.flatnonzero((errors > 0) if known is None else (errors > 0) & known)
    order = np.lexsort((rows, -weights[rows], -errors[rows]))
    return rows[order][:IN_REPORT].tolist()


def listed_table(rows: Sequence[ListedRow]) -> str:
    """Table of rows; columns without any value are omitted."""
    labels, full = (any(getattr(row, name) is not None for row in rows) for name in ("label", "full_depth"))
    header = ["line", "text", "prediction", "certainty", "exit layer"]
    header += ["label"] * labels + ["full depth"] * full
    table = [
        [
            str(row.line),
            " / ".join(map(shortened, row.text)),
            _value(row.prediction),
            f"{row.certainty:.4f}",
            row.exit_layer,
            *([_value(row.label)] if labels else []),
            *([_value(row.full_depth)] if full else []),
        ]
        for row in rows
    ]
    return markdown_table(header, table)


def _value(value: str | float | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def _label_text(found: LabelReport, names: Sequence[str], most: int) -> list[str]:
    if found.score is None:
        score = found.undefined
    else:
        full = f", {found.full_depth_score:.4f} at full depth" if found.full_depth_score is not None else ""
        score = f"{found.metric} {found.score:.4f}{full}"
    error = f", mean absolute error {found.mean_absolute_error:.4g}" if found.mean_absolute_error is not None else ""
    parts = [f"{score}{error}, on {plural(found.rows, 'labelled row')}"]
    if found.classes:
        rows = [[c.name, c.rows, f"{c.precision:.4f}", f"{c.recall:.4f}", f"{c.f1:.4f}"] for c in found.classes]
        parts.append(markdown_table(["class", "rows", "precision", "recall", "F1"], rows))
        parts += confusion_table(found.confusion, names) if found.confusion else []
    if found.wrong_rows:
        kind = "most certain wrong rows" if found.classes else "rows with the largest errors"
        shown = found.wrong_rows[:most]
        parts.append(f"{kind}, {len(shown)} of {found.wrong}:\n\n{listed_table(shown)}")
    return parts


def _flip_text(found: FlipReport, rows: int, most: int) -> list[str]:
    mean = found.mean_absolute_difference
    what = f"flips (predictions that differ from full depth): {found.flips} of {rows} ({found.flips / rows:.2%})"
    if mean is not None:
        what = f"mean absolute difference from full depth: {mean:.4g}"
    shown = found.rows[:most]
    return [what + (f"\n\n{listed_table(shown)}" if shown else "")]
