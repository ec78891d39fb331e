"""Throughput of data engines against independent runners, and the output after a worker was killed.

    python benchmarks/corpus.py BUNDLE --data FILE --rows 100000 --rounds 3 --output corpus     # throughput
    python benchmarks/corpus.py BUNDLE --data FILE --rows 100000 --kill --output corpus-kill    # killed workers

The corpus repeats the texts of FILE, each row with its own id.

- Throughput: `independent` starts as many processes as workers. Each loads the bundle with one thread and predicts its
  share of the rows with `predict_batch`. The engines run `berxit score`. The contenders are interleaved in every round.
  The time of a corpus of as many rows as workers, measured in the same round, is subtracted: it is the time to start
  the engine and to load the bundle. CPU time is that of all processes of a contender.
- With `--kill`, a worker process is killed with SIGKILL when half of the rows are predicted. The output must then
  contain every id exactly once, with the predictions of a runner.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import psutil
import pyarrow
from pyarrow import dataset, parquet

from berxit import devices
from berxit.runtime import EarlyExitRunner
from berxit.runtime.bundle import read_manifest
from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.examples import find_split, read_examples_for
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH
from berxit.toolkit.scoring.batch_scorer import BatchScorer
from berxit.toolkit.scoring.corpus import score_corpus
from berxit.toolkit.scoring.engines import BATCH_ROWS, ENGINES

INDEPENDENT = "independent"
POLL_S = 0.1
ID = "id"


@dataclass(frozen=True)
class Timing:
    """One run of one contender on the whole corpus, without the time of a corpus of a few rows."""

    contender: str
    seconds: float
    cpu_seconds: float
    start_seconds: float
    """Time of the corpus of a few rows: start of the engine, and load of the bundle."""


@dataclass(frozen=True)
class KillResult:
    """Output of a run in which one worker was killed."""

    engine: str
    killed_after: int
    """Number of rows that were predicted before."""
    processes: int
    """Number of worker processes that predicted rows, with the killed one."""
    rows: int
    distinct_ids: int
    missing: int
    different: int
    """Number of rows whose prediction or exit layer differs from a runner's."""

    @property
    def ok(self) -> bool:
        return self.rows == self.distinct_ids and not self.missing and not self.different


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--data", type=PATH, required=True, help="File with the columns of the bundle.")
@click.option("--rows", default=100_000, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)), default=list(ENGINES))
@click.option("--rounds", default=3, show_default=True)
@click.option("--kill", is_flag=True, help="Kill a worker half-way, and check the output.")
@click.option("--output", type=PATH, required=True)
@debug_option
def command(
    bundle: Path,
    data: Path,
    rows: int,
    workers: int,
    engines: tuple[str, ...],
    rounds: int,
    kill: bool,
    output: Path,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus, few = Path(folder) / "corpus.parquet", Path(folder) / "few.parquet"
        write_corpus(bundle, data, rows, corpus)
        write_corpus(bundle, data, workers, few)
        conditions = {
            "machine": str(devices.this_machine()),
            "rows": rows,
            "workers": workers,
            "load before": os.getloadavg()[0],
        }
        if kill:
            results = [killed(engine, bundle, corpus, workers, Path(folder)) for engine in engines]
            found = {"kills": [asdict(result) for result in results]}
            text = kill_table(results)
        else:
            timings = list(throughput(engines, bundle, corpus, few, workers, rounds, Path(folder)))
            medians = medians_of(timings, rows)
            found = {"timings": [asdict(timing) for timing in timings], "medians": medians}
            text = throughput_table(medians)
        conditions["load after"] = os.getloadavg()[0]
    lines = "\n".join(f"- {name}: {value}" for name, value in conditions.items())
    click.echo(text)
    write_results(output, "corpus", {**conditions, **found}, f"{lines}\n\n{text}")
    if kill and not all(result.ok for result in results):
        raise BerxitError("a row is missing, occurs twice or has another prediction: see the table")


def write_corpus(bundle: Path, data: Path, rows: int, path: Path) -> None:
    """A Parquet file with ``rows`` rows: an id, and the texts of ``data``, repeated."""
    model = read_manifest(bundle, verify=False).model
    texts = read_examples_for(model, find_split(data, "dev")).texts
    repeated = [text if isinstance(text := texts[row % len(texts)], tuple) else (text,) for row in range(rows)]
    columns = {name: list(column) for name, column in zip(model.text_columns, zip(*repeated, strict=True), strict=True)}
    parquet.write_table(pyarrow.table({ID: list(range(rows)), **columns}), path)


def throughput(
    engines: Sequence[str], bundle: Path, corpus: Path, few: Path, workers: int, rounds: int, folder: Path
) -> Iterator[Timing]:
    for number in range(rounds):
        contenders = [INDEPENDENT, *engines]
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            start, start_cpu = timed(contender, bundle, few, workers, folder / f"{contender}-{number}-few")
            seconds, cpu = timed(contender, bundle, corpus, workers, folder / f"{contender}-{number}")
            timing = Timing(contender, seconds - start, cpu - start_cpu, start)
            click.echo(f"round {number + 1}: {timing}", err=True)
            yield timing


def arguments(contender: str, bundle: Path, corpus: Path, workers: int, output: Path) -> list[list[str]]:
    """The command lines of a contender's processes, which run at the same time."""
    if contender == INDEPENDENT:
        program = [sys.executable, str(Path(__file__).resolve()), "--independent", str(bundle), str(corpus)]
        return [[*program, str(worker), str(workers), str(output)] for worker in range(workers)]
    score = [sys.executable, "-m", "berxit.toolkit", "score", str(bundle), str(corpus), "--engine", contender]
    return [[*score, "--workers", str(workers), "--output", str(output), "--quiet"]]


def timed(contender: str, bundle: Path, corpus: Path, workers: int, output: Path) -> tuple[float, float]:
    """Seconds, and CPU seconds of all processes, of one run."""
    start = time.perf_counter()
    started = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in arguments(contender, bundle, corpus, workers, output)
    ]
    meter = CpuMeter([process.pid for process in started])
    outputs = [process.communicate()[0] for process in started]
    seconds = time.perf_counter() - start
    for process, printed in zip(started, outputs, strict=True):
        if process.returncode:
            raise BerxitError(f"{contender} failed: {printed.decode(errors='replace').strip().splitlines()[-1]}")
    return seconds, meter.stop()


