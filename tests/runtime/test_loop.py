from __future__ import annotations

import math

import numpy as np
import pytest
from stored_backend import StoredBackend, batch_of

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.loop import exit_loop
from berxit.runtime.policies import ExitPolicy

LTE = np.array([[0.1, 0.2, 0.3, 0.4], [0.9, 0.0, 0.0, 0.0], [0.1, 0.2, 0.9, 0.0], [0.1, 0.9, 0.0, 0.0]])
LOGITS = np.arange(4 * 4 * 2, dtype=np.float32).reshape(4, 4, 2)
HALF = ExitPolicy.uniform("lte", 0.5, layers=4)


def test_exit_loop_keeps_order_of_continuing_rows() -> None:
    backend = StoredBackend(LOGITS, LTE)
    results = list(exit_loop(backend, batch_of(4), HALF))
    assert backend.ran == [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (3, [0, 2]), (4, [0])]
    assert [result.rows.tolist() for result in results] == [[0, 1, 2, 3], [0, 2, 3], [0, 2], [0]]
    assert [result.rows[result.exits].tolist() for result in results] == [[1], [3], [2], [0]]


def test_exit_loop_results_name_their_rows() -> None:
    third = list(exit_loop(StoredBackend(LOGITS, LTE), batch_of(4), HALF))[2]
    assert third.layer == 3
    np.testing.assert_array_equal(third.logits, LOGITS[[0, 2], 2])
    np.testing.assert_array_equal(third.certainty, [0.3, 0.9])


def test_exit_loop_stops_after_last_exit() -> None:
    backend = StoredBackend(LOGITS[1:2], LTE[1:2])
    assert len(list(exit_loop(backend, batch_of(1), HALF))) == 1
    assert backend.ran == [(1, [0])]


def test_exit_loop_runs_layers_lazily() -> None:
    backend = StoredBackend(LOGITS, LTE)
    results = exit_loop(backend, batch_of(4), HALF.at_depth(4))
    next(results)
    next(results)
    assert [layer for layer, _ in backend.ran] == [1, 2]


def test_exit_loop_exits_all_rows_at_last_layer() -> None:
    results = list(exit_loop(StoredBackend(LOGITS, LTE), batch_of(4), HALF.with_threshold(1.0)))
    assert [result.exits.tolist() for result in results] == [[False] * 4] * 3 + [[True] * 4]


def test_exit_loop_keeps_patience_of_continuing_rows() -> None:
    classes = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 1, 1, 0, 0]])
    logits = np.eye(2, dtype=np.float32)[classes]
    policy = ExitPolicy("patience", (2, 2, 2, 2), (1.0,) * 5)
    left = {}
    for result in exit_loop(StoredBackend(logits), batch_of(4), policy):
        left.update(dict.fromkeys(result.rows[result.exits].tolist(), result.layer))
    assert left == {0: 3, 2: 3, 1: 5, 3: 5}


def test_exit_loop_selects_patience_by_row() -> None:
    classes = np.array([[0, 0, 0, 0], [0, 1, 1, 1]])
    logits = np.eye(2, dtype=np.float32)[classes]
    policy = ExitPolicy("patience", (1, 1, 1), (1.0,) * 4)
    results = list(exit_loop(StoredBackend(logits), batch_of(2), policy))
    assert [result.certainty.tolist() for result in results] == [[0, 0], [1, 0], [1]]
    assert [result.rows.tolist() for result in results] == [[0, 1], [0, 1], [1]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rows", [1, 4])
def test_exit_loop_rejects_logits_that_are_not_finite(bad: float, rows: int) -> None:
    logits = LOGITS.copy()
    logits[rows - 1, 1, 0] = bad
    with pytest.raises(BerxitError, match="backend 'stored', layer 2: logits are not finite"):
        list(exit_loop(StoredBackend(logits), batch_of(rows), ExitPolicy.uniform("patience", 3, layers=4)))


def test_exit_loop_accepts_large_finite_logits() -> None:
    list(
        exit_loop(
            StoredBackend(np.full((2, 4, 2), 1e30, np.float32)), batch_of(2), ExitPolicy.uniform("patience", 3, 4)
        )
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.01, 2.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_exit_loop_rejects_lte_certainty_out_of_range(bad: float, rows: int) -> None:
    lte = np.full((4, 4), 0.25)
    lte[rows - 1, 1] = bad
    with pytest.raises(BerxitError, match=r"backend 'stored', layer 2: LTE certainties are not in \[0, 1\]"):
        list(exit_loop(StoredBackend(LOGITS, lte), batch_of(rows), HALF))


@pytest.mark.parametrize("where", ["embed", "layer", "keep"])
def test_exit_loop_converts_backend_errors(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = StoredBackend(LOGITS, LTE)

    def fails(*_: object) -> None:
        raise RuntimeError("Non-zero status code\nreturned while running Gather")

    monkeypatch.setattr(backend, where, fails)
    place = {"embed": "the embeddings segment", "layer": "layer 1", "keep": r"layer 1 \(removing rows that exited\)"}
    with pytest.raises(
        BerxitError, match=rf"backend 'stored' failed at {place[where]}: Non-zero status code\."
    ) as error:
        list(exit_loop(backend, batch_of(4), HALF))
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, RuntimeError)


def test_exit_loop_keeps_berxit_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, told = StoredBackend(LOGITS, LTE), InputError("too long")

    def fails(*_: object) -> None:
        raise told

    monkeypatch.setattr(backend, "layer", fails)
    with pytest.raises(InputError) as error:
        list(exit_loop(backend, batch_of(4), HALF))
    assert error.value is told
