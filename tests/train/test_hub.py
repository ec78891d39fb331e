"""Data from the hub, on a stand-in for it: requests, stored files, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from berxit.runtime.errors import BerxitError, InputError
from berxit.train.hub import SOURCES, fetch
from berxit.train.tasks import TASKS

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(task: str, count: int) -> Any:
    """A split in the form of the hub: its own column names, class labels as numbers."""
    source = SOURCES[task]
    columns: dict[str, list[Any]] = {name: [f"{name} {i}" for i in range(count)] for name in source.columns}
    labels = TASKS[task].labels
    columns[source.label] = [i % len(labels) for i in range(count)] if labels else [i / 2 for i in range(count)]
    return datasets.Dataset.from_dict({**columns, "idx": list(range(count))})


def serve(monkeypatch: pytest.MonkeyPatch, task: str, **splits: Any) -> list[tuple[Any, ...]]:
    """Stand-in for load_dataset; the list collects its arguments."""
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, config: str | None, *, revision: str | None) -> Any:
        asked.append((path, config, revision))
        return datasets.DatasetDict(splits or {name: rows(task, 6) for name in SOURCES[task].splits.values()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("name", TASKS)
def test_fetch_downloads_a_task_once_as_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, name)
    task = TASKS[name]
    for _ in range(2):
        folder = fetch(name, "dev")
        for split in ("train", "dev"):
            examples = task.read(folder, split)
            assert len(examples) == 6
            first = tuple(f"{column} 0" for column in SOURCES[name].columns)
            assert examples.texts[0] == (first if len(first) == 2 else first[0])
            expected = [i % len(task.labels) for i in range(6)] if task.labels else [i / 2 for i in range(6)]
            assert examples.labels.tolist() == expected
    assert len(asked) == 1


def test_fetch_uses_the_names_of_glue(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, "mrpc")
    fetch("mrpc", "train")
    assert asked == [("nyu-mll/glue", "mrpc", None)]
    assert {name for name, source in SOURCES.items() if source.config == name} == TASKS.keys() - {"sick"}


def test_fetch_of_mnli_writes_two_dev_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(
        monkeypatch,
        "mnli",
        train=rows("mnli", 3),
        validation_matched=rows("mnli", 4),
        validation_mismatched=rows("mnli", 5),
    )
    folder = fetch("mnli", "dev")
    assert [len(TASKS["mnli"].read(folder, split)) for split in ("dev", "dev_matched", "dev_mismatched")] == [4, 4, 5]


@pytest.mark.parametrize("name", ["rte", "stsb"])
def test_fetch_omits_a_split_with_hidden_labels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    label = -1 if name == "rte" else -1.0
    hidden = rows(name, 3).remove_columns("label").add_column("label", [label] * 3)
    serve(monkeypatch, name, train=rows(name, 3), validation=rows(name, 3), test=hidden)
    assert sorted(path.name for path in fetch(name, "dev").iterdir()) == ["dev.jsonl", "train.jsonl"]
    with pytest.raises(InputError, match=f"{name} has no test split with labels on the hub: choose --split from dev"):
        fetch(name, "test")


def test_fetch_keeps_texts_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = 'caf\u00e9 "quoted"\ttab\nline \U0001f600'
    split = datasets.Dataset.from_dict({"sentence": [odd], "label": [1]})
    serve(monkeypatch, "sst2", train=split, validation=split, test=split)
    assert json.loads((fetch("sst2", "dev") / "dev.jsonl").read_text(encoding="utf-8"))["sentence"] == odd


def test_fetch_without_a_network_names_the_remedy(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BerxitError, match=r"cannot download nyu-mll/glue from the hub: Couldn't reach.* Give --data"):
        fetch("rte", "dev")
    assert not cache.exists()


def test_interrupted_fetch_writes_nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    broken = datasets.Dataset.from_dict({"sentence": ["a"], "label": [7]})  # no such class
    serve(monkeypatch, "sst2", train=rows("sst2", 2), validation=broken, test=broken)
    with pytest.raises(IndexError):
        fetch("sst2", "dev")
    assert list((cache / "data").iterdir()) == []


def test_fetch_rejects_a_custom_task() -> None:
    with pytest.raises(InputError, match="--data is missing: task 'custom' reads your own files"):
        fetch("custom", "dev")
