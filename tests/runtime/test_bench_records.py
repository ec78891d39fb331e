from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from berxit.runtime.bench_records import BenchRecords, read_records
from berxit.runtime.errors import BerxitError
from berxit.runtime.kinds import KINDS
from berxit.runtime.policies import ExitPolicy, exit_layers
from berxit.runtime.queries import ExitOutputs, Queries


@pytest.fixture
def records() -> BenchRecords:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3, 2)).astype(np.float32)
    policy = ExitPolicy.uniform("confidence", 0.7, 4)
    outputs = ExitOutputs.of(
        policy, (1, 3, 4), logits, None, np.array([0, 1, 1, 0, 1]), ["a", "b", "c", "ä", "e"], KINDS["classification"]
    )
    queries = {"layer 1": Queries(rng.random((2, 5)), np.ones((2, 5), np.int64))}
    return BenchRecords("my-bundle", queries, outputs, ("no", "yes"), np.array([3, 4, 5, 6, 7]))


def test_records_are_restored(records: BenchRecords, tmp_path: Path) -> None:
    records.write(tmp_path / "queries.json")
    found = read_records(tmp_path / "queries.json")
    assert (found.bundle, found.classes, found.outputs.exits) == ("my-bundle", ("no", "yes"), (1, 3, 4))
    assert found.outputs.policy == records.outputs.policy
    assert found.outputs.texts == records.outputs.texts
    assert (found.outputs.certainty == records.outputs.certainty).all()
    assert (found.outputs.predictions == records.outputs.predictions).all()
    assert found.outputs.labels is not None
    assert found.outputs.labels.tolist() == [0, 1, 1, 0, 1]
    assert found.queries["layer 1"].latency_ms == pytest.approx(records.queries["layer 1"].latency_ms, rel=1e-4)
    of_exits = records.outputs.policy.at_exits((1, 3, 4))
    assert (exit_layers(of_exits, found.outputs.certainty) == exit_layers(of_exits, records.outputs.certainty)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "has schema version 2, this berxit reads 1"),
        ({"labels": [0]}, "is damaged"),
        ({"certainty": [[1, 2], [3]]}, "is damaged"),
        ({"points": {"layer 1": {"latency_ms": [[1.0] * 5]}}}, "is damaged"),
        ({"policy": {"criterion": "confidence"}}, "key 'temperatures' is missing"),
    ],
)
def test_damaged_records_are_rejected_in_one_line(
    records: BenchRecords, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "queries.json"
    records.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(BerxitError, match=message) as error:
        read_records(path)
    assert "\n" not in str(error.value)
