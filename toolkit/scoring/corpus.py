"""Predictions for a corpus on a data engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from berxit.runtime.data_files import WITH_HEADER, read_records
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.progress import Progress, silent
from berxit.runtime.storage import refuse_to_overwrite, write_whole
from berxit.runtime.tables import plural
from berxit.toolkit.scoring.batch_scorer import PROBLEM, BatchScorer
from berxit.toolkit.scoring.engines import ENGINES, Job, corpus_files
from berxit.toolkit.scoring.outputs import EXIT_LAYER


@dataclass(frozen=True)
class CorpusPredictions:
    """Predictions for a corpus of N rows."""

    output: Path
    """Folder of Parquet files."""
    rows: int
    problems: int
    """Number of rows without a prediction."""
    average_exit_layer: float | None
    """None if no row has a prediction."""
    layers: int


def score_corpus(
    scorer: BatchScorer,
    corpus: Path,
    output: Path,
    *,
    engine: str,
    workers: int,
    address: str | None = None,
    force: bool = False,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> CorpusPredictions:
    """Scores all rows of a corpus and writes the folder ``output`` as a whole.

    Raises InputError for a corpus or an output that cannot be used, ModuleNotFoundError if the engine's package is not
    installed, and BerxitError for a failure of the engine, or if the output has not as many rows as the corpus.
    """
    refuse_to_overwrite(output, force)
    files = corpus_files(corpus)
    check_columns(files, scorer.text_columns)  # an engine reports a missing column only after its start
    runs = ENGINES[engine]
    import_module(runs.package)  # a missing package is an error before any line about a start
    if address is None:
        report(f"starting {engine} with {plural(workers, 'worker')}")
    with write_whole(output, force=force) as scratch:
        rows = runs.score(Job(scorer, files, scratch, workers, address, progress))
        found = _summary(scorer, scratch, output, rows)
    return found


def check_columns(files: Sequence[Path], columns: Sequence[str]) -> None:
    """Raises InputError if a header has not all ``columns``, or if no row of any JSONL file has them."""
    for file in files:
        try:
            next(read_records(file, columns, skipped=[]))
        except InputError:
            if file.suffix.lower() in WITH_HEADER or file == files[-1]:
                raise
        else:
            break


def _summary(scorer: BatchScorer, folder: Path, output: Path, rows: int) -> CorpusPredictions:
    """Counts the rows of the written files. Raises BerxitError unless there are ``rows``."""
    from pyarrow import compute, dataset

    written = problems = layers = 0
    for batch in dataset.dataset(sorted(folder.glob("*.parquet")), format="parquet").to_batches(
        columns=[PROBLEM, EXIT_LAYER]
    ):
        written += batch.num_rows
        problems += batch.num_rows - batch.column(PROBLEM).null_count
        layers += compute.sum(batch.column(EXIT_LAYER)).as_py() or 0
    if written != rows:
        raise BerxitError(f"{written} rows were written for {rows} rows of input: nothing is kept. Rerun the command")
    predicted = rows - problems
    average = layers / predicted if predicted else None
    return CorpusPredictions(output, rows, problems, average, scorer.model.layers)
