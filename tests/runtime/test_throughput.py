from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from berxit.runtime import throughput
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.throughput import BATCH_SIZES, BATCHES, measure_throughput
from berxit.runtime.tokenization import Text


class Runner:
    """Runner that needs as many seconds per row as its policy has layers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[int, int]] = []

    def answer(self, texts: Sequence[Text], policy: ExitPolicy) -> None:
        self.calls.append((len(texts), policy.layers))
        self.now += len(texts) * policy.layers


def test_throughput_counts_inputs_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner()
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: runner.now)
    policies = {"calibrated": ExitPolicy.full_depth(2), "full depth": ExitPolicy.full_depth(4)}
    found = measure_throughput(runner, ["a", "b"], policies, seconds=0)  # type: ignore[arg-type]
    assert [(each.point, each.batch_size, each.inputs_per_second) for each in found] == [
        (name, size, pytest.approx(rate))
        for size in BATCH_SIZES
        for name, rate in (("calibrated", 1 / 2), ("full depth", 1 / 4))
    ]
    assert {each.batches for each in found} == {BATCHES}
    assert Counter(runner.calls) == {(size, layers): BATCHES + 1 for size in BATCH_SIZES for layers in (2, 4)}


def test_throughput_takes_the_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner()
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: runner.now)
    found = measure_throughput(runner, ["a"], {"only": ExitPolicy.full_depth(2)}, seconds=1600)  # type: ignore[arg-type]
    assert [each.batches for each in found] == [49, 12]  # 800 s of 16 and of 64 s each, without the first batch
