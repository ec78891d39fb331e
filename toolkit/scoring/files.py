"""Predictions for all rows of a file. An interrupted run resumes, and its output is written as a whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from berxit.runtime.bundle import ModelInfo, sha256
from berxit.runtime.data_files import repeated_column
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import to_json
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Progress, silent
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.storage import replacing
from berxit.runtime.tokenization import Text
from berxit.toolkit.scoring.file_report import FileReport, file_report, select_rows
from berxit.toolkit.scoring.inputs import InputFile, InputRow, row_spans
from berxit.toolkit.scoring.outputs import (
    EXIT_LAYER,
    PREDICTION,
    TRUNCATED,
    Outputs,
    column_names,
    head_columns,
    refuse_collisions,
)
from berxit.toolkit.scoring.resuming import Parts
from berxit.toolkit.scoring.writers import Write, check_output, open_writer

PART_ROWS = 1024
"""Rows per part: the largest number of predictions that an interruption loses."""


@dataclass(frozen=True)
class FilePredictions:
    """Predictions for a file of N rows."""

    outputs: Outputs
    report: FileReport
    resumed: int
    """Number of rows whose predictions are those of an interrupted run."""


def predict_file(
    runner: EarlyExitRunner,
    data: InputFile,
    output: Path | None,
    *,
    policy: ExitPolicy,
    flips: bool = False,
    scores: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> FilePredictions:
    """Predicts every row of ``data`` and writes ``output``: the columns of the file, then the predictions.

    ``policy``: the exit policy. ``flips``: run all rows to full depth, too. ``scores``: write the probability of each
    class. ``force``: replace an existing output. Without ``output``, nothing is written.

    Raises InputError for an output that exists or cannot be written, or an interrupted run with other options, and
    BerxitError for a failure of the backend.
    """
    model = runner.manifest.model
    if output is not None:
        check_output(output, force=force)
        refuse_collisions(data.columns, column_names(model, scores=scores), str(data.path))
        if (twice := repeated_column(data.path)) is not None:
            raise InputError(
                f"{data.path}: the header has column '{twice}' twice, and the output would contain one of them. Rename"
                " or delete the other"
            )
    content = sha256(data.path)
    with _parts(output, _key(runner, data, content, policy, flips), force) as parts:
        resumed = _predict_parts(runner, data, parts, policy, flips, progress)
        if sha256(data.path) != content:
            raise BerxitError(f"{data.path} changed while it was read: rerun the command")
        outputs = Outputs.join([parts.load(number) for number in range(-(-data.rows // PART_ROWS))])
        selection = select_rows(outputs, data.labels)
        chosen = set().union(*selection)
        texts: dict[int, tuple[int, Text]] = {}
        with _writer(output, data, model, scores=scores) as write:
            for start, rows in _batches(data):
                write(_with_predictions(rows, outputs.rows(start, start + len(rows)).columns(model, scores=scores)))
                texts.update({n: (row.line, row.text) for n, row in enumerate(rows, start) if n in chosen})
    return FilePredictions(outputs, file_report(model, data, outputs, selection, texts), resumed)


def _predict_parts(
    runner: EarlyExitRunner, data: InputFile, parts: Parts, policy: ExitPolicy, flips: bool, progress: Progress
) -> int:
    """Predicts the parts that are not finished. Returns the number of rows that were."""
    model, resumed = runner.manifest.model, 0
    labelled_spans = model.task_kind.words and data.labels is not None
    with progress(data.rows) as bar:
        for start, rows in _batches(data):
            number = start // PART_ROWS
            if parts.finished(number):
                resumed += len(rows)
            else:
                texts = [row.text for row in rows]
                full = runner.answer(texts, policy.at_depth(model.layers)) if flips else []
                truth = [row_spans(row, data.label_column, model, "") for row in rows] if labelled_spans else []
                parts.save(number, Outputs.of(runner.answer(texts, policy), model, full, truth))
            bar.update(len(rows))
    return resumed


def _batches(data: InputFile) -> Iterator[tuple[int, list[InputRow]]]:
    """(number of the first row, rows) of each part."""
    rows, start = data.read(), 0
    while batch := list(islice(rows, PART_ROWS)):
        yield start, batch
        start += len(batch)


def _key(runner: EarlyExitRunner, data: InputFile, content: str, policy: ExitPolicy, flips: bool) -> dict[str, Any]:
    """Everything on which the stored predictions depend, as JSON."""
    return {
        "bundle": runner.manifest.digest,
        "data": content,
        "--text-column": list(data.text_columns),
        "--skip-bad-rows": bool(data.skipped),
        "policy": to_json(policy),
        "--flips": flips,
        "--backend": runner.backend.label,
        "part": PART_ROWS,
    }


@contextmanager
def _parts(output: Path | None, key: dict[str, Any], force: bool) -> Iterator[Parts]:
    """Parts beside the output; without an output in a temporary folder."""
    if output is not None:
        with Parts.of(output, key, force) as parts:
            yield parts
    else:
        with tempfile.TemporaryDirectory() as folder, Parts.of(Path(folder) / "output", key, force) as parts:
            yield parts


@contextmanager
def _writer(output: Path | None, data: InputFile, model: ModelInfo, *, scores: bool) -> Iterator[Write]:
    """Writer of the output file, which appears as a whole; without an output it ignores the rows."""
    if output is None:
        yield lambda rows: None
        return
    names = column_names(model, scores=scores)
    added: dict[str, type] = dict.fromkeys(names, float)
    added |= {PREDICTION: float if model.regression else str, EXIT_LAYER: int, TRUNCATED: bool}
    added |= dict.fromkeys(head_columns(model), str)
    try:
        with replacing(output) as scratch, open_writer(scratch, [*data.columns, *names], data.path, added) as write:
            yield write
    except OSError as error:
        raise BerxitError(f"cannot write {output}: {error.strerror}. Free space, or choose another --output") from error


def _with_predictions(rows: Sequence[InputRow], columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The records of ``rows``, each with its value of every column."""
    values = zip(*columns.values(), strict=True)
    return [{**row.record, **dict(zip(columns, added, strict=True))} for row, added in zip(rows, values, strict=True)]
