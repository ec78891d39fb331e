"""Deadlines, with a simulated clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_backend import StoredBackend

from berxit.runtime import EarlyExitRunner, ExitPolicy, InputError
from berxit.runtime.deadline import FIRST_MARGIN, LARGEST_MARGIN, RATE, RESERVE_S, Deadline, StepEstimator
from berxit.runtime.loop import exit_loop
from berxit.runtime.tokenization import TokenBatch

FULL_DEPTH = ExitPolicy.uniform("confidence", 1.0, 4)
BATCH = TokenBatch.pad([[1, 2]], [[0, 0]], 0)


def layers_run(
    milliseconds: float,
    layers_ms: Sequence[float] = (1, 1, 1, 1),
    policy: ExitPolicy = FULL_DEPTH,
    estimator: StepEstimator | None = None,
    opening: Callable[[int], float] | None = None,
    exits: tuple[int, ...] = (1, 2, 3, 4),
) -> int:
    """Last layer that runs with a deadline of ``milliseconds``, if the segments take ``layers_ms``."""
    backend = StoredBackend(np.zeros((1, 4, 2), dtype=np.float32), None)
    backend.exits = exits
    times = iter(np.cumsum([0.0, *layers_ms]) / 1e3)
    deadline = Deadline(
        policy, exits, milliseconds / 1e3, estimator or StepEstimator(), opening, lambda: float(next(times))
    )
    return max(result.layer for result in exit_loop(backend, BATCH, deadline))


@pytest.mark.parametrize(
    ("milliseconds", "layers"),
    # After layer i the clock is at i ms; the next layer is expected to take 2 ms.
    [(0.5, 1), (2.9, 1), (3.1, 2), (3.9, 2), (4.1, 3), (5.1, 4), (100.0, 4)],
)
def test_deadline_exits_at_deepest_layer_in_time(milliseconds: float, layers: int) -> None:
    assert FIRST_MARGIN == 2.0
    assert layers_run(milliseconds) == layers


def test_deadline_keeps_exits_of_policy() -> None:
    assert layers_run(1000.0, policy=ExitPolicy.uniform("confidence", 0.1, 4)) == 1


def test_deadline_expects_slowest_layer_so_far() -> None:
    assert layers_run(16.9, (1, 5, 1, 1)) == 3
    assert layers_run(17.1, (1, 5, 1, 1)) == 4


@pytest.mark.parametrize(("milliseconds", "layers"), [(13.9, 1), (14.1, 4), (100.0, 4)])
def test_deadline_multiplies_time_by_layers_of_segment(milliseconds: float, layers: int) -> None:
    """Layer 1 takes 2 ms. Layers 2 to 4 are expected to take 3 x 2 x 2 = 12 ms, until 14 ms."""
    assert layers_run(milliseconds, (2, 6), exits=(1, 4)) == layers


def rows_run(ends_ms: Sequence[float], layers_ms: Sequence[float], estimator: StepEstimator) -> list[int]:
    """Exit layer of each row of a batch with a deadline for every row, if no row exits by its certainty."""
    backend = StoredBackend(np.zeros((len(ends_ms), 4, 2), dtype=np.float32), None)
    times = iter(np.cumsum([0.0, *layers_ms]) / 1e3)
    ends = np.array(ends_ms) / 1e3
    deadline = Deadline(FULL_DEPTH, backend.exits, ends, estimator, clock=lambda: float(next(times)))
    batch = TokenBatch.pad([[1, 2]] * len(ends), [[0, 0]] * len(ends), 0)
    found = {int(r): result.layer for result in exit_loop(backend, batch, deadline) for r in result.rows[result.exits]}
    return [found[row] for row in range(len(ends))]


def test_deadline_of_each_row_stops_only_that_row() -> None:
    estimator = StepEstimator()
    assert rows_run([4.1, math.inf, 0.5, 3.1], (1, 1, 1, 1), estimator) == [3, 4, 1, 2]
    assert estimator.margin < FIRST_MARGIN  # the third row was late at the first exit, which no margin prevents


def test_estimator_observes_a_batch_once_however_many_rows_missed_their_deadline() -> None:
    estimator = StepEstimator(0.02)
    assert rows_run([10.0, 11.0, 12.0, 99.0], (1, 1, 30, 1), estimator) == [3, 3, 3, 4]
    assert estimator.margin == pytest.approx(FIRST_MARGIN * math.exp(RATE * 0.99))


def test_estimator_raises_margin_after_missed_deadline_and_lowers_it_after_others() -> None:
    estimator = StepEstimator(0.02)
    layers_run(10.0, (1, 1, 30, 1), estimator=estimator)
    assert estimator.margin == pytest.approx(FIRST_MARGIN * math.exp(RATE * 0.99))
    layers_run(1000.0, estimator=estimator)
    assert estimator.margin == pytest.approx(FIRST_MARGIN * math.exp(RATE * 0.98))


def test_estimator_observes_call_that_exited_in_time() -> None:
    """Otherwise a margin at which no call continues would never decrease."""
    estimator = StepEstimator(0.5)
    for _ in range(100):
        layers_run(1.5, estimator=estimator)
    assert estimator.margin == 1.0


def test_estimator_ignores_late_first_exit() -> None:
    estimator = StepEstimator()
    assert layers_run(10.0, (20, 1, 1, 1), estimator=estimator) == 1
    assert estimator.margin == pytest.approx(FIRST_MARGIN)


def test_estimator_limits_effect_of_stall() -> None:
    margins = []
    for stall in (30, 30_000):
        estimator = StepEstimator()
        layers_run(10.0, (1, 1, stall, 1), estimator=estimator)
        margins.append(estimator.margin)
    assert margins[0] == margins[1] < 1.3 * FIRST_MARGIN


def test_estimator_keeps_margin_in_range() -> None:
    estimator = StepEstimator(0.5)
    for _ in range(1000):
        estimator.observe(True)
    assert estimator.margin == pytest.approx(LARGEST_MARGIN)
    for _ in range(1000):
        estimator.observe(False)
    assert estimator.margin == 1.0


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, math.nan, math.inf])
def test_load_rejects_miss_probability_out_of_range(probability: float, bundle: Path) -> None:
    with pytest.raises(InputError, match="miss_probability is"):
        EarlyExitRunner.load(bundle, miss_probability=probability)


def test_deadline_includes_time_for_opening_a_layer() -> None:
    def opening(layer: int) -> float:
        return 0.05 if layer == 3 else 0.0

    estimator = StepEstimator()
    assert layers_run(50.0, estimator=estimator, opening=opening) == 2
    assert layers_run(60.0, (1, 1, 51, 1), estimator=estimator, opening=opening) == 4
    before = estimator.margin
    assert layers_run(60.0, (1, 1, 80, 1), estimator=estimator, opening=opening) == 3
    assert estimator.margin == before  # the time for opening a file does not predict other segments


def test_lazy_runner_opens_layer_only_if_its_time_is_known(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1, lazy=True)
    opening = runner.backend.opening_seconds
    assert opening(1) == math.inf
    runner.predict("the cat sat", threshold=0.0)
    assert opening(1) == 0.0
    assert 0 < opening(3) < math.inf
    assert runner.predict("the cat sat", threshold=1.0, deadline_ms=1e3 * opening(2)).exit_layer == 1
    assert runner.predict("the cat sat", threshold=1.0, deadline_ms=1e6).exit_layer == 3
    assert opening(3) == 0.0


@pytest.mark.parametrize("milliseconds", [0.0, -1.0, float("nan")])
def test_predict_rejects_deadline_that_is_not_positive(milliseconds: float, bundle: Path) -> None:
    with pytest.raises(InputError, match="deadline_ms is"):
        EarlyExitRunner.load(bundle).predict("the cat sat", deadline_ms=milliseconds)


def test_predict_with_long_deadline_equals_predict_without(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle)
    without, within = runner.predict("the cat sat"), runner.predict("the cat sat", deadline_ms=1e6)
    assert (without.label, without.exit_layer) == (within.label, within.exit_layer)
    assert runner.predict("the cat sat", threshold=1.0, deadline_ms=1e-6).exit_layer == 1


def test_predict_batch_splits_deadline_by_tokens(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stopped clock, the deadline of each part is proportional to its tokens."""
    runner = EarlyExitRunner.load(bundle, threads=1)
    runner.backend.tokens_at_once = 8
    ends = []

    class Noted(Deadline):
        def __init__(self, policy: ExitPolicy, exits: tuple[int, ...], end: float, *more: Any) -> None:
            ends.append(end)
            super().__init__(policy, exits, end, *more)

    monkeypatch.setattr("berxit.runtime.runner.Deadline", Noted)
    monkeypatch.setattr("berxit.runtime.runner.time.perf_counter", lambda: 100.0)
    texts = ["cat", "the cat", "the cat sat on the mat"]  # 3, 4 and 8 tokens; the first two form one part
    answers = runner.predict_batch(texts, deadline_ms=15_000)
    assert [end - 100 + RESERVE_S for end in ends] == pytest.approx([7.0, 15.0])
    assert len(answers) == 3
