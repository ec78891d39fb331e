"""The pass over the data, and the scores that are computed from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made_passes import hand_made, regression

from berxit.runtime.chance import Constant
from berxit.train.checkpoint import load_checkpoint
from berxit.train.encoding import as_tensors
from berxit.train.evaluation import Predictions, layer_scores, predict
from berxit.train.tasks import task_of


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predict_equals_the_model_row_by_row(batch_size: int, checkpoint: Path, data_folder: Path) -> None:
    model, tokenizer = load_checkpoint(checkpoint)
    examples = task_of(model.config).read(data_folder, "dev").head(20)
    found = predict(model, tokenizer, examples, batch_size)
    assert found.logits.shape == (20, 3, 2)
    assert found.labels.tolist() == examples.labels.tolist()
    with torch.no_grad():
        for row, text in enumerate(examples.texts):
            outputs = model(**as_tensors(tokenizer([text])))
            assert np.abs(found.logits[row] - outputs.exit_logits[0].numpy()).max() <= 1e-5
            assert np.abs(found.lte[row] - outputs.certainties[0].numpy()).max() <= 1e-5


def test_predict_reports_progress(checkpoint: Path, data_folder: Path) -> None:
    updates: list[int] = []

    @contextmanager
    def bar(length: int) -> Iterator[object]:
        updates.append(length)
        yield type("Bar", (), {"update": lambda self, n: updates.append(n)})()

    model, tokenizer = load_checkpoint(checkpoint)
    model.train()
    predict(model, tokenizer, task_of(model.config).read(data_folder, "dev").head(10), 4, bar)
    assert updates == [10, 4, 4, 2]
    assert not model.training


def test_layer_scores_are_of_one_exit_for_all_examples() -> None:
    assert layer_scores(hand_made()) == [0.5, 0.75, 1.0]


def test_layer_scores_of_regression_are_correlations() -> None:
    assert layer_scores(regression()) == pytest.approx([1.0, 1.0, 1.0])


def test_predicted_returns_classes_or_values() -> None:
    assert hand_made().predicted().tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert regression().predicted()[:, 0].tolist() == [1.0, 2.0, 5.0]


def test_default_criterion_fits_the_model() -> None:
    assert hand_made().default_criterion == "confidence"
    assert regression().default_criterion == "lte"
    assert regression(lte=False).default_criterion == "patience"


@pytest.mark.parametrize("lte", [True, False])
def test_load_returns_the_saved_pass(lte: bool, tmp_path: Path) -> None:
    stored = regression(lte)
    stored.save(tmp_path / "predictions.npz")
    again = Predictions.load(tmp_path / "predictions.npz")
    assert np.array_equal(again.logits, stored.logits)
    assert np.array_equal(again.labels, stored.labels)
    assert again.metric == "spearman"
    assert (again.lte is None) == (not lte)
    assert not lte or np.array_equal(again.lte, stored.lte)


def test_constant_is_the_best_constant_prediction() -> None:
    assert hand_made().constant == Constant(0, 0.5)
    one_sided = Predictions(np.zeros((4, 1, 2), np.float32), None, np.array([1, 1, 1, 0]), "f1")
    assert one_sided.constant == Constant(1, pytest.approx(2 * 3 / (4 + 3)))
    assert regression().constant == Constant(pytest.approx(8 / 3), 0.0)


def test_predict_stores_the_row_numbers(checkpoint: Path, data_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_checkpoint(checkpoint)
    found = predict(model, tokenizer, task_of(model.config).read(data_folder, "dev").head(5))
    found.save(tmp_path / "predictions.npz")
    ids = Predictions.load(tmp_path / "predictions.npz").ids
    assert ids is not None
    assert ids.tolist() == [0, 1, 2, 3, 4]