class CpuMeter:
    """CPU time of processes and of all their descendants, also of those that end earlier."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._roots = [psutil.Process(pid) for pid in pids]
        self._seconds: dict[tuple[int, float], float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        known: dict[int, psutil.Process] = {}
        while not self._done.wait(POLL_S):
            for root in self._roots:
                known.update({process.pid: process for process in family(root)})
            for process in known.values():
                try:
                    times = process.cpu_times()
                    self._seconds[process.pid, process.create_time()] = times.user + times.system
                except psutil.Error:
                    continue

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return sum(self._seconds.values())


def family(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def independent(bundle: str, corpus: str, worker: str, workers: str, output: str) -> None:
    """Predicts one share of a corpus, and writes it as the engines do."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    table = parquet.read_table(corpus)
    share = table.num_rows // int(workers)
    start = int(worker) * share
    end = table.num_rows if int(worker) == int(workers) - 1 else start + share
    scorer = BatchScorer(bundle)
    with EarlyExitRunner.load(bundle, threads=1) as runner:
        columns = [table.column(name).to_pylist() for name in scorer.text_columns]
        texts = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        found = []
        for place in range(start, end, BATCH_ROWS):
            found += runner.predict_batch(texts[place : min(end, place + BATCH_ROWS)])
    Path(output).mkdir(exist_ok=True)
    rows = {
        ID: table.column(ID).to_pylist()[start:end],
        "prediction": [prediction.label for prediction in found],
        "exit_layer": [prediction.exit_layer for prediction in found],
        "certainty": [prediction.certainty for prediction in found],
    }
    parquet.write_table(pyarrow.table(rows), Path(output) / f"{worker}.parquet")


class CountedScorer(BatchScorer):
    """Appends one byte per predicted row to a file of the worker process."""

    counts = ""

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        result = super().__call__(table)
        with (Path(self.counts) / str(os.getpid())).open("ab") as stream:
            stream.write(b"." * table.num_rows)
        return result


