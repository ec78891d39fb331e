from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from berxit.runtime import EarlyExitRunner, ExitPolicy, Prediction
from berxit.runtime.golden import read_golden
from berxit.runtime.measurement import (
    Latency,
    Line,
    Measured,
    Minimum,
    measure,
    rounds_for,
    spread_thresholds,
    stored_pass,
)
from berxit.runtime.policies import certainties, exit_layers
from berxit.runtime.progress import Bar, Progress
from berxit.runtime.tokenization import Text


def point(layers: float, milliseconds: float) -> Measured:
    return Measured(Latency(milliseconds, 0, 0, 0), layers, (), 1, None)


class StubRunner:
    """Runner that exits at the depth of the policy, takes as many milliseconds, and records every call."""

    def __init__(self) -> None:
        self.backend = SimpleNamespace(threads=1, layers=4)
        self.policy = ExitPolicy.uniform("confidence", 0.5, layers=4)
        self.asked: list[tuple[Text, int]] = []

    def answer(self, texts: Sequence[Text], policy: ExitPolicy) -> list[Prediction]:
        (text,) = texts
        depth = getattr(policy, "depth", 2)
        self.asked.append((text, depth))
        return [Prediction(f"{text}{len(self.asked)}", {}, depth, 1.0, float(depth))]


def test_latency_computes_mean_and_percentiles() -> None:
    found = Latency.of(np.arange(1.0, 101.0))
    assert (found.mean, found.p50, found.p90, found.p99) == pytest.approx((50.5, 50.5, 90.1, 99.01))


def test_line_through_recovers_straight_line() -> None:
    line = Line.through([point(1, 3), point(2, 5), point(4, 9)])
    assert (line.intercept_ms, line.ms_per_layer, line.r_squared) == pytest.approx((1, 2, 1))


def test_line_through_uses_least_squares() -> None:
    line = Line.through([point(1, 1), point(2, 2), point(3, 2)])
    assert (line.intercept_ms, line.ms_per_layer, line.r_squared) == pytest.approx((2 / 3, 1 / 2, 3 / 4))


def test_line_through_accepts_constant_latency() -> None:
    assert Line.through([point(1, 4), point(2, 4)]).ms_per_layer == pytest.approx(0)


@pytest.mark.parametrize("criterion", ["confidence", "entropy", "lte"])
def test_spread_thresholds_spaces_average_exit_layers_evenly(criterion: str) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 5, 2)).astype(np.float32)
    lte = rng.random((300, 5)).astype(np.float32)
    policy = ExitPolicy.uniform(criterion, 0.5, layers=5)
    thresholds = spread_thresholds(policy, range(1, 6), logits, lte, 3)
    measured = certainties(policy, logits, lte)
    averages = [exit_layers(policy.with_threshold(t), measured).mean() for t in thresholds]
    assert averages == pytest.approx([2, 3, 4], abs=0.1)


def test_spread_thresholds_covers_existing_exits() -> None:
    logits = np.random.default_rng(0).normal(size=(500, 3, 2)).astype(np.float32)
    policy, exits = ExitPolicy.uniform("confidence", 0.5, layers=12), (2, 4, 12)
    thresholds = spread_thresholds(policy, exits, logits, None, 3)
    measured = certainties(policy.at_exits(exits), logits, None)
    layers = np.array(exits)
    found = [layers[exit_layers(policy.at_exits(exits).with_threshold(t), measured) - 1].mean() for t in thresholds]
    assert found == pytest.approx([4.5, 7, 9.5], abs=0.2)


def test_spread_thresholds_returns_every_patience() -> None:
    policy = ExitPolicy.uniform("patience", 1, layers=5)
    assert spread_thresholds(policy, range(1, 6), np.zeros((3, 5, 2)), None, 7) == [1, 2, 3, 4]


def test_spread_thresholds_is_empty_for_constant_certainty() -> None:
    policy = ExitPolicy.uniform("confidence", 0.5, layers=3)
    assert spread_thresholds(policy, range(1, 4), np.zeros((4, 3, 2), dtype=np.float32), None, 7) == []


def test_spread_thresholds_is_empty_for_one_layer() -> None:
    policy = ExitPolicy.full_depth(1)
    assert spread_thresholds(policy, (1,), np.random.default_rng(0).normal(size=(4, 1, 2)), None, 7) == []


