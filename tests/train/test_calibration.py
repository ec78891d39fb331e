"""The threshold that is chosen, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import sha256
from runtime.errors import BerxitError, InputError
from runtime.policies import ExitPolicy
from train.calibration import POLICY_FILE, calibrate, keep_share, read_policy
from train.checkpoint import load_checkpoint
from train.evaluation import Predictions, operating_point, predict, trade_off
from train.tasks import task_of


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def ten_examples() -> Predictions:
    """Ten examples of class 1, two layers. The last is always right; the first is right where it is sure.

    Confidence of layer 1: 0.60, 0.65, ... 1.05 is cut to 0.995; the two least sure ones are wrong there.
    """
    sure = np.minimum(0.60 + 0.05 * np.arange(10), 0.995)
    margin = np.log(sure / (1 - sure))
    margin[:2] *= -1
    logits = np.zeros((10, 2, 2), np.float32)
    logits[:, 0, 1], logits[:, 1, 1] = margin, 5.0
    return Predictions(logits, None, np.ones(10, int), "accuracy")


def test_the_cheapest_threshold_that_keeps_the_share_is_chosen() -> None:
    policy, point = keep_share(ten_examples(), "confidence", 1.0)
    assert 0.65 < policy.thresholds[0] < 0.70
    assert (point.score, point.histogram) == (1.0, (8, 2))
    policy, point = keep_share(ten_examples(), "confidence", 0.9)
    assert 0.60 < policy.thresholds[0] < 0.65
    assert (point.score, point.histogram) == (0.9, (9, 1))
    _, point = keep_share(ten_examples(), "confidence", 0.8)
    assert (point.score, point.histogram) == (0.8, (10, 0))


def test_entropy_finds_the_same_split_from_the_other_side() -> None:
    _, point = keep_share(ten_examples(), "entropy", 1.0)
    assert point.histogram == (8, 2)


def test_with_fewer_exits_the_threshold_is_chosen_among_them() -> None:
    predictions = ten_examples()
    logits = np.stack([np.zeros((10, 2), np.float32), predictions.logits[:, 0], predictions.logits[:, 1]], axis=1)
    logits[:, 0, 0] = 9.0  # layer 1 is always sure, and wrong
    three = Predictions(logits, None, np.ones(10, int), "accuracy")
    _, never = keep_share(three, "confidence", 1.0)
    assert never.histogram == (0, 0, 10)
    policy, point = keep_share(three.at_exits((2, 3)), "confidence", 1.0)
    assert policy.layers == 3
    assert (point.histogram, point.average_exit_layer) == ((0, 8, 2), pytest.approx(2.2))
    assert point.saved_layers == pytest.approx(1 - 2.2 / 3)
    again = operating_point(three.at_exits((2, 3)), policy.at_exits((2, 3)))
    assert (again.histogram, again.average_exit_layer) == (point.histogram, pytest.approx(2.2))
    _, point = keep_share(three.at_exits((3,)), "confidence", 1.0)
    assert point.histogram == (0, 0, 10)


def test_patience_counts_the_exits_that_there_are() -> None:
    logits = np.zeros((1, 4, 2), np.float32)
    logits[0, :, 1] = [1.0, -1.0, 1.0, 1.0]  # the layers say 1, 0, 1, 1
    predictions = Predictions(logits, None, np.ones(1, int), "accuracy")
    assert trade_off(predictions, "patience", [1.0])[0].histogram == (0, 0, 0, 1)
    assert trade_off(predictions.at_exits((1, 3, 4)), "patience", [1.0])[0].histogram == (0, 0, 1, 0)


def test_never_stopping_is_always_allowed() -> None:
    logits = np.zeros((6, 3, 2), np.float32)
    logits[:, :2, 0], logits[:, 2, 1] = 9.0, 1.0  # the early layers are sure, and wrong
    predictions = Predictions(logits, None, np.ones(6, int), "accuracy")
    policy, point = keep_share(predictions, "confidence", 1.0)
    assert (point.average_exit_layer, point.score) == (3.0, 1.0)
    assert operating_point(predictions, policy) == point
    _, patient = keep_share(predictions, "patience", 1.0)
    assert patient.average_exit_layer == 3.0


def test_of_two_that_cost_the_same_the_better_is_chosen() -> None:
    values = np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 2.0], [4.0, 4.0]], np.float32)[..., None]
    lte = np.array([[0.9, 1], [0.1, 1], [0.2, 1], [0.8, 1]], np.float32)
    predictions = Predictions(values, lte, np.array([1.0, 3.0, 2.0, 4.0]), "spearman")
    _, point = keep_share(predictions, "lte", 1.0)
    assert point.score == pytest.approx(1.0)
    assert point.histogram == (2, 2)


def test_a_last_exit_below_zero_has_nothing_to_keep() -> None:
    values = np.array([[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]], np.float32)[..., None]
    predictions = Predictions(values, None, np.array([1.0, 2.0, 3.0]), "spearman")
    with pytest.raises(BerxitError, match="nothing to keep"):
        keep_share(predictions, "patience", 0.9)


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(InputError, match=r"--keep .* is out of range"):
        keep_share(ten_examples(), "confidence", keep)


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(InputError, match="unknown exit criterion 'luck'"):
        keep_share(ten_examples(), "luck", 0.9)


@pytest.mark.parametrize("criterion", ["confidence", "entropy", "lte", "patience"])
def test_a_calibration_is_written_with_how_it_was_chosen(criterion: str, copy: Path, data_folder: Path) -> None:
    chosen = calibrate(copy, data_folder, criterion=criterion, keep=0.8)
    stored = read_policy(copy)
    assert stored is not None
    assert stored.calibration == chosen
    assert stored.policy == ExitPolicy.uniform(criterion, chosen.threshold, 3)
    assert (chosen.criterion, chosen.examples, chosen.metric) == (criterion, 48, "accuracy")
    assert chosen.data_sha256 == sha256(data_folder / "dev.tsv")
    assert sum(chosen.histogram) == 48
    assert chosen.score >= 0.8 * chosen.full_depth_score
    model, tokenizer = load_checkpoint(copy)
    predictions = predict(model, tokenizer, task_of(model.config).read(data_folder, "dev"))
    again = operating_point(predictions, stored.policy)
    assert (again.histogram, again.score) == (chosen.histogram, chosen.score)
    assert again.average_exit_layer == chosen.average_exit_layer
    assert "0.8" in chosen.rule
    assert criterion in chosen.summary()


def test_the_training_file_is_refused_under_any_name(copy: Path, data_folder: Path, tmp_path: Path) -> None:
    before = (copy / POLICY_FILE).read_text(encoding="utf-8")
    renamed = shutil.copy(data_folder / "train.tsv", tmp_path / "fresh.tsv")
    for data, split in ((data_folder, "train"), (data_folder / "train.tsv", "dev"), (Path(renamed), "dev")):
        with pytest.raises(InputError, match="was trained on"):
            calibrate(copy, data, split=split)
    assert (copy / POLICY_FILE).read_text(encoding="utf-8") == before


def test_a_checkpoint_that_was_never_calibrated_has_no_policy(copy: Path) -> None:
    (copy / POLICY_FILE).unlink()
    assert read_policy(copy) is None


def test_a_damaged_policy_file_is_one_clear_error(copy: Path) -> None:
    path = copy / POLICY_FILE
    whole = json.loads(path.read_text(encoding="utf-8"))
    damages = {
        "damaged": "{",
        "key 'policy' is missing": json.dumps({"calibration": whole["calibration"]}),
        "unknown key 'extra'": json.dumps({**whole, "extra": 1}),
        "does not belong there": json.dumps({**whole, "policy": {**whole["policy"], "thresholds": "high"}}),
        "out of range": json.dumps({**whole, "policy": {**whole["policy"], "thresholds": [2.0, 2.0]}}),
    }
    for message, text in damages.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BerxitError, match=message) as caught:
            read_policy(copy)
        assert "\n" not in str(caught.value)
