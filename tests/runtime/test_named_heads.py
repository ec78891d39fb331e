"""Named heads: their labels, numbers, decisions and metrics."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from berxit.runtime.heads import MOST_CLASSES, MOST_HEADS, Head, classes_in, heads_of, heads_problems, pack
from berxit.runtime.kinds import KINDS
from berxit.runtime.metrics import METRICS
from berxit.runtime.policies import softmax

LABELS = ("mood=bad", "mood=good", "mood=so=so", "urgent=no", "urgent=yes")


def test_heads_of_reads_the_heads_from_the_labels() -> None:
    assert heads_of(LABELS) == (Head("mood", ("bad", "good", "so=so"), 0), Head("urgent", ("no", "yes"), 3))


def test_pack_keeps_the_largest_models() -> None:
    classes = np.random.default_rng(0).integers(0, MOST_CLASSES, (3, 50, MOST_HEADS))
    classes[0, 0] = MOST_CLASSES - 1
    numbers = pack(classes, range(MOST_HEADS))
    assert numbers.min() > 0
    assert (classes_in(numbers, MOST_HEADS) == classes).all()


def test_decisions_are_a_softmax_over_each_head() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    kind = KINDS["heads"].of(LABELS)
    decisions = softmax(kind.decisions(logits))
    assert decisions.shape == (4, 2, 3)
    assert decisions[:, 0] == pytest.approx(softmax(logits[:, :3]))
    assert decisions[:, 1, :2] == pytest.approx(softmax(logits[:, 3:]))
    assert (decisions[:, 1, 2] == 0).all()
    (first, *_) = kind.describe(kind.decisions(logits), LABELS)
    assert first.scores == pytest.approx(dict(zip(LABELS, [*decisions[0, 0], *decisions[0, 1, :2]], strict=True)))
    number = kind.numbers(kind.decisions(logits))[0]
    assert kind.text(number, LABELS) == first.label
    assert [bool(kind.has(number, place, LABELS)) for place in range(5)] == [
        label in first.label.split("|") for label in LABELS
    ]


def test_requesting_a_head_leaves_out_the_others() -> None:
    logits = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    every, urgent = KINDS["heads"].of(LABELS), KINDS["heads"].of(LABELS).requesting(("urgent",))
    assert (urgent.decisions(logits)[:, 0] == logits[:, 3:]).all()
    numbers = urgent.numbers(urgent.decisions(logits))
    assert every.text(numbers[0], LABELS) == urgent.describe(urgent.decisions(logits), LABELS)[0].label
    assert (classes_in(numbers, 2)[:, 0] == -1).all()


@pytest.mark.parametrize(("metric", "average"), [("heads-accuracy", None), ("heads-macro-f1", "macro")])
def test_metrics_of_heads_are_the_mean_over_heads(metric: str, average: str | None) -> None:
    rng = np.random.default_rng(2)
    predicted, true = (np.stack([rng.integers(0, 3, 80), rng.integers(0, 2, 80)], axis=1) for _ in range(2))
    expected = [
        f1_score(y, x, average=average) if average else accuracy_score(y, x)
        for x, y in zip(predicted.T, true.T, strict=True)
    ]
    assert METRICS[metric](pack(predicted, range(2)), pack(true, range(2))) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("labels", "column", "message"),
    [
        (("a=1", "a=2", "b"), "a|b", "contains 'b': a label of a heads model is HEAD=CLASS"),
        (("a=1", "b=1", "b=2", "a=2"), "a|b", "one after the other"),
        (("a=1", "a=2", "b=1"), "a|b", "head 'b' must have 2 to 511 classes"),
        (("a=1", "a=2", "b=1", "b=2"), "a", "has 1 columns for 2 heads"),
        (tuple(f"h{i}={c}" for i in range(7) for c in "xy"), "|".join("abcdefg"), "at most 6"),
    ],
)
def test_heads_problems_names_what_is_wrong(labels: tuple[str, ...], column: str, message: str) -> None:
    assert message in next(heads_problems(labels, column))
