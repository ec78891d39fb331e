"""Cases of the side-by-side benchmark: exit layers, and calibration on the other half of the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.side_by_side.cases import Labelled, growing_cases, labelled, random_cases
from benchmarks.side_by_side.contenders import Case, Schedule
from berxit.runtime import BerxitError, ExitPolicy
from berxit.runtime.bundle import read_manifest
from berxit.runtime.examples import Examples

BASE = ExitPolicy.full_depth(3)


def schedule(*depths: int) -> Schedule:
    return Schedule(BASE.criterion, BASE.thresholds, BASE.temperatures, depths=depths)


def test_schedule_exits_rows_at_their_depths() -> None:
    policy = schedule(3, 1, 2, 1)
    assert policy.exits(1, np.zeros(4)).tolist() == [False, True, False, True]
    assert policy.exits(2, np.zeros(2)).tolist() == [False, True]
    assert policy.exits(3, np.zeros(1)).tolist() == [True]


def test_case_calls_are_single_rows_or_one_batch() -> None:
    case = Case.of("two", [[1, 2], [3]], schedule(1, 3), 0)
    assert [(batch.input_ids.tolist(), policy.depths) for batch, policy in case.calls()] == [  # type: ignore[attr-defined]
        ([[1, 2]], (1,)),
        ([[3]], (3,)),
    ]
    [(batch, policy)] = replace(case, together=True).calls()
    assert batch.input_ids.tolist() == [[1, 2], [3, 0]]
    assert policy.depths == (1, 3)  # type: ignore[attr-defined]
    assert len(case.calls(first=True)) == 1


@pytest.mark.parametrize(("layers", "depths"), [(3, (1, 2, 3)), (6, (1, 2, 3, 4, 5, 6)), (12, (2, 5, 8, 11))])
def test_random_cases_space_exit_layers_evenly(bundle: Path, layers: int, depths: tuple[int, ...]) -> None:
    manifest = read_manifest(bundle)
    cases = random_cases(replace(manifest, model=replace(manifest.model, layers=layers)), [8, 16], 40)
    assert list(cases) == ["8 tokens", "16 tokens", "batch of 32, 8 tokens"]
    assert cases["8 tokens"].policy.depths == depths  # type: ignore[attr-defined]
    assert max(max(row) for case in cases.values() for row in case.ids) < 40


def test_growing_cases_stop_at_maximum_length(bundle: Path) -> None:
    singles, batches = growing_cases(read_manifest(bundle), 40)
    assert [len(case.ids[0]) for case in singles] == [8, 16, 24, 32]
    assert [(len(case.ids), len(case.ids[0])) for case in batches] == [(32, 8), (32, 32)]


def halves(rows: int = 1200) -> tuple[Labelled, np.ndarray]:
    """Rows on which a certain exit 1 is correct for even row numbers and wrong for odd ones."""
    labels = np.arange(rows) // 2 % 2
    sure = np.where(np.arange(rows) % 2 == 0, labels, 1 - labels)
    logits = np.zeros((rows, 2, 2), dtype=np.float32)
    logits[np.arange(rows), 0, sure] = 3 + np.random.default_rng(0).random(rows)
    logits[np.arange(rows), 1, labels] = 5
    case = Case.of("scores", [[1] * (1 + row) for row in range(rows)], ExitPolicy.full_depth(2), 0)
    return Labelled(Examples(["a"] * rows, labels), case, False, "accuracy"), logits


def test_policies_calibrate_each_half_on_the_other(tmp_path: Path) -> None:
    rows, logits = halves()
    policies = rows.policies(logits, None, tmp_path, logits[:, -1])
    layers = rows.exit_layers_of(policies, logits, None)
    assert (
        layers[rows.half == 0] == 2
    ).mean() >= 0.98  # calibrated on odd rows, where exit 1 is wrong; 1% of the score may be lost
    assert (layers[rows.half == 1] == 1).mean() >= 0.98  # calibrated on even rows, where exit 1 is correct


def test_timed_rows_have_exit_distribution_of_their_half() -> None:
    rows, _ = halves(200)
    layers = np.where(np.arange(200) < 50, 1, 2)
    cases = rows.timed(ExitPolicy.full_depth(2), layers)
    assert [(name, len(case.ids)) for name, case in cases.items()] == [("inputs", 24), ("batch of 32, inputs", 32)]
    chosen = [len(row) - 1 for row in cases["inputs"].ids]
    assert all(row % 2 for row in chosen)
    assert sum(layers[row] == 1 for row in chosen) == 6  # a quarter, as in the whole half


def test_labelled_rejects_too_few_rows(bundle: Path, data_folder: Path) -> None:
    manifest = read_manifest(bundle)
    assert len(labelled(bundle, manifest, data_folder, "dev", None).examples) == 48
    with pytest.raises(BerxitError, match="3 rows are too few to calibrate"):
        labelled(bundle, manifest, data_folder, "dev", 3)
