"""Tables in memory are stored as files that every reader of the project accepts."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from berxit.runtime.errors import InputError
from berxit.runtime.examples import find_split, read_examples
from berxit.train.in_memory import data_files

TEXTS, LABELS = ["turn it on", "play a song", "stop"], ["lights", "music", "music"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def classes(count: int = 2) -> datasets.Features:
    names = ["lights", "music"]
    return datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})


TABLES = {
    "columns": {"text": TEXTS, "label": LABELS},
    "rows": [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)],
    "data frame": pd.DataFrame({"text": TEXTS, "label": LABELS}, index=[7, 8, 9]),
    "dataset": datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}),
    "dataset with class numbers": datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 1]}, features=classes()),
    "numpy": {"text": np.array(TEXTS), "label": np.array(LABELS)},
}


@pytest.mark.parametrize("kind", TABLES)
def test_data_files_stores_every_kind_of_table(kind: str) -> None:
    path = data_files(TABLES[kind], "dev")
    assert path.name == "dev.jsonl"
    found = read_examples(path, ["text"], "label", ["lights", "music"])
    assert (found.texts, found.labels.tolist()) == (TEXTS, [0, 1, 1])


def test_data_files_stores_splits_as_a_folder() -> None:
    table = TABLES["columns"]
    splits = datasets.DatasetDict({name: datasets.Dataset.from_dict(table) for name in ("train", "validation")})
    for data in (splits, {"train": table, "dev": table}):
        folder = data_files(data, "train")
        assert find_split(folder, "dev").name == "dev.jsonl"
        assert find_split(folder, "train").name == "train.jsonl"


def test_data_files_stores_equal_tables_once(cache: Path) -> None:
    assert data_files(TABLES["rows"], "train") == data_files(TABLES["columns"], "train")
    assert len(list((cache / "tables").iterdir())) == 1


def test_data_files_keeps_numbers_of_regression() -> None:
    path = data_files({"text": TEXTS, "label": np.array([0.5, 1.25, 3.0], dtype=np.float32)}, "train")
    assert read_examples(path, ["text"], "label", None).labels.tolist() == [0.5, 1.25, 3.0]


def test_data_files_returns_paths_as_they_are(tmp_path: Path) -> None:
    assert data_files(str(tmp_path / "a.tsv"), "train") == tmp_path / "a.tsv"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": TEXTS, "label": ["lights"]}, "columns of the train table have different lengths"),
        ([], "the train table is empty"),
        (["a text"], "row 0 of the train table is str: give dictionaries"),
        (7, "the train data is int: give a path"),
    ],
)
def test_data_files_rejects_data_that_is_not_a_table(data: object, message: str, cache: Path) -> None:
    with pytest.raises(InputError, match=message):
        data_files(data, "train")
    assert not (cache / "tables").exists()