def killed(engine: str, bundle: Path, corpus: Path, workers: int, folder: Path) -> KillResult:
    """Scores a corpus, kills a worker when half of the rows are predicted, and checks the output."""
    output, counts = folder / f"killed-{engine}", folder / f"counts-{engine}"
    counts.mkdir()
    scorer = CountedScorer(bundle)
    scorer.counts = str(counts)
    half, done = parquet.read_metadata(corpus).num_rows // 2, [0]
    victims: list[int] = []

    def kill_half_way() -> None:
        while done[0] < half:
            time.sleep(POLL_S)
            done[0] = sum(file.stat().st_size for file in counts.iterdir())
        newest = max(counts.iterdir(), key=lambda file: file.stat().st_mtime)
        victims.append(int(newest.name))
        os.kill(victims[0], signal.SIGKILL)
        click.echo(f"{engine}: killed process {newest.name} after {done[0]} rows", err=True)

    threading.Thread(target=kill_half_way, daemon=True).start()
    score_corpus(scorer, corpus, output, engine=engine, workers=workers, progress=progress_bar(engine))
    if not victims:
        raise BerxitError(f"{engine} ended before a worker was killed: give more --rows")
    sizes = {int(file.name): file.stat().st_size for file in counts.iterdir()}
    click.echo(f"{engine}: rows per process: {sizes}", err=True)
    return check(engine, bundle, corpus, output, done[0], len(sizes))


def check(engine: str, bundle: Path, corpus: Path, output: Path, done: int, processes: int) -> KillResult:
    written = dataset.dataset(sorted(output.glob("*.parquet"))).to_table()
    table, scorer = parquet.read_table(corpus), BatchScorer(bundle)
    names = list(scorer.text_columns)
    texts = sorted({tuple(row[name] for name in names) for row in table.select(names).to_pylist()})
    with EarlyExitRunner.load(bundle, threads=1) as runner:
        found = runner.predict_batch([text if len(text) > 1 else text[0] for text in texts])
    expected = {text: (answer.label, answer.exit_layer) for text, answer in zip(texts, found, strict=True)}
    rows = written.to_pylist()
    ids = {row[ID] for row in rows}
    different = sum(
        (row["prediction"], row["exit_layer"]) != expected[tuple(row[name] for name in names)] for row in rows
    )
    missing = len(set(table.column(ID).to_pylist()) - ids)
    return KillResult(engine, done, processes, len(rows), len(ids), missing, different)


def kill_table(results: Sequence[KillResult]) -> str:
    return markdown_table(
        ["engine", "rows before the kill", "worker processes", "rows", "distinct ids", "missing", "different"],
        [[r.engine, r.killed_after, r.processes, r.rows, r.distinct_ids, r.missing, r.different] for r in results],
    )


def medians_of(timings: Sequence[Timing], rows: int) -> list[dict[str, Any]]:
    """The medians over the rounds, by contender. Ratios are those of a round."""
    by_name: dict[str, list[Timing]] = {}
    for timing in timings:
        by_name.setdefault(timing.contender, []).append(timing)
    base = by_name[INDEPENDENT]
    return [
        {
            "contender": name,
            "start_seconds": median(t.start_seconds for t in found),
            "rows_per_second": rows / median(t.seconds for t in found),
            "throughput_ratio": median(b.seconds / t.seconds for b, t in zip(base, found, strict=True)),
            "cpu_seconds": median(t.cpu_seconds for t in found),
            "cpu_ratio": median(b.cpu_seconds / t.cpu_seconds for b, t in zip(base, found, strict=True)),
        }
        for name, found in by_name.items()
    ]


def throughput_table(medians: Sequence[dict[str, Any]]) -> str:
    header = ["contender", "start, s", "rows / s", "throughput / independent", "CPU s", "CPU s of independent / own"]
    line = (
        "{contender}|{start_seconds:.1f}|{rows_per_second:.0f}|{throughput_ratio:.2f}|{cpu_seconds:.1f}|{cpu_ratio:.2f}"
    )
    return markdown_table(header, [line.format(**each).split("|") for each in medians])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--independent"]:
        independent(*sys.argv[2:])
    else:
        run(command)
