"""An answer in time, on a clock that the test turns itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stored_backend import StoredBackend

from runtime import EarlyExitRunner, ExitPolicy, InputError
from runtime.deadline import MARGIN, Deadline
from runtime.loop import exit_loop
from runtime.tokenization import TokenBatch

NEVER_SURE = ExitPolicy.uniform("confidence", 1.0, 4)
BATCH = TokenBatch.pad([[1, 2]], [[0, 0]], 0)


class Clock:
    """Every look at it takes ``step`` seconds: one at the start, one after each layer."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def layers_run(milliseconds: float, layer_seconds: float = 0.001, policy: ExitPolicy = NEVER_SURE) -> int:
    backend = StoredBackend(np.zeros((1, 4, 2), dtype=np.float32), None)
    deadline = Deadline(policy, backend.exits, milliseconds, 0.0, Clock(layer_seconds))
    return max(result.layer for result in exit_loop(backend, BATCH, deadline))


@pytest.mark.parametrize(
    ("milliseconds", "layers"),
    # after layer i the clock shows i + 1 ms, and the next may take 1.25 ms more
    [(0.5, 1), (3.2, 1), (3.3, 2), (4.2, 2), (4.3, 3), (5.3, 4), (100.0, 4)],
)
def test_the_deepest_layer_that_fits_answers(milliseconds: float, layers: int) -> None:
    assert MARGIN == 1.25
    assert layers_run(milliseconds) == layers


def test_a_sure_row_leaves_before_its_deadline() -> None:
    assert layers_run(1000.0, policy=ExitPolicy.uniform("confidence", 0.1, 4)) == 1


def test_the_slowest_layer_so_far_is_what_the_next_is_expected_to_take() -> None:
    times = iter([0.0, 0.001, 0.006, 0.007])  # layers of 1, 5 and 1 ms
    backend = StoredBackend(np.zeros((1, 4, 2), dtype=np.float32), None)
    deadline = Deadline(NEVER_SURE, backend.exits, 13.0, 0.0, lambda: next(times))
    assert max(result.layer for result in exit_loop(backend, BATCH, deadline)) == 3


@pytest.mark.parametrize(("milliseconds", "layers"), [(7.9, 1), (8.1, 4), (100.0, 4)])
def test_a_segment_of_several_layers_is_expected_to_take_as_many_times_one(milliseconds: float, layers: int) -> None:
    times = iter([0.0, 0.002, 0.008])  # layer 1 took 2 ms; layers 2 to 4 may take 3 x 2 x 1.25 = 7.5 ms, until 9.5
    backend = StoredBackend(np.zeros((1, 4, 2), dtype=np.float32), None)
    backend.exits = (1, 4)
    deadline = Deadline(NEVER_SURE, backend.exits, milliseconds + 1.5, 0.0, lambda: next(times))
    assert max(result.layer for result in exit_loop(backend, BATCH, deadline)) == layers


@pytest.mark.parametrize("milliseconds", [0.0, -1.0, float("nan")])
def test_a_deadline_that_cannot_be_is_refused(milliseconds: float, bundle: Path) -> None:
    with pytest.raises(InputError, match="deadline_ms is"):
        EarlyExitRunner.load(bundle).predict("the cat sat", deadline_ms=milliseconds)


def test_a_runner_with_all_the_time_in_the_world_answers_as_without_a_deadline(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle)
    without, within = runner.predict("the cat sat"), runner.predict("the cat sat", deadline_ms=1e6)
    assert (without.label, without.exit_layer) == (within.label, within.exit_layer)
    assert runner.predict("the cat sat", threshold=1.0, deadline_ms=1e-6).exit_layer == 1
