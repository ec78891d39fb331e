"""``berxit score``: its output and messages on a stand-in of an engine, and on real Ray and Spark where installed."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pyarrow
import pytest
from pyarrow import dataset, parquet

from berxit.runtime import EarlyExitRunner
from berxit.runtime.console import status_of
from berxit.runtime.errors import BerxitError
from berxit.runtime.examples import read_rows
from berxit.toolkit.cli import load
from berxit.toolkit.scoring import engines, watching
from berxit.toolkit.scoring.batch_scorer import BatchScorer
from berxit.toolkit.scoring.engines import Engine, Job

TEXTS = ["the cat sat on the mat", "a dog", "a cat", "the big red dog ran under the tree"] * 10


def run(*arguments: object) -> int:
    return status_of(load("score"), [str(argument) for argument in arguments])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which is the last line on standard error."""
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with two Parquet files; the last row has no text."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [*TEXTS, None]
    table = pyarrow.table({"id": list(range(len(texts))), "text": pyarrow.array(texts, pyarrow.string())})
    parquet.write_table(table[:25], folder / "a.parquet")
    parquet.write_table(table[25:], folder / "b.parquet")
    return folder


def write_parts(job: Job, names: list[str]) -> int:
    """Scores each file with a name of ``names``, as an engine does. Returns the number of input rows."""
    rows = 0
    for path in job.files:
        table = parquet.read_table(path)
        rows += table.num_rows
        if path.stem in names:
            parquet.write_table(job.scorer(table), job.output / path.name)
    return rows


def use(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """Replaces an engine by a stand-in that scores only these files."""
    monkeypatch.setitem(engines.ENGINES, "ray", Engine("pyarrow", lambda job: write_parts(job, names)))


def check_output(bundle: Path, output: Path) -> None:
    """Every row occurs once, with the prediction of the runner."""
    rows = sorted(dataset.dataset(sorted(output.glob("*.parquet"))).to_table().to_pylist(), key=lambda row: row["id"])
    assert [row["id"] for row in rows] == list(range(len(TEXTS) + 1))
    with EarlyExitRunner.load(bundle, threads=1) as runner:
        expected = [(prediction.label, prediction.exit_layer) for prediction in runner.predict_batch(TEXTS)]
    assert [(row["prediction"], row["exit_layer"]) for row in rows[:-1]] == expected
    assert rows[-1]["prediction"] is None
    assert rows[-1]["problem"].startswith("column 'text' is empty")


def test_score_writes_every_row_once(
    bundle: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ["a", "b"])
    output = tmp_path / "out"
    assert run(bundle, corpus, "--engine", "ray", "--output", output) == 0
    check_output(bundle, output)
    out = capsys.readouterr().out
    assert out.startswith("41 rows, average exit layer ")
    assert "1 without a prediction (column problem)" in out
    assert run(bundle, corpus, "--engine", "ray", "--output", output) == 2
    assert f"{output} exists: choose another --output, or replace it with --force" in one_line(capsys)
    assert run(bundle, corpus, "--engine", "ray", "--output", output, "--force", "--no-scores") == 0
    assert "score_cat" not in dataset.dataset(sorted(output.glob("*.parquet"))).schema.names


def test_score_keeps_nothing_if_rows_are_missing(
    bundle: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ["a"])
    assert run(bundle, corpus, "--engine", "ray", "--output", tmp_path / "out") == 1
    assert "25 rows were written for 41 rows of input: nothing is kept. Rerun the command" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_watched_counts_every_finished_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0.001)
    reported: list[int] = []

    class Reported:
        def update(self, n_steps: int) -> None:
            reported.append(n_steps)

    running, finished = (tmp_path / "_temporary" / name for name in ("attempt_1", "task_1"))
    running.mkdir(parents=True)
    with watching.watched(tmp_path, 12, lambda rows: nullcontext(Reported())):
        (tmp_path / "unfinished.parquet").write_bytes(b"PAR1")
        parquet.write_table(pyarrow.table({"id": range(5)}), running / "a.parquet")
        time.sleep(0.05)
        assert sum(reported) == 0
        running.rename(finished)  # Spark moves a finished file twice
        while sum(reported) < 5:
            time.sleep(0.001)
        (finished / "a.parquet").rename(tmp_path / "a.parquet")
        parquet.write_table(pyarrow.table({"id": range(7)}), tmp_path / "b.parquet")
    assert sum(reported) == 12


@pytest.mark.parametrize(
    ("rows", "workers", "parts"), [(0, 2, 2), (1, 2, 2), (4096, 2, 2), (4097, 2, 4), (16_000, 2, 8), (16_000, 3, 9)]
)
def test_equal_parts_give_every_worker_as_many_rows(rows: int, workers: int, parts: int) -> None:
    assert engines.equal_parts(rows, workers) == parts


