"""Data engines that score a corpus with worker processes. A new engine is one function, and one entry in ENGINES."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from berxit.runtime.errors import BerxitError, InputError, first_line
from berxit.runtime.progress import Progress, silent
from berxit.toolkit.scoring.batch_scorer import BatchScorer
from berxit.toolkit.scoring.watching import watched

BATCH_ROWS = 2048
"""Rows per call of the scorer, which splits them by tokens. On Ray, the rows of a killed worker's call are repeated."""
PARTITIONS_PER_WORKER = 16
"""Spark: a large corpus has at least so many partitions per worker. A killed worker's partition is repeated."""
RETRIES = 4
"""Number of attempts of a task on a local Spark, as on a Spark cluster. Its own default is one."""


@dataclass(frozen=True)
class Job:
    """A corpus, its scorer and its output."""

    scorer: BatchScorer
    files: tuple[Path, ...]
    """Files of one format."""
    output: Path
    """An existing empty folder; the engine writes Parquet files to it."""
    workers: int
    address: str | None
    """The cluster; None starts the engine on this machine."""
    progress: Progress = silent

    @property
    def suffix(self) -> str:
        return self.files[0].suffix.lower()

    @property
    def paths(self) -> list[str]:
        return [str(path.absolute()) for path in self.files]


SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
"""Formats that every engine reads in parts. A JSON array is one part, so it is not among them."""


@dataclass(frozen=True)
class Engine:
    """A data engine."""

    package: str
    """Package that it needs, which is imported before the command reports that the engine starts."""
    score: Callable[[Job], int]
    """Scores a corpus. Returns the number of input rows. Raises BerxitError for a failure of the engine."""


def corpus_files(corpus: Path) -> tuple[Path, ...]:
    """The files of a corpus: a file, or all data files in a folder. Raises InputError if there is none, if their
    formats differ, or if one is empty, which an engine reports only after minutes."""
    if not corpus.exists():
        raise InputError(f"no corpus at {corpus}: give a file or a folder of {', '.join(SUFFIXES)} files")
    paths = [corpus] if corpus.is_file() else sorted(path for path in corpus.iterdir() if path.is_file())
    files = tuple(path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith((".", "_")))
    if not files:
        raise InputError(f"{corpus} has no {', '.join(SUFFIXES)} file: give such a file, or a folder of them")
    if len(formats := {path.suffix.lower() for path in files}) > 1:
        raise InputError(f"{corpus} has files of several formats ({', '.join(sorted(formats))}): give one of them")
    if empty := [path for path in files if not path.stat().st_size]:
        raise InputError(f"{empty[0]} is an empty file: delete it, or add a header and rows")
    return files


