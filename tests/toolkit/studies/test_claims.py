"""Areas, intervals and verdicts on passes with known differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from berxit.toolkit.studies.claims import FAILS, HOLDS, UNDECIDED, Claim, Side, interval, judge
from berxit.toolkit.studies.operating import operating
from berxit.toolkit.studies.reference import Reference
from berxit.toolkit.studies.runs import Group, StudyRun
from berxit.train.evaluation import Predictions
from berxit.train.resampling import RowBootstrap
from berxit.train.sweeps import LAYER_WISE, sweep
from tests.toolkit.studies.hand_made_runs import run_of

ROWS = 300
LABELS = np.arange(ROWS) % 2


def accurate(scores: list[float], seed: int, noise: float = 0.01) -> Predictions:
    """Layers with about these accuracies, on balanced labels: the constant prediction scores 0.5."""
    rng = np.random.default_rng(seed)
    shares = np.clip(scores + rng.normal(size=len(scores)) * noise, 0, 1)
    right = np.argsort(rng.uniform(size=(ROWS, len(scores))), axis=0) < np.round(ROWS * shares)
    sign = np.where(right, 1, -1) * np.where(LABELS == 1, 1, -1)[:, None]
    size = 1 + rng.exponential(size=right.shape)
    return Predictions(np.stack([0 * size, size * sign], -1).astype(np.float32), None, LABELS, "accuracy")


def side(name: str, passes: list[Predictions], score: float = 0.9) -> Side:
    runs = tuple(run_of(each, name, seed=seed) for seed, each in enumerate(passes))
    sweeps = tuple(sweep(each, LAYER_WISE) for each in passes)
    return Side(name, runs, sweeps, Reference(score, "as given", "accuracy", 0.5), RowBootstrap(ROWS, "accuracy"))


def judged(first: list[float], second: list[float], seeds: int = 3) -> Claim:
    passes = [
        [accurate(scores, seed) for seed in range(i * 10, i * 10 + seeds)] for i, scores in ((1, first), (2, second))
    ]
    return judge(side("A", passes[0]), side("B", passes[1]), "m")


def test_judge_decides_a_large_difference_in_both_directions() -> None:
    high, low = [0.6, 0.85, 0.9], [0.6, 0.65, 0.9]
    assert judged(high, low).verdict == HOLDS
    assert judged(low, high).verdict == FAILS
    found = judged(high, low)
    assert found.difference.low < found.difference.value < found.difference.high
    assert found.above == pytest.approx(0.2 / 0.9 * 100, rel=0.2)  # two triangles of one layer and 22% height


def test_judge_is_undecided_within_chance_and_with_one_seed() -> None:
    assert judged([0.6, 0.75, 0.9], [0.6, 0.74, 0.9]).verdict == UNDECIDED
    one = judged([0.6, 0.85, 0.9], [0.6, 0.65, 0.9], seeds=1)
    assert (one.verdict, one.seeds) == (UNDECIDED, (1, 1))
    assert one.difference.low > 0  # the interval of the rows alone


def test_judge_counts_scores_below_the_constant_prediction_as_that_score() -> None:
    """Both curves are at or below 0.5 until layer 2, so they are equal there."""
    first, second = (accurate([score, score, 0.9], 1, noise=0) for score in (0.5, 0.3))
    found = judge(side("A", [first]), side("B", [second]), "m")
    expected = 0.5 * 0.4 - 0.5 * (0.9 - 0.5) * (0.9 - 0.5) / 0.6  # triangles above the floor, layers 2 to 3
    assert found.above == pytest.approx(100 / 0.9 * expected, abs=0.01)
    flat = judge(side("A", [accurate([0.5, 0.5, 0.5], 1, 0)]), side("B", [accurate([0.2, 0.3, 0.1], 2, 0)]), "m")
    assert (flat.above, flat.below, flat.verdict) == (0, 0, UNDECIDED)


def test_judge_without_a_run_above_the_constant_prediction_is_undecided() -> None:
    good = side("A", [accurate([0.6, 0.9], seed) for seed in (1, 2)])
    assert judge(good, side("B", []), "m").verdict == UNDECIDED


def test_verdicts_are_rarely_wrong_without_a_difference() -> None:
    """Both sides are the same training, so 5% of claims may be decided."""
    decided = 0
    for trial in range(40):
        passes = [accurate([0.6, 0.75, 0.9], 100 + 4 * trial + i, noise=0.03) for i in range(4)]
        decided += judge(side("A", passes[:2]), side("B", passes[2:]), "m").verdict != UNDECIDED
    assert decided <= 6  # 99.5% of the binomial distribution


def test_interval_of_seeds_alone_is_the_t_interval_of_welch() -> None:
    first, second = np.array([1.0, 2.0, 4.0]), np.array([0.0, 0.5])
    found = interval(first.mean() - second.mean(), np.zeros(500), [first, second])
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_interval_of_rows_alone_is_that_of_the_bootstrap() -> None:
    rows = np.random.default_rng(0).normal(3, 2, size=500)
    found = interval(3.0, rows, [np.array([3.0])])
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 499) * rows.std(ddof=1))


def of_group(predictions: Predictions) -> Group:
    run: StudyRun = run_of(predictions, "joint", seed=1)
    return Group("m", "joint", (run,))


def test_operating_measures_gain_above_the_constant_prediction() -> None:
    """Layer 1 scores 0.58 of 0.9: 64% of the score, but 20% of the gain."""
    group = of_group(accurate([0.58, 0.88, 0.9], 3, noise=0))
    reference = Reference(0.9, "as given", "accuracy", 0.5)
    found = operating(
        group, LAYER_WISE, reference, RowBootstrap(ROWS, "accuracy"), 1.0, costs=(2 / 3,), gains=(60.0, 5.0)
    )
    assert found.at_cost[0].score == pytest.approx(0.58, abs=0.01)
    assert [each.saved.value for each in found.at_gain] == pytest.approx([100 / 3, 200 / 3])
    assert [each.kept.value for each in found.at_gain] == pytest.approx([95, 20], abs=1)
    assert found.at_gain[1].kept.low < 20 < found.at_gain[1].kept.high


def test_operating_has_no_gain_if_100_percent_is_not_above_the_constant_prediction() -> None:
    group = of_group(accurate([0.5, 0.5], 3, noise=0))
    reference = Reference(0.5, "as given", "accuracy", 0.5)
    found = operating(group, LAYER_WISE, reference, RowBootstrap(ROWS, "accuracy"), 1.0)
    assert found.at_gain == []
    assert found.at_cost[-1].relative is None  # 70% of two layers
