"""The fixed exit: chosen by the same rules as an adaptive policy, and exported without deeper layers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime import EarlyExitRunner, InputError
from berxit.runtime.calibration import FixedExit
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, exit_layers
from berxit.train.calibration import calibrate, choose, read_policy, stored_pass
from berxit.train.checkpoint import load_checkpoint
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec, applicable_criteria
from berxit.train.rules import Budget, Keep, Risk, Rule

ROWS, LAYERS = 2000, 4


def easy(scores: tuple[float, ...], adaptive: bool = False) -> Predictions:
    """A pass of two classes in which exit i is right on the share ``scores[i]`` of the rows, the same rows at deeper
    exits. ``adaptive``: right predictions of the exits before the last are certain, wrong ones are not."""
    labels = np.arange(ROWS) % 2
    hardness = np.random.default_rng(0).permutation(ROWS) / ROWS
    right = hardness[:, None] < np.array(scores)
    sure = np.where(right, 4.0, 0.1) if adaptive else np.full(right.shape, 1.0)
    toward_one = np.where(right == (labels[:, None] == 1), sure, -sure)
    logits = np.stack([-toward_one, toward_one], axis=-1).astype(np.float32)
    return Predictions(logits, None, labels, "accuracy")


@pytest.mark.parametrize(
    ("rule", "layer"),
    [
        (Keep(0.99), 3),
        (Keep(0.97), 2),
        (Keep(0.99, optimistic=True), 3),
        (Risk(0.05), 2),
        (Budget(3.5, 0.0, 1.0, "bench"), 3),
    ],
)
def test_every_rule_chooses_a_fixed_exit(rule: Rule, layer: int) -> None:
    choice = rule.choose(easy((0.6, 0.88, 0.9, 0.9)), PolicySpec("fixed"))
    assert choice.point.histogram == tuple(ROWS * (each == layer) for each in range(1, LAYERS + 1))
    assert choice.met


def test_fixed_policy_exits_every_row_at_its_layer_and_never_means_full_depth() -> None:
    logits = np.random.default_rng(0).normal(size=(50, LAYERS, 3)).astype(np.float32)
    for layer in range(1, LAYERS + 1):
        policy = ExitPolicy.uniform("fixed", layer, LAYERS)
        assert (exit_layers(policy, certainties(policy, logits, None)) == layer).all()
    assert CRITERIA["fixed"].never(LAYERS, 3) == LAYERS


def test_fixed_is_not_listed_as_an_adaptive_criterion() -> None:
    assert "fixed" not in applicable_criteria(easy((0.5, 0.6, 0.7, 0.8)))


@pytest.mark.parametrize(
    ("scores", "adaptive", "expected"),
    [
        (
            (0.6, 0.88, 0.9, 0.9),
            True,
            "adaptive exits pay here: the best fixed exit is layer 3 (25% saved, accuracy 0.9000)",
        ),
        (
            (0.6, 0.88, 0.9, 0.9),
            False,
            "adaptive exits do not pay here: the best fixed exit is layer 3 (25% saved, accuracy 0.9000). To use it,"
            " calibrate with --fixed",
        ),
        ((0.5, 0.6, 0.7, 0.9), True, "adaptive exits pay here: no fixed exit before the last layer satisfies the rule"),
        ((0.5, 0.5, 0.5, 0.9), False, ""),
    ],
)
def test_calibration_compares_the_policy_with_the_best_fixed_exit(
    scores: tuple[float, ...], adaptive: bool, expected: str
) -> None:
    record = choose(easy(scores, adaptive), PolicySpec("confidence"), Keep(0.99), "dev.tsv", "0" * 64).calibration
    assert record.comparison == expected


def test_fixed_calibration_has_no_competitor_and_one_layer_in_its_summary() -> None:
    record = choose(easy((0.6, 0.88, 0.9, 0.9)), PolicySpec("fixed"), Keep(0.99), "dev.tsv", "0" * 64).calibration
    assert (record.fixed, record.comparison) == (None, "")
    assert record.summary().startswith("every input exits at layer 3 of 4 (25% saved), accuracy 0.9000 of 0.9000")
    assert record.description.startswith("the cheapest fixed exit that keeps 0.99")


def test_budget_without_a_fixed_exit_has_no_competitor() -> None:
    adaptive = easy((0.6, 0.88, 0.9, 0.9), adaptive=True)
    record = choose(adaptive, PolicySpec("confidence"), Budget(2.0, 0.0, 1.0, "bench"), "d", "0" * 64).calibration
    assert record.fixed == FixedExit(2, pytest.approx(0.88))


@pytest.fixture(scope="module")
def fixed_checkpoint(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, data_folder: Path) -> Path:
    """The tiny checkpoint of three layers, calibrated to exit at layer 2."""
    folder = tmp_path_factory.mktemp("fixed") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    predictions = stored_pass(folder, read_policy(folder))  # type: ignore[arg-type]
    second = predictions.score(predictions.predicted()[:, 1]) / predictions.full_depth_score
    calibrate(folder, data_folder, spec=PolicySpec("fixed"), rule=Keep(min(1.0, second), optimistic=True))
    return folder


def test_first_layers_of_a_model_have_the_same_outputs(checkpoint: Path) -> None:
    model, _ = load_checkpoint(checkpoint)
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    mask = (ids != 0).long()
    with torch.no_grad():
        whole, shorter = model(ids, mask), model.first_layers(2)(ids, mask)
    assert torch.equal(whole.exit_logits[:, :2], shorter.exit_logits)
    assert torch.equal(whole.certainties[:, :2], shorter.certainties)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_export_of_a_fixed_exit_has_no_deeper_layers(fixed_checkpoint: Path, tmp_path: Path, precision: str) -> None:
    calibrated = read_policy(fixed_checkpoint)
    assert calibrated is not None and calibrated.calibration.threshold == 2
    manifest = export(fixed_checkpoint, "onnxruntime", tmp_path / "bundle", options=ExportOptions(precision=precision))
    assert (manifest.model.layers, manifest.exits, manifest.policy.layers) == (2, (2,), 2)
    assert manifest.calibration is not None and manifest.calibration.full_depth_score == pytest.approx(
        calibrated.calibration.full_depth_score  # the checkpoint's, with all layers
    )
    assert manifest.policy.criterion == "confidence"  # every reader knows it
    assert len(manifest.segments) == 2  # the embeddings, and layers 1 and 2 with one exit
    runner = EarlyExitRunner.load(tmp_path / "bundle", threads=1)
    prediction = runner.predict("the cat sat on the mat")
    assert (prediction.exit_layer, prediction.stopped_by) == (2, "last_layer")


def test_export_of_a_fixed_exit_rejects_other_exits(fixed_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--exits does not go with a fixed exit at layer 2: omit --exits"):
        export(fixed_checkpoint, "onnxruntime", tmp_path / "bundle", options=ExportOptions(exits=(1, 2)))
    assert not (tmp_path / "bundle").exists()


def test_choose_for_one_exit_stores_a_policy_that_every_reader_knows() -> None:
    one = easy((0.6, 0.88, 0.9, 0.9)).first_layers(3).select_exits((3,))
    chosen = choose(one, PolicySpec("fixed"), Keep(0.99), "dev.tsv", "0" * 64)
    assert chosen.policy == ExitPolicy.full_depth(3)
    assert replace(chosen.policy).schema_version == 1
