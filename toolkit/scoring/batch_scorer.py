"""The adapter between a bundle and a data engine: a batch of rows in, the same rows with predictions out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berxit.runtime.bundle import read_manifest_for
from berxit.runtime.errors import InputError
from berxit.runtime.examples import text_of
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tables import listed
from berxit.runtime.tokenization import Text
from berxit.toolkit.scoring.inputs import input_columns
from berxit.toolkit.scoring.outputs import (
    EXIT_LAYER,
    PREDICTION,
    TRUNCATED,
    Outputs,
    column_names,
    head_columns,
    refuse_collisions,
)

if TYPE_CHECKING:
    import pyarrow

PROBLEM = "problem"
"""Column with the reason why a row has no prediction; null for all others."""


class BatchScorer:
    """Adds predictions to batches of rows. Each worker process of a data engine loads the bundle once.

    Ray Data: ``dataset.map_batches(scorer, batch_format="pyarrow", batch_size=1024)``, or with the class and its
    arguments and one actor per worker. Spark: ``frame.mapInArrow(scorer.partition, schema)``.

    Every row of the input is one row of the output, with the columns of the input, then prediction, exit_layer,
    certainty, truncated, problem, and with ``scores`` the probability of each class. A row without a text has no
    prediction, and its problem is stated. The runner sorts a batch by length and splits it by tokens, so that
    padding is small; the batches of an engine should therefore have some thousand rows.
    """

    def __init__(
        self,
        bundle: Path | str,
        *,
        text_columns: Sequence[str] = (),
        threshold: float | None = None,
        scores: bool = True,
        backend: str | None = None,
        threads: int = 1,
    ) -> None:
        """Reads the manifest only. The path of the ``bundle`` must be valid on every worker.

        ``text_columns``: by default those of the training data. ``threads``: CPU threads of each worker process.
        Raises InputError for a wrong number of columns, a threshold out of range or a user's own criterion, BerxitError
        for a bundle that cannot be read.
        """
        self.bundle = Path(bundle).absolute()
        manifest = read_manifest_for("a worker of a data engine", self.bundle, verify=False)
        self.model = manifest.model
        if threshold is not None:
            manifest.policy.with_threshold(threshold)
        self.text_columns = input_columns(self.model, text_columns)
        self.threshold = threshold
        self.scores = scores
        self._load = (str(self.bundle), backend, threads)

    def schema(self, columns: pyarrow.Schema) -> pyarrow.Schema:
        """Schema of the output for an input with ``columns``.

        Raises InputError if a text column is missing or no text, or if a column has the name of an added one.
        """
        import pyarrow

        self.check_columns(columns.names)
        for name in self.text_columns:
            kind = columns.field(name).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise InputError(f"column '{name}' has the type {kind}: convert it to string")
        for field in self._added():
            columns = columns.append(field)
        return columns

    def check_columns(self, names: Iterable[str]) -> None:
        """Raises InputError if a text column is missing, or a column has the name of an added one."""
        names = list(names)
        if missing := [name for name in self.text_columns if name not in names]:
            raise InputError(f"the input has no column '{missing[0]}'. Columns: {listed(names)}")
        refuse_collisions(names, [*column_names(self.model, scores=self.scores), PROBLEM], "the input")

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """The rows of ``table`` with their predictions, in the same order. Raises BerxitError for a failure."""
        schema = self.schema(table.schema)
        for name, column in self._predictions(table).items():
            table = table.append_column(schema.field(name), column)
        return table

    def partition(self, batches: Iterator[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        """The batches of a partition with their predictions, for Spark's ``mapInArrow``."""
        import pyarrow

        for batch in batches:
            yield from self(pyarrow.Table.from_batches([batch])).to_batches()

    def _added(self) -> list[pyarrow.Field]:
        import pyarrow

        kinds = {
            PREDICTION: pyarrow.float64() if self.model.regression else pyarrow.string(),
            EXIT_LAYER: pyarrow.int32(),
            TRUNCATED: pyarrow.bool_(),
            **dict.fromkeys(head_columns(self.model), pyarrow.string()),
        }
        names = column_names(self.model, scores=self.scores)
        return [
            *(pyarrow.field(name, kinds.get(name, pyarrow.float64())) for name in names),
            pyarrow.field(PROBLEM, pyarrow.string()),
        ]

    def _predictions(self, table: pyarrow.Table) -> dict[str, pyarrow.Array]:
        """Added column -> its values, null for a row without a text."""
        import pyarrow

        columns = [table.column(name).to_pylist() for name in self.text_columns]
        texts: list[Text] = []
        problems: list[str | None] = []
        for values in zip(*columns, strict=True):
            row = dict(zip(self.text_columns, (value or "" for value in values), strict=True))
            try:
                texts.append(text_of(row, self.text_columns, "row"))
                problems.append(None)
            except InputError as error:
                problems.append(str(error).removeprefix("row: "))
        valid = [place for place, problem in enumerate(problems) if problem is None]
        found: dict[str, list[Any]] = {field.name: [None] * len(problems) for field in self._added()}
        found[PROBLEM] = problems
        if texts:
            runner = loaded_runner(*self._load)
            outputs = Outputs.of(runner.predict_batch(texts, threshold=self.threshold), self.model)
            for name, column in outputs.columns(self.model, scores=self.scores).items():
                for place, value in zip(valid, column, strict=True):
                    found[name][place] = value
        return {field.name: pyarrow.array(found[field.name], field.type) for field in self._added()}


@lru_cache(maxsize=1)
def loaded_runner(bundle: str, backend: str | None, threads: int) -> EarlyExitRunner:
    """The runner of this process. A worker of an engine calls this for every batch, and loads the bundle once."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tokenizers would start a thread per core in every worker
    return EarlyExitRunner.load(bundle, backend=backend, threads=threads)