def score_with_ray(job: Job) -> int:
    """Ray Data: one actor per worker, each with one CPU."""
    import ray

    with ray_session(job), one_line_errors_of("Ray"):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # `watched` shows the same progress for every engine
        dataset = ray_dataset(job)
        job.scorer.check_columns(dataset.columns())
        rows: int = dataset.count()
        # A block is the unit of work. A file with one row group is one block, which one worker would predict alone.
        block = max(1, -(-rows // equal_parts(rows, job.workers)))
        scored = dataset.repartition(target_num_rows_per_block=block).map_batches(
            _actor_class(job.scorer),
            batch_size=None,  # a block
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=job.workers),
            num_cpus=1,
        )
        with watched(job.output, rows, job.progress):
            scored.write_parquet(str(job.output))
        return rows


def equal_parts(rows: int, workers: int) -> int:
    """Number of parts of at most BATCH_ROWS rows. It is a multiple of the workers, because with 7 parts and 2 workers,
    one worker would have a third more rows than the other."""
    return workers * max(1, -(-rows // (workers * BATCH_ROWS)))


def _actor_class(scorer: BatchScorer) -> type:
    """A class without arguments, because Ray constructs an actor again after its process was killed."""

    class Scorer:
        def __call__(self, table: Any) -> Any:
            return scorer(table)

    return Scorer


@contextmanager
def ray_session(job: Job) -> Iterator[None]:
    """Connects to Ray, or starts it on this machine with one CPU per worker and one for reading and writing."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    import ray

    if ray.is_initialized():
        raise InputError("this process uses Ray: call shutdown() first, or use BatchScorer in your own pipeline")
    options: dict[str, Any] = {"address": job.address}
    if job.address is None:
        options = {"address": "local", "num_cpus": job.workers + 1, "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise BerxitError(f"cannot connect to Ray at {job.address or 'this machine'}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def ray_dataset(job: Job) -> Any:
    """The corpus as a ray.data.Dataset."""
    import pyarrow
    import ray
    from pyarrow import csv

    if job.suffix == ".parquet":
        return ray.data.read_parquet(job.paths)
    if job.suffix == ".jsonl":
        return ray.data.read_json(job.paths, lines=True, file_extensions=None)
    tsv = job.suffix == ".tsv"
    return ray.data.read_csv(
        job.paths,
        parse_options=csv.ParseOptions(
            delimiter="\t" if tsv else ",", quote_char=False if tsv else '"', newlines_in_values=not tsv
        ),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(job.scorer.text_columns, pyarrow.string()), strings_can_be_null=False
        ),
        file_extensions=None,
    )


def score_with_spark(job: Job) -> int:
    """Spark: ``mapInArrow``, one Python worker process per core."""
    warnings.filterwarnings("ignore", module="pyspark")
    with one_line_errors_of("Spark"), spark_session(job) as session:
        from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

        frame = spark_frame(job, session)
        schema = from_arrow_schema(job.scorer.schema(to_arrow_schema(frame.schema)))
        rows: int = frame.count()
        least = min(job.workers * PARTITIONS_PER_WORKER, equal_parts(rows, job.workers))
        if frame.rdd.getNumPartitions() < least:
            frame = frame.repartition(least)
        scored = frame.mapInArrow(job.scorer.partition, schema)
        with watched(job.output, rows, job.progress):
            scored.write.mode("append").parquet(str(job.output.absolute()))
        return rows


@contextmanager
def spark_session(job: Job) -> Iterator[Any]:
    """Connects to Spark, or starts it on this machine with one core per worker."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if job.address is None:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    settings = {
        "spark.sql.execution.arrow.maxRecordsPerBatch": BATCH_ROWS,
        "spark.log.level": "ERROR",
        "spark.ui.showConsoleProgress": False,
    }
    if job.address is None:
        settings["spark.ui.enabled"] = False
    builder = SparkSession.builder.appName("berxit score")
    builder = builder.master(job.address or f"local[{job.workers},{RETRIES}]")
    for name, value in settings.items():
        builder = builder.config(name, str(value).lower() if isinstance(value, bool) else value)
    session = builder.getOrCreate()
    try:
        yield session
    finally:
        session.stop()


def spark_frame(job: Job, session: Any) -> Any:
    """The corpus as a Spark data frame. Values of CSV and TSV are text."""
    if job.suffix == ".parquet":
        return session.read.parquet(*job.paths)
    if job.suffix == ".jsonl":
        return session.read.json(job.paths)
    quote = {"sep": "\t", "quote": "", "escape": ""} if job.suffix == ".tsv" else {"escape": '"', "multiLine": True}
    return session.read.csv(job.paths, header=True, **quote)


@contextmanager
def one_line_errors_of(engine: str) -> Iterator[None]:
    """Converts an exception of an engine. The message of a BerxitError in a worker is part of the engine's message."""
    try:
        yield
    except (BerxitError, ModuleNotFoundError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        ours = [line.partition("Error: ")[2] for line in lines if line.startswith("berxit.") and "Error: " in line]
        if ours:
            raise BerxitError(ours[-1]) from error
        raise BerxitError(f"{engine} failed: {first_line(error)}. Rerun with --debug to see more") from error


ENGINES = {"ray": Engine("ray", score_with_ray), "spark": Engine("pyspark", score_with_spark)}
"""Name -> engine."""
