from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored_backend import StoredBackend

from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import DataFile, read_manifest, sha256
from berxit.runtime.errors import BerxitError
from berxit.runtime.golden import Golden, differences, read_golden, write_golden
from berxit.runtime.json_data import parse

LOGITS = np.array([[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
LTE = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
GOLDEN = Golden(
    texts=(("a cat",), ("a dog", "a cat sat")),
    input_ids=((2, 6, 3), (2, 6, 7, 3, 8)),
    token_type_ids=((0, 0, 0), (0, 0, 0, 0, 1)),
    logits=tuple(tuple(map(tuple, row)) for row in LOGITS.tolist()),
    lte=tuple(map(tuple, LTE.tolist())),
)


def test_read_golden_returns_what_write_golden_wrote(bundle: Path, tmp_path: Path) -> None:
    write_golden(GOLDEN, tmp_path / "golden.json")
    stored = DataFile("golden.json", sha256(tmp_path / "golden.json"))
    assert read_golden(tmp_path, replace(read_manifest(bundle), golden=stored)) == GOLDEN


def test_read_golden_rejects_truncated_file(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_bytes((bundle / "golden.json").read_bytes()[:100])
    stored = DataFile("golden.json", sha256(tmp_path / "golden.json"))
    with pytest.raises(BerxitError, match=r"golden\.json is damaged"):
        read_golden(tmp_path, replace(read_manifest(bundle), golden=stored))


def test_read_golden_rejects_file_of_another_bundle(bundle: Path, tmp_path: Path) -> None:
    write_golden(GOLDEN, tmp_path / "golden.json")
    with pytest.raises(BerxitError, match=r"golden\.json: checksum differs"):
        read_golden(tmp_path, read_manifest(bundle))


def test_golden_inputs_are_texts_and_pairs() -> None:
    assert GOLDEN.inputs == ["a cat", ("a dog", "a cat sat")]


def test_golden_batch_is_right_padded() -> None:
    batch = GOLDEN.batch(9)
    assert batch.input_ids.tolist() == [[2, 6, 3, 9, 9], [2, 6, 7, 3, 8]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_differences_of_equal_outputs_are_zero() -> None:
    assert differences(StoredBackend(LOGITS, LTE), GOLDEN, 0) == [0, 0, 0]


def test_differences_returns_maximum_per_exit() -> None:
    logits, lte = LOGITS.copy(), LTE.copy()
    logits[1, 1, 0] -= 0.25
    lte[0, 1] += 0.125
    lte[1, 2] -= 0.5
    assert differences(StoredBackend(logits, lte), GOLDEN, 0) == pytest.approx([0, 0.25, 0.5])


def test_differences_divides_only_logits_by_scale() -> None:
    logits, lte = LOGITS.copy(), LTE.copy()
    logits[1, 1, 0] -= 50.0
    lte[1, 2] -= 0.5
    assert differences(StoredBackend(logits, lte), GOLDEN, 0, scale=100.0) == pytest.approx([0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("largest", "regression", "scale"),
    [
        (5.0, False, 1.0),
        (0.5, False, 1.0),
        (50.0, False, 10.0),
        (-4e5, True, 8e4),
        (1e-6, True, 2e-7),
        (0.0, True, 1.0),
    ],
)
def test_golden_scale_follows_largest_logit(largest: float, regression: bool, scale: float) -> None:
    golden = dataclasses.replace(GOLDEN, logits=(((0.0,), (largest,)),))
    assert golden.scale(regression=regression) == pytest.approx(scale)


@pytest.mark.parametrize("at", ["logits", "lte"])
def test_differences_rejects_nan(at: str) -> None:
    outputs = {"logits": LOGITS.copy(), "lte": LTE.copy()}
    outputs[at][0, 1] = math.nan
    with pytest.raises(BerxitError, match=r"backend 'stored', layer 2: .*nan"):
        differences(StoredBackend(**outputs), GOLDEN, 0)


def test_differences_compares_logits_only_without_lte() -> None:
    golden = Golden(GOLDEN.texts, GOLDEN.input_ids, GOLDEN.token_type_ids, GOLDEN.logits, None)
    assert differences(StoredBackend(LOGITS + 0.5), golden, 0) == [0.5, 0.5, 0.5]


def test_bundle_segments_reproduce_golden_outputs(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    found = differences(open_backend(bundle, manifest, 1), read_golden(bundle, manifest), manifest.model.pad_token_id)
    assert len(found) == 3
    assert max(found) <= manifest.parity.atol


def test_golden_of_older_bundle_has_no_tokenization(bundle: Path) -> None:
    """Older versions wrote no tokenization."""
    data = json.loads((bundle / "golden.json").read_text(encoding="utf-8"))
    del data["tokenization"]
    golden = parse(Golden, data, "golden.json")
    assert golden.tokenization == ()
    assert [case.text for case in golden.tokenized] == golden.inputs


def test_golden_inputs_exclude_tokenization_texts(bundle: Path) -> None:
    golden = read_golden(bundle, read_manifest(bundle))
    assert golden.tokenization
    assert len(golden.inputs) == len(golden.logits) == len(golden.batch(0))
