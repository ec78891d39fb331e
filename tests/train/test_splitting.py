"""Rows that are held out: their share in every class, equal texts, and the seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from berxit.runtime.errors import InputError
from berxit.runtime.examples import Examples
from berxit.train.options import TrainingOptions
from berxit.train.splitting import hold_out, read_training_data
from berxit.train.tasks import custom_task


def of_classes(*counts: int) -> Examples:
    labels = np.repeat(np.arange(len(counts)), counts)
    return Examples([f"text {row}" for row in range(len(labels))], labels)


def test_hold_out_takes_the_share_of_every_class_and_keeps_one_row_of_rare_classes() -> None:
    train, held = hold_out(of_classes(200, 40, 11, 2, 1), 0.1, seed=3)
    assert sorted(train.texts + held.texts) == sorted(of_classes(200, 40, 11, 2, 1).texts)
    found = Counter(held.labels.tolist())
    assert (found[0], found[1], found[2], found[4]) == (20, 4, 1, 0)
    assert found[3] <= 1
    assert held.texts == sorted(held.texts, key=lambda text: int(text.split()[1]))


def test_hold_out_keeps_equal_texts_together() -> None:
    examples = Examples([f"text {row // 4}" for row in range(400)], np.arange(400) % 2)
    train, held = hold_out(examples, 0.2, seed=0)
    assert not set(train.texts) & set(held.texts)
    assert 76 <= len(held) <= 84


def test_hold_out_of_values_takes_rows_from_every_tenth() -> None:
    values = np.random.default_rng(1).normal(size=300)
    _, held = hold_out(Examples([f"text {row}" for row in range(300)], values), 0.1, seed=0)
    tenths = np.searchsorted(np.quantile(values, np.arange(1, 10) / 10), held.labels)
    assert Counter(tenths.tolist()) == dict.fromkeys(range(10), 3)


def test_hold_out_depends_only_on_the_seed() -> None:
    first, again, other = (hold_out(of_classes(50, 50), 0.2, seed)[1].texts for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["3.5"] * 8, "every label is 3.5"),
        ([f"{row}e-300" for row in range(1, 9)], "labels differ by at most 7e-300 and are equal in float32, in which"),
        ([f"1.00000000{row}" for row in range(8)], "labels differ by at most 7e-09 and are equal in float32, in which"),
    ],
)
def test_training_data_with_equal_values_is_rejected(labels: list[str], reason: str, tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    rows = [f"text {row}\t{label}" for row, label in enumerate(labels)]
    file.write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")
    task = custom_task(file, ("text",), "label", kind="regression")
    with pytest.raises(InputError, match=f"train.tsv: nothing to learn: {reason}"):
        read_training_data(task, file, TrainingOptions("model"))
    file.write_text("\n".join(["text\tlabel", *rows, "text\t9"]), encoding="utf-8")
    assert len(read_training_data(task, file, TrainingOptions("model")).train) == 9


def test_hold_out_of_one_text_only_raises() -> None:
    with pytest.raises(InputError, match="at least one row must be held out, and one must remain"):
        hold_out(Examples(["same"] * 30, np.zeros(30, dtype=np.int64)), 0.1, seed=0)
