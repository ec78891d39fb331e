"""BatchScorer, the adapter between a bundle and a data engine."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow
import pytest

from berxit.runtime import EarlyExitRunner
from berxit.runtime.errors import BerxitError, InputError
from berxit.toolkit.scoring import batch_scorer
from berxit.toolkit.scoring.batch_scorer import BatchScorer

TEXTS = ["the cat sat on the mat", "a dog", "a cat", "the big red dog ran under the tree"]


def table(texts: list[str | None]) -> pyarrow.Table:
    return pyarrow.table({"id": list(range(len(texts))), "text": pyarrow.array(texts, pyarrow.string())})


def test_batch_scorer_returns_the_rows_with_the_predictions_of_the_runner(bundle: Path) -> None:
    scorer = BatchScorer(bundle)
    with EarlyExitRunner.load(bundle, threads=1) as runner:
        expected = runner.predict_batch(TEXTS)
    result = scorer(table(TEXTS))
    assert result.schema == scorer.schema(table(TEXTS).schema)
    assert result.select(["id", "text"]).equals(table(TEXTS))
    for row, prediction in zip(result.to_pylist(), expected, strict=True):
        assert (row["prediction"], row["exit_layer"]) == (prediction.label, prediction.exit_layer)
        assert row["certainty"] == pytest.approx(prediction.certainty, rel=1e-6)
        assert row["score_other"] == pytest.approx(prediction.scores["other"], rel=1e-6)
        assert row["problem"] is None


def test_batch_scorer_states_the_problem_of_a_row_without_a_text(bundle: Path) -> None:
    rows = BatchScorer(bundle, scores=False)(table([TEXTS[0], None, " ", TEXTS[1]])).to_pylist()
    assert [row["problem"] is None for row in rows] == [True, False, False, True]
    assert rows[1]["problem"] == "column 'text' is empty. Fill it in or delete the line"
    assert [row["prediction"] is None for row in rows] == [False, True, True, False]
    assert [row["exit_layer"] is None for row in rows] == [False, True, True, False]
    assert "score_cat" not in rows[0]
    assert BatchScorer(bundle)(table([None])).column("prediction").null_count == 1
    assert BatchScorer(bundle)(table([])).num_rows == 0


def test_batch_scorer_applies_the_threshold(bundle: Path) -> None:
    assert BatchScorer(bundle, threshold=1)(table(TEXTS)).column("exit_layer").to_pylist() == [3] * 4


def test_batch_scorer_partition_keeps_rows_and_order(bundle: Path) -> None:
    batches = table(TEXTS).to_batches(max_chunksize=3)
    found = list(BatchScorer(bundle).partition(iter(batches)))
    assert [row["id"] for batch in found for row in batch.to_pylist()] == [0, 1, 2, 3]


def test_batch_scorer_loads_the_bundle_once_per_process(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    load = EarlyExitRunner.load

    def counted(*arguments: object, threads: int, **options: object) -> EarlyExitRunner:
        loads.append(threads)
        return load(*arguments, threads=threads, **options)  # type: ignore[arg-type]

    batch_scorer.loaded_runner.cache_clear()
    monkeypatch.setattr(EarlyExitRunner, "load", counted)
    scorer = BatchScorer(bundle)
    assert loads == []  # the manifest is enough on the driver
    for copy in (scorer, pickle.loads(pickle.dumps(scorer)), BatchScorer(bundle, threshold=1)):
        copy(table(TEXTS))
    assert loads == [1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["a"]}, "the input has no column 'text'. Columns: body"),
        ({"text": [1]}, "column 'text' has the type int64: convert it to string"),
        ({"text": ["a"], "problem": ["b"]}, "the input has a column 'problem', which the predictions add"),
    ],
)
def test_batch_scorer_rejects_other_columns(bundle: Path, columns: dict[str, list], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchScorer(bundle)(pyarrow.table(columns))


def test_batch_scorer_rejects_wrong_arguments(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--text-column names a, b, and this model takes 1 column: text"):
        BatchScorer(bundle, text_columns=["a", "b"])
    with pytest.raises(BerxitError, match=r"manifest\.json"):
        BatchScorer(tmp_path)
