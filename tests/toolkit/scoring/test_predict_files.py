"""``berxit predict``: texts, pairs and files; reports on labels and flips; interruptions."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import berxit
from berxit.runtime import EarlyExitRunner
from berxit.runtime.console import status_of
from berxit.runtime.examples import read_rows
from berxit.runtime.storage import used_alone
from berxit.runtime.tokenization import Text
from berxit.toolkit.cli import load
from berxit.toolkit.scoring import files

Rows = list[dict[str, Any]]


@pytest.fixture
def runner(bundle: Path) -> Iterator[EarlyExitRunner]:
    with EarlyExitRunner.load(bundle, threads=1) as runner:
        yield runner


@pytest.fixture
def pair_bundle(bundle: Path, tmp_path: Path) -> Path:
    """The bundle as one of a model that takes pairs."""
    copy = Path(shutil.copytree(bundle, tmp_path / "pairs"))
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["model"]["text_columns"] = ["first", "second"]
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return copy


def run(*arguments: object) -> int:
    return status_of(load("predict"), [str(argument) for argument in arguments])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def dev_rows(data_folder: Path) -> Rows:
    return [dict(row) for _, row in read_rows(data_folder / "dev.tsv", ("text", "label"))]


def write(path: Path, rows: Rows) -> Path:
    """Writes rows in the format of the suffix."""
    names = list(rows[0])
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, names, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path) -> Rows:
    """Rows of an output file; those of CSV with numbers."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    numbers: dict[str, Callable[[str], Any]] = {"exit_layer": int, "certainty": float, "truncated": json.loads}
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            {name: numbers.get(name, float if name.startswith("score_") else str)(value) for name, value in row.items()}
            for row in csv.DictReader(stream)
        ]


