"""The drift benchmark: class mixes, draws, and the command on the tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.drift import class_mix, command, draw, inverted
from berxit.runtime.console import status_of
from berxit.train.evaluation import Predictions


def test_class_mix_is_that_of_the_data_or_falls_for_balanced_data() -> None:
    assert class_mix(np.array([0, 0, 0, 1]), 2).tolist() == [0.75, 0.25]
    assert class_mix(np.array([0, 1, 2]), 3).tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6])


def test_inverted_mix_exchanges_frequent_and_rare_classes() -> None:
    assert inverted(np.array([0.5, 0.2, 0.3])).tolist() == [0.2, 0.5, 0.3]


def test_draw_follows_the_mix() -> None:
    labels = np.repeat([0, 1], [900, 100])
    p = Predictions(np.zeros((1000, 2, 2), np.float32), None, labels, "accuracy")
    rows = draw(p, np.array([0.2, 0.8]), 5000, np.random.default_rng(0))
    assert labels[rows].mean() == pytest.approx(0.8, abs=0.03)


def test_command_stores_the_counts(checkpoint: Path, tmp_path: Path) -> None:
    assert (
        status_of(command, [str(checkpoint), "--runs", "2", "--inputs", "50", "--output", str(tmp_path / "out")]) == 0
    )
    stored = json.loads((tmp_path / "out" / "drift.json").read_text(encoding="utf-8"))
    assert (stored["runs"], stored["reference_rows"]) == (2, 48)
