"""An answer in time, on a clock that the test turns itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_backend import StoredBackend

from berxit.runtime import EarlyExitRunner, ExitPolicy, InputError
from berxit.runtime.deadline import EXCEEDED, REMEMBERED, RESERVE_S, UNKNOWN, Deadline, Pace
from berxit.runtime.loop import exit_loop
from berxit.runtime.tokenization import TokenBatch

NEVER_SURE = ExitPolicy.uniform("confidence", 1.0, 4)
BATCH = TokenBatch.pad([[1, 2]], [[0, 0]], 0)


def layers_run(
    milliseconds: float,
    layers_ms: Sequence[float] = (1, 1, 1, 1),
    policy: ExitPolicy = NEVER_SURE,
    pace: Pace | None = None,
    opening: Callable[[int], float] | None = None,
    exits: tuple[int, ...] = (1, 2, 3, 4),
) -> int:
    """The last layer that is run until ``milliseconds``: segments take ``layers_ms``."""
    backend = StoredBackend(np.zeros((1, 4, 2), dtype=np.float32), None)
    backend.exits = exits
    times = iter(np.cumsum([0.0, *layers_ms]) / 1e3)
    deadline = Deadline(policy, exits, milliseconds / 1e3, pace or Pace(), opening, lambda: float(next(times)))
    return max(result.layer for result in exit_loop(backend, BATCH, deadline))


@pytest.mark.parametrize(
    ("milliseconds", "layers"),
    # after layer i the clock shows i ms, and the next may take 1.25 ms more
    [(0.5, 1), (2.2, 1), (2.3, 2), (3.2, 2), (3.3, 3), (4.3, 4), (100.0, 4)],
)
def test_the_deepest_layer_that_fits_answers(milliseconds: float, layers: int) -> None:
    assert UNKNOWN == 1.25
    assert layers_run(milliseconds) == layers


def test_a_sure_row_leaves_before_its_deadline() -> None:
    assert layers_run(1000.0, policy=ExitPolicy.uniform("confidence", 0.1, 4)) == 1


def test_the_slowest_layer_so_far_is_what_the_next_is_expected_to_take() -> None:
    assert layers_run(13.0, (1, 5, 1, 1)) == 3
    assert layers_run(13.3, (1, 5, 1, 1)) == 4


@pytest.mark.parametrize(("milliseconds", "layers"), [(9.4, 1), (9.6, 4), (100.0, 4)])
def test_a_segment_of_several_layers_is_expected_to_take_as_many_times_one(milliseconds: float, layers: int) -> None:
    """Layer 1 takes 2 ms; layers 2 to 4 may take 3 x 2 x 1.25 = 7.5 ms, until 9.5."""
    assert layers_run(milliseconds, (2, 6), exits=(1, 4)) == layers


def test_what_layers_took_beyond_the_slowest_before_is_expected_again() -> None:
    pace = Pace()
    for _ in range(EXCEEDED):
        layers_run(1000.0, (1, 1, 3, 1), pace=pace)
    assert pace.margin == pytest.approx(3.0)
    assert layers_run(3.9, pace=pace) == 1
    assert layers_run(4.1, pace=pace) == 2


def test_a_rare_slow_layer_does_not_make_all_calls_shallow() -> None:
    pace = Pace()
    for _ in range(REMEMBERED):
        layers_run(1000.0, pace=pace)
    for _ in range(EXCEEDED - 1):
        layers_run(1000.0, (1, 1, 30, 1), pace=pace)
    assert pace.margin == pytest.approx(1.0)


def test_a_slow_moment_is_forgotten_even_where_nothing_goes_past_the_first_exit_since() -> None:
    pace = Pace()
    for _ in range(EXCEEDED):
        layers_run(1000.0, (1, 1, 9, 1), pace=pace)
    for _ in range(REMEMBERED):
        assert layers_run(1.5, pace=pace) == 1
    assert pace.margin == 1.0


def test_a_layer_that_must_be_loaded_is_reached_where_loading_fits() -> None:
    def opening(layer: int) -> float:
        return 0.05 if layer == 3 else 0.0

    pace = Pace()
    assert layers_run(50.0, pace=pace, opening=opening) == 2
    assert layers_run(60.0, (1, 1, 51, 1), pace=pace, opening=opening) == 4
    assert pace.margin == UNKNOWN  # loading says nothing of how steady layers are


def test_a_lazy_runner_loads_nothing_that_it_does_not_know_to_fit(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1, lazy=True)
    opening = runner.backend.opening_seconds  # type: ignore[attr-defined]
    assert opening(1) == math.inf
    runner.predict("the cat sat", threshold=0.0)
    assert opening(1) == 0.0
    assert 0 < opening(3) < math.inf
    assert runner.predict("the cat sat", threshold=1.0, deadline_ms=1e3 * opening(2)).exit_layer == 1
    assert runner.predict("the cat sat", threshold=1.0, deadline_ms=1e6).exit_layer == 3
    assert opening(3) == 0.0


@pytest.mark.parametrize("milliseconds", [0.0, -1.0, float("nan")])
def test_a_deadline_that_cannot_be_is_refused(milliseconds: float, bundle: Path) -> None:
    with pytest.raises(InputError, match="deadline_ms is"):
        EarlyExitRunner.load(bundle).predict("the cat sat", deadline_ms=milliseconds)


def test_a_runner_with_all_the_time_in_the_world_answers_as_without_a_deadline(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle)
    without, within = runner.predict("the cat sat"), runner.predict("the cat sat", deadline_ms=1e6)
    assert (without.label, without.exit_layer) == (within.label, within.exit_layer)
    assert runner.predict("the cat sat", threshold=1.0, deadline_ms=1e-6).exit_layer == 1


def test_parts_of_a_batch_share_what_is_left_of_the_deadline(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still: every part is given its tokens' share."""
    runner = EarlyExitRunner.load(bundle, threads=1)
    runner.backend.tokens_at_once = 8  # type: ignore[attr-defined]
    ends = []

    class Noted(Deadline):
        def __init__(self, policy: ExitPolicy, exits: tuple[int, ...], end: float, *more: Any) -> None:
            ends.append(end)
            super().__init__(policy, exits, end, *more)

    monkeypatch.setattr("berxit.runtime.runner.Deadline", Noted)
    monkeypatch.setattr("berxit.runtime.runner.time.perf_counter", lambda: 100.0)
    texts = ["cat", "the cat", "the cat sat on the mat"]  # 3, 4 and 8 tokens; the short ones go together
    answers = runner.predict_batch(texts, deadline_ms=15_000)
    assert [end - 100 + RESERVE_S for end in ends] == pytest.approx([7.0, 15.0])
    assert len(answers) == 3
