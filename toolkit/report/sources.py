"""Inputs of a report: benches and evaluations, recognised by their files."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from berxit.runtime.bench_records import FILE as QUERIES
from berxit.runtime.bench_records import BenchRecords, read_records
from berxit.runtime.bench_result import BenchResult
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import parse, read_json, to_json
from berxit.runtime.kinds import KINDS
from berxit.runtime.policies import CRITERIA, ExitPolicy
from berxit.runtime.queries import ExitOutputs

PASS = "predictions.npz"


@dataclass(frozen=True)
class BenchSource:
    """A bench: bench.json, and queries.json if it exists."""

    name: str
    data: dict[str, Any]
    """bench.json"""
    result: BenchResult
    records: BenchRecords | None
    folder: str
    """Name of the folder of bench.json."""


@dataclass(frozen=True)
class EvaluationSource:
    """An evaluation: eval.json, and its pass if predictions.npz exists."""

    name: str
    data: dict[str, Any]
    """eval.json"""
    outputs: ExitOutputs | None
    classes: tuple[str, ...]
    """Class names; empty for regression."""


def read_source(path: Path) -> BenchSource | EvaluationSource:
    """Reads a folder or JSON file of berxit-bench or berxit-eval.

    Raises InputError for a path that is neither, BerxitError for a damaged file.
    """
    files = [path / "bench.json", path / "eval.json"] if path.is_dir() else [path]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        what = "has neither bench.json nor eval.json" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}: give a folder that berxit-bench or berxit-eval wrote")
    data = read_json(file)
    if {"by_layer", "machine", "policy"} <= data.keys():
        return _bench(file, data)
    if {"layer_scores", "curves", "quality"} <= data.keys():
        return _evaluation(file, data)
    raise InputError(f"{file} is neither a bench.json nor an eval.json: give a file of berxit-bench or berxit-eval")


def bench_source(result: BenchResult) -> BenchSource:
    """A bench that was measured in this process."""
    return BenchSource(result.bundle, to_json(result), result, result.records, f"{result.bundle}-bench")


def _bench(file: Path, data: dict[str, Any]) -> BenchSource:
    known = {name: _numbered(value) if name in ("by_layer", "cold_start") else value for name, value in data.items()}
    known.pop("made_by", None)  # the provenance, which every file of results has
    known["by_threshold"] = {float(key): value for key, value in data["by_threshold"].items()}
    result: BenchResult = parse(BenchResult, known, str(file))
    records = file.with_name(QUERIES)
    found = read_records(records) if records.is_file() else None
    if found is not None and (found.bundle, len(found.outputs.texts)) != (result.bundle, result.inputs):
        raise BerxitError(f"{records} is of another bench than {file.name}: rerun berxit-bench")
    return BenchSource(result.bundle, data, result, found, file.parent.resolve().name)


def _numbered(value: Any) -> Any:
    """by_layer and memory_by_layer with their layers as numbers: keys of JSON are strings."""
    if not isinstance(value, dict):
        return value
    if "memory_by_layer" in value:
        return {**value, "memory_by_layer": _numbered(value["memory_by_layer"])}
    return {int(key): item for key, item in value.items()}


def _evaluation(file: Path, data: dict[str, Any]) -> EvaluationSource:
    stored = file.with_name(PASS)
    name = file.parent.resolve().name
    if not stored.is_file():
        return EvaluationSource(name, data, None, ())
    try:
        with np.load(stored, allow_pickle=False) as arrays:
            logits, labels = arrays["logits"], arrays["labels"]
            lte = arrays.get("lte")
            names = tuple(map(str, arrays["names"])) if "names" in arrays else ()
            name_of_kind = str(arrays["kind"]) if "kind" in arrays else ""
            numbers = arrays.get("numbers")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BerxitError(f"{stored} is damaged ({error}). Rerun berxit-eval") from None
    layers, outputs = logits.shape[1], logits.shape[-1]
    kind = KINDS[name_of_kind or ("regression" if outputs == 1 else "classification")].of(names)
    criterion = data["criterion"]
    if criterion not in CRITERIA or CRITERIA[criterion].fitted:  # Its weights are not in eval.json.
        criterion = "confidence" if outputs > 1 else "lte" if lte is not None else "patience"
    policy = ExitPolicy.uniform(criterion, CRITERIA[criterion].never(layers, outputs), layers)
    classes = () if outputs == 1 else names or tuple(f"class {number}" for number in range(outputs))
    texts = [f"row {row}" for row in range(1, len(labels) + 1)]
    found = ExitOutputs.of(policy, range(1, layers + 1), logits, lte, labels, texts, kind, numbers)
    return EvaluationSource(name, data, found, classes)
