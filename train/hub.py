"""GLUE and SICK from the Hugging Face hub, for those who have no files: fetched once, kept as files like any others.

What follows (training, calibration, the bench on a device) then knows files only, and the folder can be copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from berxit.devices import install_command
from berxit.runtime.cache import cache_folder
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import has_split
from berxit.runtime.storage import write_whole
from berxit.train.tasks import HIDDEN, TASKS, Task

_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub, and what it calls what a task's files hold."""

    path: str
    config: str | None
    columns: tuple[str, ...]
    """The text columns, in the order of the task's own."""
    label: str = "label"
    revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: _SPLITS)
    """Our split -> the hub's."""


def _glue(config: str, *columns: str, **options: Any) -> HubSource:
    return HubSource("nyu-mll/glue", config, columns, **options)


SOURCES = {
    "rte": _glue("rte", "sentence1", "sentence2"),
    "mrpc": _glue("mrpc", "sentence1", "sentence2"),
    "sst2": _glue("sst2", "sentence"),
    "qnli": _glue("qnli", "question", "sentence"),
    "qqp": _glue("qqp", "question1", "question2"),
    "mnli": _glue(
        "mnli",
        "premise",
        "hypothesis",
        splits={"train": "train", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"},
    ),
    "stsb": _glue("stsb", "sentence1", "sentence2"),
    "sick": HubSource(
        "RobZamp/sick",
        None,
        ("sentence_A", "sentence_B"),
        "relatedness_score",
        "refs/convert/parquet",  # the data set itself is a script, which datasets no longer runs
    ),
}
"""Task -> where its data lies."""


def fetch(task_name: str, split: str) -> Path:
    """The folder with a task's train.jsonl, dev.jsonl, ...; fetched from the hub if it is not there yet.

    Raises InputError for a task that the hub does not have (custom) or a split without labels, BerxitError where the
    hub cannot be reached.
    """
    if task_name not in SOURCES:
        raise InputError(f"--data is missing: task '{task_name}' reads your own files")
    folder = cache_folder() / "data" / task_name
    if not folder.is_dir():
        source = SOURCES[task_name]
        loaded = _load(source)
        # Another process may write the same meanwhile: either is right.
        with write_whole(folder, force=True) as scratch:
            for ours, theirs in source.splits.items():
                _write(TASKS[task_name], source, loaded[theirs], scratch / f"{ours}.jsonl")
    if not has_split(folder, split):
        there = ", ".join(sorted(path.stem for path in folder.glob("*.jsonl")))
        raise InputError(f"{task_name} has no {split} split with labels on the hub: choose --split from {there}")
    return folder


def _load(source: HubSource) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise BerxitError(f"fetching data needs datasets: {install_command('train')}, or give --data") from None
    try:
        return datasets.load_dataset(source.path, source.config, revision=source.revision)
    except Exception as error:  # datasets and huggingface_hub have a dozen exception types for "no network"
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise BerxitError(f"cannot fetch {source.path} from the hub: {reason}. Give --data with local files") from error


def _write(task: Task, source: HubSource, rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """One split in the task's own column names. Rows whose label is kept secret (GLUE's test splits) are left out."""
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            label = row[source.label]
            if label == HIDDEN:
                continue
            texts = {ours: row[theirs] for ours, theirs in zip(task.text_columns, source.columns, strict=True)}
            stream.write(json.dumps({**texts, task.label_column: task.labels[label] if task.labels else label}) + "\n")
    if not path.stat().st_size:
        path.unlink()  # a split without labels scores nothing
