"""Data of the built-in tasks (GLUE, SICK) from the Hugging Face hub, downloaded once and stored as files.

Training, calibration and the bench on a device read files only, so the folder can be copied to a device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from berxit.devices import install_command
from berxit.runtime.cache import cache_folder
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import has_split
from berxit.runtime.storage import write_whole
from berxit.train.in_memory import Data, data_files
from berxit.train.tasks import HIDDEN, TASKS, Task

_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub, with its own names of columns and splits."""

    path: str
    config: str | None
    columns: tuple[str, ...]
    """Text columns of the data set, in the order of the task's columns."""
    label: str = "label"
    revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: _SPLITS)
    """Name of a split here -> its name on the hub."""


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
        "refs/convert/parquet",  # the main branch is a script, which datasets no longer executes
    ),
}
"""Task -> its data set."""


def fetch(task_name: str, split: str) -> Path:
    """The folder with a task's train.jsonl, dev.jsonl, ...; downloaded from the hub at the first call.

    Raises InputError for a task without a data set on the hub (custom) or a split without labels, BerxitError if the
    download fails.
    """
    if task_name not in SOURCES:
        raise InputError(f"--data is missing: task '{task_name}' reads your own files")
    folder = cache_folder() / "data" / task_name
    if not folder.is_dir():
        source = SOURCES[task_name]
        loaded = _load(source)
        # Another process may write the same content at the same time; either result is correct.
        with write_whole(folder, force=True) as scratch:
            for ours, theirs in source.splits.items():
                _write(TASKS[task_name], source, loaded[theirs], scratch / f"{ours}.jsonl")
    if not has_split(folder, split):
        available = ", ".join(sorted(path.stem for path in folder.glob("*.jsonl")))
        raise InputError(f"{task_name} has no {split} split with labels on the hub: choose --split from {available}")
    return folder


def task_data(task_name: str, data: Data | None, split: str, report: Callable[[str], None] = lambda line: None) -> Path:
    """The file or folder of ``data``, or the task's data from the hub if it is None.

    ``report`` receives one line before a download. Raises as ``data_files`` and ``fetch`` do.
    """
    if data is not None:
        return data_files(data, split)
    if task_name in SOURCES and not (cache_folder() / "data" / task_name).is_dir():
        _datasets()
        report(f"downloading {task_name} from the Hugging Face hub; --data reads local files instead")
    return fetch(task_name, split)


def _datasets() -> ModuleType:
    """The module ``datasets``. Raises BerxitError with the pip command if it is not installed."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise BerxitError(f"downloading data needs datasets: {install_command('train')}, or give --data") from None
    return datasets


def _load(source: HubSource) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    datasets = _datasets()
    try:
        return datasets.load_dataset(source.path, source.config, revision=source.revision)
    except Exception as error:  # datasets and huggingface_hub have a dozen exception types for "no network"
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise BerxitError(
            f"cannot download {source.path} from the hub: {reason}. Give --data with local files"
        ) from error


def _write(task: Task, source: HubSource, rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes one split with the task's column names, without rows whose label is hidden (GLUE's test splits)."""
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            label = row[source.label]
            if label == HIDDEN:
                continue
            texts = {ours: row[theirs] for ours, theirs in zip(task.text_columns, source.columns, strict=True)}
            stream.write(json.dumps({**texts, task.label_column: task.labels[label] if task.labels else label}) + "\n")
    if not path.stat().st_size:
        path.unlink()  # a split without labels has no score