def test_stored_pass_contains_every_exit_of_every_input(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    golden = read_golden(bundle, runner.manifest)
    logits, lte = stored_pass(runner, golden.inputs)
    assert lte is not None
    np.testing.assert_allclose(logits, np.array(golden.logits), atol=1e-4)
    np.testing.assert_allclose(lte, np.array(golden.lte), atol=1e-4)


class Reported:
    """A bar that counts its steps."""

    def __init__(self, length: int) -> None:
        self.length, self.done, self.notes = length, 0, list[str]()

    def update(self, n_steps: int) -> None:
        self.done += n_steps

    def note(self, text: str) -> None:
        self.notes.append(text)


def reporting(bars: list[Reported]) -> Progress:
    """Appends every bar to ``bars``."""

    def progress(length: int) -> AbstractContextManager[Bar]:
        bars.append(Reported(length))
        return nullcontext(bars[-1])

    return progress


def test_measure_runs_every_policy_on_every_input() -> None:
    runner = StubRunner()
    policies = {"shallow": runner.policy.at_depth(1), "own": runner.policy, "deep": runner.policy.at_depth(4)}
    bars: list[Reported] = []
    seen: list[list[str]] = []

    def score(answers: Sequence[Prediction]) -> float:
        seen.append([str(answer.label)[0] for answer in answers])
        return len(answers) / 10

    measured = measure(
        runner,  # type: ignore[arg-type]
        ["a", "b"],
        policies,
        rounds=3,
        warmup=5,
        score=score,
        progress=reporting(bars),
    )
    found, noise = measured.points, measured.noise
    warm, asked = runner.asked[:5], runner.asked[5:]
    assert warm == [("a", 4), ("b", 4), ("a", 4), ("b", 4), ("a", 4)]
    each = Counter({(text, depth): 3 for text in "ab" for depth in (1, 2, 4)})
    assert Counter(asked) == each + Counter(
        {("a", 4): 6}
    )  # the first input at full depth, repeated to measure the noise
    assert [(bar.length, bar.done) for bar in bars] == [(18, 18)]
    assert (noise.repeats, noise.tail, noise.drift) == (6, 1, 1)

    bars.clear()
    minima = {"own": Minimum(0, 0.021), "deep": Minimum(7, 0.0)}  # 2 ms and 4 ms per query: 11 and 7 queries
    measure(
        runner,  # type: ignore[arg-type]
        ["a", "b"],
        policies,
        rounds=3,
        warmup=0,
        minima=minima,
        progress=reporting(bars),
    )
    # three further rounds of both, until both have enough
    assert [(bar.length, bar.done) for bar in bars] == [(18, 18), (12, 12)]
    assert bars[1].notes == ["further rounds of own, deep"]

    assert found["shallow"] == Measured(Latency(1, 1, 1, 1), 1.0, (6, 0, 0, 0), 6, 0.2)
    assert found["own"] == Measured(Latency(2, 2, 2, 2), 2.0, (0, 6, 0, 0), 6, 0.2)
    assert found["deep"] == Measured(Latency(4, 4, 4, 4), 4.0, (0, 0, 0, 6), 6, 0.2)
    assert seen == [["a", "b"]] * 3


def test_measure_shuffles_policies_per_input() -> None:
    runner = StubRunner()
    policies = {str(depth): runner.policy.at_depth(depth) for depth in (1, 2, 3, 4)}
    measure(runner, ["a", "b"], policies, rounds=10, warmup=0)  # type: ignore[arg-type]
    turns = [runner.asked[i : i + 4] for i in range(0, len(runner.asked), 5)]
    assert [{text for text, _ in turn} for turn in turns] == [{"a"}, {"b"}] * 10
    assert all(sorted(depth for _, depth in turn) == [1, 2, 3, 4] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 2


def test_measure_returns_no_score_without_labels() -> None:
    runner = StubRunner()
    measured = measure(runner, ["a"], {"own": runner.policy}, rounds=1, warmup=0)  # type: ignore[arg-type]
    assert measured.points["own"].score is None


@pytest.mark.parametrize(("queries", "rounds"), [(1, 1), (60, 1), (61, 2), (200, 4)])
def test_rounds_for_reaches_number_of_queries(queries: int, rounds: int) -> None:
    runner = StubRunner()
    assert rounds_for(runner, ["a"] * 60, 5, queries=queries, seconds=0) == rounds  # type: ignore[arg-type]