def test_predict_prints_label_scores_exit_layer_and_certainty(
    bundle: Path, runner: EarlyExitRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = runner.predict("the cat sat")
    assert run(bundle, "the cat sat") == 0
    out = capsys.readouterr().out
    first = f"{expected.label}: exit layer {expected.exit_layer} of 3, certainty {expected.certainty:.4f}"
    assert out.splitlines()[0] == first
    assert f"{expected.scores['cat']:.4f}" in out
    assert run(bundle, "the cat sat", "--threshold", 1) == 0
    assert "exit layer 3 of 3" in capsys.readouterr().out


def test_predict_takes_pairs(pair_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EarlyExitRunner.load(pair_bundle, threads=1) as runner:
        expected = runner.predict("the cat", "a dog")
    assert run(pair_bundle, "the cat", "a dog") == 0
    assert f"certainty {expected.certainty:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("output", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_predict_writes_the_predictions_of_the_runner(
    bundle: Path, runner: EarlyExitRunner, data_folder: Path, tmp_path: Path, suffix: str, output: str
) -> None:
    rows = dev_rows(data_folder)
    found = berxit.predict(bundle, write(tmp_path / f"in{suffix}", rows), tmp_path / f"out{output}", threads=1)
    expected = runner.predict_batch([row["text"] for row in rows])
    written = read(tmp_path / f"out{output}")
    assert [(row["text"], row["label"]) for row in written] == [(row["text"], row["label"]) for row in rows]
    assert list(written[0]) == [
        *("text", "label", "prediction", "exit_layer", "certainty", "truncated", "score_cat", "score_other")
    ]
    for row, prediction in zip(written, expected, strict=True):
        assert (row["prediction"], row["exit_layer"], row["truncated"]) == (
            prediction.label,
            prediction.exit_layer,
            prediction.truncated,
        )
        assert row["certainty"] == pytest.approx(prediction.certainty, rel=1e-6)
        assert row["score_cat"] == pytest.approx(prediction.scores["cat"], rel=1e-6)
    assert found.outputs.exit_layers.tolist() == [prediction.exit_layer for prediction in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in{suffix}", f"out{output}"]


def test_predict_keeps_the_types_of_other_columns(bundle: Path, tmp_path: Path) -> None:
    schema = pyarrow.schema(
        [("id", pyarrow.int16()), ("text", pyarrow.string()), ("tags", pyarrow.list_(pyarrow.string()))]
    )
    table = pyarrow.table({"id": [7, None], "text": ["a cat", "a dog"], "tags": [["x"], []]}, schema=schema)
    parquet.write_table(table, tmp_path / "in.parquet")
    berxit.predict(bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", threads=1)
    written = parquet.read_table(tmp_path / "out.parquet")
    assert written.select(["id", "text", "tags"]).equals(table)
    assert written.schema.field("exit_layer").type == pyarrow.int32()
    berxit.predict(bundle, tmp_path / "in.parquet", tmp_path / "out.jsonl", scores=False, threads=1)
    first, second = read(tmp_path / "out.jsonl")
    assert (first["id"], first["tags"], second["id"], second["tags"]) == (7, ["x"], None, [])
    assert "score_cat" not in first


def test_predict_writes_columns_that_only_some_rows_have(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a cat", "a": 1}\n{"b": true, "text": "a dog"}\n', encoding="utf-8")
    berxit.predict(bundle, tmp_path / "in.jsonl", tmp_path / "out.csv", threads=1)
    assert [(row["a"], row["b"]) for row in read(tmp_path / "out.csv")] == [("1", ""), ("", "true")]


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl", "out.parquet"])
def test_predict_writes_rows_that_read_back_as_they_were(bundle: Path, tmp_path: Path, output: str) -> None:
    odd = ["a\rb", "a\nb", "\r", 'a "b", c', " a ", "\u2028", "\x00"]
    data = write(tmp_path / "in.jsonl", [{"text": "a cat", "note": note, "a\rname": note} for note in odd])
    berxit.predict(bundle, data, tmp_path / output, threads=1)
    rows = [row for _, row in read_rows(tmp_path / output, ("text", "note", "a\rname"))]
    assert [(row["note"], row["a\rname"]) for row in rows] == [(note, note) for note in odd]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".parquet"])
def test_predict_rejects_repeated_columns_of_which_the_output_would_lose_one(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    data = tmp_path / f"in{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.table([["a cat"], ["1"], ["2"]], names=["text", "id", "id"]), data)
    else:
        data.write_text("text,id,id\na cat,1,2\n".replace(",", "\t" if suffix == ".tsv" else ","), encoding="utf-8")
    assert run(bundle, data, "--output", tmp_path / "out.csv") == 2
    assert f"in{suffix}: the header has column 'id' twice" in one_line(capsys)
    assert not (tmp_path / "out.csv").exists()
    assert run(bundle, data) == 0


def test_predict_shows_the_first_rows_without_an_output(
    bundle: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(bundle, data_folder / "dev.tsv", "--quiet") == 0
    out = capsys.readouterr().out
    assert sum(line.startswith("| ") and "| dev " in line for line in out.split("28 more rows")[0].splitlines()) == 20
    assert "28 more rows: write all with --output FILE.csv" in out
    assert list(tmp_path.iterdir()) == []


def test_predict_reports_score_confusion_and_wrong_rows(
    bundle: Path, runner: EarlyExitRunner, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = dev_rows(data_folder)
    for row in rows[:5]:
        row["label"] = {"cat": "other", "other": "cat"}[row["label"]]  # wrong labels, so that some rows are wrong
    for row in rows[40:]:
        row["label"] = ""
    data, folder = write(tmp_path / "in.csv", rows), tmp_path / "report"
    assert run(bundle, data, "--output", tmp_path / "out.csv", "--report", folder, "--quiet") == 0
    expected = [prediction.label for prediction in runner.predict_batch([row["text"] for row in rows[:40]])]
    truth = [row["label"] for row in rows[:40]]
    found = json.loads((folder / "predict.json").read_text(encoding="utf-8"))["labels"]
    assert found["rows"] == 40
    assert found["score"] == pytest.approx(np.mean([a == b for a, b in zip(expected, truth, strict=True)]))
    pairs = list(zip(truth, expected, strict=True))
    names = ("cat", "other")
    assert found["confusion"] == [[pairs.count((true, predicted)) for predicted in names] for true in names]
    wrong = [(row["text"], row["label"]) for row, label in zip(rows, expected, strict=False) if row["label"] != label]
    assert found["wrong"] == len(wrong) > 0
    assert sorted((row["text"][0], row["label"]) for row in found["wrong_rows"]) == sorted(wrong)
    scores = {row["text"]: max(row["score_cat"], row["score_other"]) for row in read(tmp_path / "out.csv")}
    listed = [scores[row["text"][0]] for row in found["wrong_rows"]]
    assert listed == sorted(listed, reverse=True)
    recall = found["confusion"][0][0] / sum(found["confusion"][0])
    assert found["classes"][0]["recall"] == pytest.approx(recall)
    out = capsys.readouterr().out
    assert f"accuracy {found['score']:.4f}, on 40 labelled rows" in out
    assert "confusion matrix, one row per true label" in out
    assert wrong[0][0] in (folder / "predict.md").read_text(encoding="utf-8")


def test_predict_reports_flips(bundle: Path, runner: EarlyExitRunner, data_folder: Path) -> None:
    texts: list[Text] = [row["text"] for row in dev_rows(data_folder)]
    found = berxit.predict(bundle, data_folder / "dev.tsv", threshold=0.5, flips=True, threads=1).report
    full = [answer.label for answer in runner.answer(texts, runner.policy.at_depth(3))]
    early = [answer.label for answer in runner.predict_batch(texts, threshold=0.5)]
    flips = sorted(text for text, a, b in zip(texts, early, full, strict=True) if a != b)
    assert found.flips is not None
    assert found.labels is not None
    assert flips
    assert found.flips.flips == len(flips)
    assert sorted(row.text[0] for row in found.flips.rows) == flips
    truth = [row["label"] for row in dev_rows(data_folder)]
    assert found.labels.full_depth_score == pytest.approx(np.mean([a == b for a, b in zip(full, truth, strict=True)]))
    assert berxit.predict(bundle, data_folder / "dev.tsv", threads=1).report.flips is None


def test_predict_scores_no_labels_of_one_class(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "in.csv", [{"text": "a cat", "label": "cat"}, {"text": "the cat", "label": "cat"}])
    assert run(bundle, data, "--quiet") == 0
    assert "accuracy cannot be measured: all labels are of one class, on 2 labelled rows" in capsys.readouterr().out


def test_predict_reads_the_given_columns(bundle: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "in.csv", [{"title": "a cat", "kind": "cat"}, {"title": "a dog", "kind": "other"}])
    found = berxit.predict(bundle, data, text_columns=["title"], label_column="kind", threads=1)
    assert found.report.labels is not None
    assert found.report.first[0].text == ("a cat",)
    assert berxit.predict(bundle, data, text_columns=["title"], threads=1).report.labels is None


def test_predict_skips_bad_rows_with_the_option(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "in.tsv"
    data.write_text("text\tid\na cat\t1\nhalf\n \t2\na dog\t3\n", encoding="utf-8")
    assert run(bundle, data, "--output", tmp_path / "out.csv", "--quiet") == 2
    assert "line 3: 1 columns, but the header has 2" in one_line(capsys)
    assert run(bundle, data, "--output", tmp_path / "out.csv", "--skip-bad-rows", "--quiet") == 0
    assert "skipped 2 bad rows of" in capsys.readouterr().err
    assert [row["id"] for row in read(tmp_path / "out.csv")] == ["1", "3"]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Makes the N-th part raise KeyboardInterrupt. Returns the sizes of the parts that were predicted."""
    monkeypatch.setattr(files, "PART_ROWS", 8)
    answer = EarlyExitRunner.answer

    def interrupt(part: int) -> list[int]:
        sizes: list[int] = []

        def counted(self: EarlyExitRunner, texts: list[Text], *arguments: Any) -> list[Any]:
            if len(sizes) + 1 == part:
                raise KeyboardInterrupt
            sizes.append(len(texts))
            return answer(self, texts, *arguments)

        monkeypatch.setattr(EarlyExitRunner, "answer", counted)
        return sizes

    return interrupt


def test_predict_resumes_an_interrupted_run(
    bundle: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    interrupted: Callable[[int], list[int]],
) -> None:
    expected, output = tmp_path / "whole.csv", tmp_path / "out.csv"
    berxit.predict(bundle, data_folder / "dev.tsv", expected, threads=1)
    arguments = [bundle, data_folder / "dev.tsv", "--output", output, "--quiet", "--threads", 1]
    sizes = interrupted(4)
    assert run(*arguments) == 130
    assert "Rerun the same command to continue" in one_line(capsys)
    assert sizes == [8, 8, 8]
    assert not output.exists()
    sizes = interrupted(0)
    assert run(*arguments) == 0
    assert sizes == [8, 8, 8]
    assert "continued an interrupted run: 24 of 48 rows were predicted before" in capsys.readouterr().err
    assert output.read_bytes() == expected.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "whole.csv"]


def test_predict_rejects_an_interrupted_run_with_other_options(
    bundle: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    interrupted: Callable[[int], list[int]],
) -> None:
    arguments = [bundle, data_folder / "dev.tsv", "--output", tmp_path / "out.csv", "--quiet"]
    interrupted(2)
    assert run(*arguments) == 130
    capsys.readouterr()
    sizes = interrupted(0)
    assert run(*arguments, "--flips") == 2
    assert "interrupted run with another --flips: rerun with its options to resume it" in one_line(capsys)
    assert run(*arguments, "--flips", "--force") == 0
    assert sizes == [8] * 12  # early exit and full depth, of all six parts


def test_predict_keeps_a_finished_output(
    bundle: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    interrupted: Callable[[int], list[int]],
) -> None:
    output = tmp_path / "out.csv"
    output.write_text("finished", encoding="utf-8")
    arguments = [bundle, data_folder / "dev.tsv", "--output", output, "--quiet"]
    assert run(*arguments) == 2
    assert f"{output} exists: choose another --output, or replace it with --force" in one_line(capsys)
    interrupted(3)
    assert run(*arguments, "--force") == 130
    assert output.read_text(encoding="utf-8") == "finished"
    sizes = interrupted(0)
    assert run(*arguments, "--force") == 0
    assert sizes == [8] * 4  # continued
    assert len(read(output)) == 48
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_predict_does_not_share_its_parts_with_another_process(
    bundle: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ".out.csv.predicting"
    folder.mkdir()
    with used_alone(folder):
        assert run(bundle, data_folder / "dev.tsv", "--output", tmp_path / "out.csv", "--quiet") == 2
    assert "another process is writing" in one_line(capsys)


def test_predict_names_the_folder_whose_disk_is_full(
    bundle: Path,
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(path: Path, **arrays: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert run(bundle, data_folder / "dev.tsv", "--output", tmp_path / "out.csv", "--quiet") == 1
    assert ".out.csv.predicting: No space left on device. Free space" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_predict_reports_a_damaged_part(
    bundle: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    interrupted: Callable[[int], list[int]],
) -> None:
    arguments = [bundle, data_folder / "dev.tsv", "--output", tmp_path / "out.csv", "--quiet"]
    interrupted(3)
    assert run(*arguments) == 130
    capsys.readouterr()
    part = tmp_path / ".out.csv.predicting" / "part-000001.npz"
    part.write_bytes(part.read_bytes()[:100])
    interrupted(0)
    assert run(*arguments) == 1
    assert "part-000001.npz is damaged" in one_line(capsys)
    part.unlink()
    assert run(*arguments) == 0


def test_predict_rejects_a_file_that_changes_meanwhile(
    bundle: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copy(data_folder / "dev.tsv", tmp_path / "in.tsv"))
    answer = EarlyExitRunner.answer

    def changing(self: EarlyExitRunner, *arguments: Any) -> list[Any]:
        data.write_text("text\tlabel\nthe cat\tcat\n", encoding="utf-8")
        return answer(self, *arguments)

    monkeypatch.setattr(EarlyExitRunner, "answer", changing)
    assert run(bundle, data, "--output", tmp_path / "out.csv", "--quiet") == 1
    assert "in.tsv changed while it was read: rerun the command" in one_line(capsys)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["none.csv"],
            "no file none.csv: give a .tsv, .csv, .jsonl, .json, .parquet, .conll, .iob2 file with columns text",
        ),
        (["in.csv", "--text-column", "body"], "no column 'body'. Columns: text, label"),
        (["in.csv", "--text-column", "text", "--text-column", "label"], "this model takes 1 column: text"),
        (["in.csv", "--label-column", "kind"], "in.csv has no column 'kind'. Columns: text, label"),
        (["unknown.csv"], "unknown.csv, line 2: unknown label 'dog'. Known labels: cat, other. To ignore the labels"),
        (["empty.csv"], "empty.csv, line 2: column 'text' is empty"),
        (["taken.csv", "--output", "o.csv"], "taken.csv has a column 'exit_layer', which the predictions add"),
        (["in.csv", "--output", "o.xlsx"], "cannot write '.xlsx' files. Use one of .csv, .jsonl, .parquet"),
        (["in.csv", "--output", "missing/o.csv", "--threshold", 2], "threshold 2.0 is out of range"),
        (["bad.parquet"], "bad.parquet: not a Parquet file"),
        (["a text", "--output", "o.csv"], "--output goes with a file, and 'a text' is a text"),
        (["a", "b", "c"], "3 texts: give one text or one pair"),
        (["a", "b"], "this model takes single texts (custom), and was given a pair"),
        ([" "], "the text is empty"),
        (["in.csv", "--backend", "openvino-bf16"], "openvino-bf16"),
    ],
)
def test_predict_rejects_bad_input_in_one_line(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.csv", [{"text": "a cat", "label": "cat"}])
    write(tmp_path / "unknown.csv", [{"text": "a cat", "label": "dog"}])
    write(tmp_path / "empty.csv", [{"text": "", "label": "cat"}])
    write(tmp_path / "taken.csv", [{"text": "a cat", "exit_layer": "1"}])
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run(bundle, *arguments) in (1, 2)
    assert message in one_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_predict_ignores_labels_with_the_option(bundle: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "in.csv", [{"text": "a cat", "label": "-1"}])
    assert run(bundle, data, "--no-labels", "--quiet") == 0


def test_predict_reports_a_missing_bundle(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "none", data_folder / "dev.tsv") == 1
    assert "none" in one_line(capsys)
