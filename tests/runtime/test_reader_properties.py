"""Properties of the readers and of the exit loop on inputs that hypothesis draws. ``benchmarks/fuzz_readers.py`` guides
the same readers by coverage, for hours."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_backend import StoredBackend, batch_of

from berxit.runtime.bundle import MANIFEST, parse_manifest
from berxit.runtime.data_files import SUFFIXES, read_records
from berxit.runtime.errors import BerxitError
from berxit.runtime.loop import exit_loop
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, exit_layers

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
READABLE = [suffix for suffix in SUFFIXES if suffix != ".parquet" or find_spec("pyarrow")]
CELLS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_parse_manifest_reads_or_rejects_any_value_anywhere(data: st.DataObject, manifest: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(manifest))
    *above, key = data.draw(st.sampled_from(list(_places(changed))))
    inside = changed
    for step in above:
        inside = inside[step]
    if data.draw(st.booleans()):
        inside[key] = data.draw(VALUES)
    else:
        del inside[key]
    with suppress(BerxitError):
        parse_manifest(json.dumps(changed).encode(), Path(MANIFEST))


@given(content=st.binary(max_size=200), suffix=st.sampled_from(READABLE))
@settings(max_examples=150, deadline=None)
def test_read_records_reads_or_rejects_any_bytes(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data{suffix}"
        path.write_bytes(content)
        with suppress(BerxitError):
            list(read_records(path, ["text"]))


@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), suffix=st.sampled_from([".csv", ".jsonl", ".json"])
)
@settings(max_examples=100, deadline=None)
def test_read_records_returns_what_was_written(rows: list[tuple[str, str]], suffix: str) -> None:
    records = [{"text": text, "label": label} for text, label in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data{suffix}"
        with path.open("w", encoding="utf-8", newline="") as stream:
            if suffix == ".csv":
                writer = csv.DictWriter(stream, ["text", "label"], quoting=csv.QUOTE_ALL)
                writer.writeheader()
                writer.writerows(records)
            elif suffix == ".json":
                json.dump(records, stream)
            else:
                stream.writelines(f"{json.dumps(record)}\n" for record in records)
        assert [record for _, record in read_records(path, ["text", "label"])] == records


@given(
    criterion=st.sampled_from(["confidence", "entropy", "lte", "patience", "agreement"]),
    share=st.floats(0, 1),
    rows=st.integers(1, 12),
    layers=st.integers(1, 6),
    classes=st.integers(2, 4),
    seed=st.integers(0, 2**32 - 1),
    off=st.sets(st.integers(1, 5)),
)
@settings(max_examples=150, deadline=None)
def test_exit_loop_regroups_rows_without_mixing_them(
    criterion: str, share: float, rows: int, layers: int, classes: int, seed: int, off: set[int]
) -> None:
    draw = np.random.default_rng(seed)
    logits = draw.normal(scale=2, size=(rows, layers, classes)).astype(np.float32)
    lte = draw.uniform(size=(rows, layers)).astype(np.float32)
    threshold = 1 + round(share * 3) if CRITERIA[criterion].counts else share
    policy = ExitPolicy(
        criterion,
        (threshold,) * (layers - 1),
        (1.0,) * layers,
        off=tuple(sorted(layer for layer in off if layer < layers)),
    )
    expected = exit_layers(policy, certainties(policy, logits, lte))
    found = np.zeros(rows, int)
    for result in exit_loop(StoredBackend(logits, lte), batch_of(rows), policy):
        np.testing.assert_array_equal(result.logits, logits[result.rows, result.layer - 1])
        assert not found[result.rows].any()  # no row runs after its exit
        found[result.rows[result.exits]] = result.layer
    np.testing.assert_array_equal(found, expected)


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of every value in a JSON document, except the document itself."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*above, key)
        yield from _places(inner, (*above, key))
