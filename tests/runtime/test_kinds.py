"""Task kinds: numbers of predictions, and labels in data files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from berxit.runtime.errors import InputError
from berxit.runtime.examples import read_examples
from berxit.runtime.kinds import KINDS, from_bits, label_set, to_bits

NAMES = ("cat", "dog", "tree")


def test_bits_restore_sets_of_62_labels() -> None:
    sets = np.random.default_rng(0).random((20, 62)) < 0.5
    assert (from_bits(to_bits(sets), 62).astype(bool) == sets).all()
    assert label_set(0b101, NAMES) == ("cat", "tree")


def test_multilabel_decisions_have_the_sigmoid_as_probability() -> None:
    logits = np.array([[2.0, -1.0, 0.0]], np.float32)
    (found,) = KINDS["multilabel"].describe(KINDS["multilabel"].decisions(logits), NAMES)
    assert found.labels == ("cat",)
    assert list(found.scores.values()) == pytest.approx((1 / (1 + np.exp(-logits[0]))).tolist())


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [("classification", NAMES, "dog"), ("heads", ("a=x", "a=y", "b=v", "b=w"), "a=y|b=w")],
)
def test_larger_logit_decides_between_equal_probabilities(kind: str, labels: tuple[str, ...], expected: str) -> None:
    logits = np.array([[0.0, 1e-12, -9.0] if kind == "classification" else [0.0, 1e-12, 0.0, 1e-12]], np.float32)
    model = KINDS[kind].of(labels)
    (found,) = model.describe(model.decisions(logits), labels)
    first, second, *_ = found.scores.values()
    assert (found.label, first) == (expected, second)
    assert model.text(model.numbers(model.decisions(logits), labels)[0], labels) == found.label


def test_read_examples_reads_sets_in_both_notations(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = ['{"text": "a", "label": "tree|cat"}', '{"text": "b", "label": ["dog"]}', '{"text": "c", "label": ""}']
    path.write_text("\n".join([*rows, '{"text": "d", "label": null}']))
    assert read_examples(path, ("text",), "label", NAMES, kind="multilabel").labels.tolist() == [0b101, 0b10, 0, 0]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ('"bird"', "unknown label 'bird'"),
        ('"cat|cat"', "label 'cat' occurs twice"),
        ('"cat|"', "has no label"),
        ('["a|b"]', "contains '|'"),
        ('"[cat"', "is not a JSON list"),
    ],
)
def test_read_examples_rejects_a_wrong_set_in_one_line(label: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "cat"}\n{"text": "b", "label": ' + label + "}\n")
    with pytest.raises(InputError) as found:
        read_examples(path, ("text",), "label", NAMES, kind="multilabel")
    assert message in str(found.value)
    assert "line 2" in str(found.value)
    assert "\n" not in str(found.value)
