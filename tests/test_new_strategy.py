"""A new strategy is a class and one entry in STRATEGIES: training, figures, studies and help accept it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from torch import Tensor

from berxit.toolkit.cli import load
from berxit.train.checkpoint import read_config
from berxit.train.fine_tuning import fine_tune
from berxit.train.objectives import Objective
from berxit.train.options import TrainingOptions
from berxit.train.strategies import STRATEGIES, Strategy
from berxit.train.tasks import custom_task


class FirstAndLast(Objective):
    """The first exit and the last one."""

    def combine(self, step: int, losses: Tensor) -> Tensor:
        return losses[0] + losses[-1]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Strategy:
    strategy = Strategy("first-and-last", "the first and the last exit", (f"{__name__}:FirstAndLast",))
    monkeypatch.setitem(STRATEGIES, strategy.name, strategy)
    return strategy


def test_new_strategy_trains_and_can_be_studied(toy: Strategy, still: str, data_folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    task = custom_task(data_folder, ("text",), "label")
    options = TrainingOptions(still, strategy=toy.name, max_steps=2, max_length=32)
    fine_tune(task, data_folder, options, checkpoint)
    assert read_config(checkpoint)["strategy"] == toy.name
    arguments = ["layerwise", str(checkpoint), "--data", str(data_folder), "--output", str(tmp_path / "studies")]
    done = CliRunner().invoke(load("study"), arguments)
    assert done.exit_code == 0, done.output
    assert toy.name in (tmp_path / "studies" / "layerwise-custom.md").read_text(encoding="utf-8")


def test_train_help_names_every_strategy() -> None:
    text = CliRunner().invoke(load("train"), ["--help"]).output
    flat = "".join(text.split())  # click breaks lines at hyphens
    assert all(name in flat for name in STRATEGIES)
