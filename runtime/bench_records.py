"""queries.json: every query of a bench, and the outputs of every exit for its inputs. docs/bench.md is its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import BerxitError
from berxit.runtime.json_data import parse, read_json, to_json
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.queries import ExitOutputs, Queries
from berxit.runtime.storage import write_text

FILE = "queries.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BenchRecords:
    """Every query of a bench, and the outputs of every exit for its N inputs."""

    bundle: str
    queries: Mapping[str, Queries]
    """Operating point, such as ``layer 4``, ``threshold 0.9``, ``calibrated``, ``one graph`` -> its queries."""
    outputs: ExitOutputs
    classes: tuple[str, ...]
    """Class or label names; empty for regression."""
    tokens: npt.NDArray[np.int64]
    """(N,) number of tokens."""

    def write(self, path: Path) -> None:
        """Writes queries.json."""
        write_text(path, self.to_text())

    def to_text(self) -> str:
        """Content of queries.json, one line per operating point."""
        outputs = self.outputs
        head = {
            "schema_version": SCHEMA_VERSION,
            "bundle": self.bundle,
            "classes": list(self.classes),
            "kind": outputs.kind,
            "exits": list(outputs.exits),
            "policy": to_json(outputs.policy),
            "texts": [[text] if isinstance(text, str) else list(text) for text in outputs.texts],
            "tokens": self.tokens.tolist(),
            "labels": None if outputs.labels is None else outputs.labels.tolist(),
            "certainty": _rounded(outputs.certainty),
            "predictions": _rounded(outputs.predictions),
        }
        points = {
            name: {"latency_ms": _rounded(each.latency_ms, 5), "exit_layers": each.exit_layers.tolist()}
            for name, each in self.queries.items()
        }
        lines = [f"{_compact(key)}: {_compact(value)}" for key, value in head.items()]
        of_points = ",\n".join(f"{_compact(name)}: {_compact(value)}" for name, value in points.items())
        return "{\n" + ",\n".join([*lines, '"points": {\n' + of_points + "\n}"]) + "\n}\n"


def read_records(path: Path) -> BenchRecords:
    """Reads queries.json. Raises BerxitError for another file, or arrays that do not fit together."""
    data = read_json(path)
    if data.get("schema_version") != SCHEMA_VERSION:
        raise BerxitError(
            f"{path} has schema version {data.get('schema_version')}, this berxit reads {SCHEMA_VERSION}: rerun"
            " berxit-bench, or upgrade berxit"
        )
    try:
        return _parsed(data, str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise BerxitError(f"{path} is damaged ({type(error).__name__}: {error}). Rerun berxit-bench") from None


def _parsed(data: dict[str, Any], where: str) -> BenchRecords:
    exits, texts = tuple(map(int, data["exits"])), [tuple(parts) for parts in data["texts"]]
    shape = len(texts), len(exits)
    classes = tuple(map(str, data["classes"]))
    numbers = np.float64 if not classes else np.int64
    outputs = ExitOutputs(
        exits,
        parse(ExitPolicy, data["policy"], f"{where}: policy"),
        _certainty(np.array(data["certainty"])).reshape(shape),
        np.array(data["predictions"], numbers).reshape(shape),
        None if data["labels"] is None else np.array(data["labels"], numbers).reshape(shape[:1]),
        tuple(parts[0] if len(parts) == 1 else (parts[0], parts[1]) for parts in texts),
        str(data.get("kind", "classification" if classes else "regression")),
    )
    points = {}
    for name, each in data["points"].items():
        latency, taken = np.array(each["latency_ms"], np.float64), np.array(each["exit_layers"], np.int64)
        points[name] = Queries(latency.reshape(-1, shape[0]), taken.reshape(latency.shape))
    return BenchRecords(str(data["bundle"]), points, outputs, classes, np.array(data["tokens"], np.int64))


def _certainty(values: npt.NDArray) -> npt.NDArray:
    """A certainty is a float32, or an integer if it counts layers."""
    return values if values.dtype.kind in "iu" else values.astype(np.float32)


def _rounded(values: npt.NDArray, digits: int = 9) -> list[Any]:
    """Numbers with ``digits`` significant digits; integers as they are. Nine digits restore a float32 exactly."""
    if values.dtype.kind in "iu":
        return values.tolist()
    rows = values.reshape(len(values), -1)
    found = [[float(f"{value:.{digits}g}") for value in row] for row in rows.tolist()]
    return found if values.ndim > 1 else [row[0] for row in found]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