def test_engine_errors_are_one_line() -> None:
    trace = (
        "ray::MapWorker() failed\n"
        '  File "batch_scorer.py", line 1, in __call__\n'
        "berxit.runtime.errors.BerxitError: bundle/manifest.json is damaged. Copy the bundle again\n"
    )
    with (
        pytest.raises(BerxitError, match=r"^bundle/manifest.json is damaged. Copy the bundle again$"),
        engines.one_line_errors_of("Ray"),
    ):
        raise RuntimeError(trace)
    with (
        pytest.raises(BerxitError, match=r"^Ray failed: out of disk. Rerun with --debug to see more$"),
        engines.one_line_errors_of("Ray"),
    ):
        raise RuntimeError("out of disk\nat 0x0")


@pytest.mark.parametrize("engine", ["ray", "pyspark"])
def test_score_names_the_extra_of_a_missing_engine(
    bundle: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
) -> None:
    monkeypatch.setitem(sys.modules, engine, None)
    extra = engine.removeprefix("py")
    assert run(bundle, corpus, "--engine", extra, "--output", tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()  # no line about a start
    assert f"error: this needs {engine}, which is not installed here" in line
    assert f"[{extra}]" in line
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "no corpus at none: give a file or a folder of .tsv, .csv, .jsonl, .parquet files"),
        (["empty"], "empty has no .tsv, .csv, .jsonl, .parquet file"),
        (["zero.csv"], "zero.csv is an empty file: delete it, or add a header and rows"),
        (["mixed"], "mixed has files of several formats (.csv, .parquet): give one of them"),
        (["corpus", "--text-column", "a", "--text-column", "b"], "this model takes 1 column: text"),
        (["corpus", "--text-column", "body"], "no column 'body'. Columns: "),
        (["wrong.jsonl"], "no column 'text'. Columns: id"),
        (["corpus", "--engine", "dask"], "'dask' is not one of 'ray', 'spark'"),
        (["corpus", "--workers", "0"], "0 is not in the range x>=1"),
    ],
)
def test_score_rejects_bad_input_in_one_line(
    bundle: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.jsonl").write_text('{"id": 1}\n', encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "zero.csv").touch()
    for name in ("a.csv", "b.parquet"):
        (tmp_path / "mixed" / name).write_bytes(b"text\n")
    assert run(bundle, "--engine", "ray", "--output", "out", *arguments) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.fixture(params=["ray", "spark"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A real engine. Its workers import this checkout."""
    name = str(request.param)
    pytest.importorskip({"spark": "pyspark"}.get(name, name), reason=f"{name} is an optional extra")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
    return name


@pytest.mark.slow
def test_score_on_a_real_engine(bundle: Path, corpus: Path, tmp_path: Path, engine: str) -> None:
    output = tmp_path / "out"
    assert run(bundle, corpus, "--engine", engine, "--workers", 2, "--output", output, "--quiet") == 0
    check_output(bundle, output)


@pytest.mark.slow
def test_engine_reads_every_format_as_the_other_commands_do(bundle: Path, tmp_path: Path, engine: str) -> None:
    contents = {
        "a.csv": 'id,text\n1,"a ""big"" cat,\nsat"\n2,0123\n3,\n',
        "a.tsv": 'id\ttext\n1\ta "big cat\n2\t0123\n3\t\n',
        "a.jsonl": '{"id": 1, "text": "a \\"big cat"}\n{"id": 2, "text": "0123"}\n{"id": 3, "text": null}\n',
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    jobs = {name: Job(BatchScorer(bundle), (tmp_path / name,), tmp_path, 1, None) for name in contents}
    if engine == "ray":
        with engines.ray_session(jobs["a.csv"]):
            found = {name: engines.ray_dataset(job).take_all() for name, job in jobs.items()}
    else:
        with engines.spark_session(jobs["a.csv"]) as session:
            frames = {name: engines.spark_frame(job, session) for name, job in jobs.items()}
            found = {name: [row.asDict() for row in frame.collect()] for name, frame in frames.items()}
    for name, rows in found.items():
        expected = {line: record["text"] for line, record in read_rows(tmp_path / name, ("text",))}
        assert {int(row["id"]): row["text"] or "" for row in rows} == dict(enumerate(expected.values(), start=1)), name


@pytest.mark.slow
def test_score_reports_the_error_of_a_worker_in_one_line(
    bundle: Path, corpus: Path, tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle_copy := tmp_path / "bundle").mkdir()
    shutil.copytree(bundle, bundle_copy, dirs_exist_ok=True)
    (bundle_copy / "tokenizer.json").write_text("{}", encoding="utf-8")  # the driver reads the manifest only
    arguments = [bundle_copy, corpus, "--engine", engine, "--workers", 1, "--output", tmp_path / "out", "--quiet"]
    assert run(*arguments) == 1
    assert "tokenizer.json" in one_line(capsys)
    shutil.rmtree(bundle_copy)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
