"""The paper's equations, compared with results computed by hand, and the gradients of each step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from berxit.runtime.errors import InputError
from berxit.train.losses import balanced_weights, distillation_losses, exit_losses, lte_losses, lte_targets
from berxit.train.modeling import MultiExitOutput
from berxit.train.objectives import (
    Alternating,
    Distillation,
    Joint,
    LossOptions,
    Objective,
    OtherExits,
    Raw,
    layer_weights,
    stages_of,
)
from berxit.train.strategies import STRATEGIES

LOG3 = math.log(3.0)
CLASS_LOGITS = torch.tensor([[[0.0, LOG3], [0.0, 0.0]], [[LOG3, 0.0], [0.0, LOG3]]])
"""Two rows, two layers. Probabilities: row 1 (1/4, 3/4), (1/2, 1/2); row 2 (3/4, 1/4), (1/4, 3/4)."""
CLASS_LABELS = torch.tensor([1, 1])
VALUE_LOGITS = torch.tensor([[[1.0], [2.0]], [[4.0], [2.5]]])
VALUE_LABELS = torch.tensor([2.0, 3.0])


def test_exit_losses_of_classes_are_equation_2() -> None:
    expected = [(math.log(4 / 3) + math.log(4)) / 2, (math.log(2) + math.log(4 / 3)) / 2]
    assert exit_losses(CLASS_LOGITS, CLASS_LABELS, False).tolist() == pytest.approx(expected)


def test_exit_losses_of_regression_are_equation_2() -> None:
    assert exit_losses(VALUE_LOGITS, VALUE_LABELS, True).tolist() == pytest.approx([(1 + 1) / 2, (0 + 0.25) / 2])


def test_lte_targets_of_classes_are_equation_9() -> None:
    logits = torch.tensor([[[2.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [0.0, 3.0]]])
    assert lte_targets(logits, torch.tensor([0, 1]), False).tolist() == [[1.0, 0.0], [1.0, 1.0]]


def test_lte_targets_of_regression_are_equation_10() -> None:
    found = lte_targets(VALUE_LOGITS, VALUE_LABELS, True)
    expected = [1 - math.tanh(1), 1.0, 1 - math.tanh(1), 1 - math.tanh(0.5)]
    assert found.flatten().tolist() == pytest.approx(expected)


def test_lte_losses_are_equation_11() -> None:
    certainties = torch.tensor([[0.5, 0.25], [0.75, 1.0]])
    found = lte_losses(certainties, VALUE_LOGITS, VALUE_LABELS, True)
    miss = 1 - math.tanh(1)
    expected = [
        ((0.5 - miss) ** 2 + (0.75 - miss) ** 2) / 2,
        ((0.25 - 1) ** 2 + (1.0 - (1 - math.tanh(0.5))) ** 2) / 2,
    ]
    assert found.tolist() == pytest.approx(expected)
    right = lte_losses(torch.tensor([[0.9, 0.2]]), torch.tensor([[[3.0, 0.0], [0.0, 3.0]]]), torch.tensor([0]), False)
    assert right.tolist() == pytest.approx([0.01, 0.04])


def test_alternating_trains_the_last_exit_at_odd_steps_and_all_at_even_steps() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0])
    assert [Alternating().combine(step, losses).item() for step in (1, 2, 3, 4)] == [4.0, 7.0, 4.0, 7.0]


def test_raw_trains_the_last_exit_at_every_step() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0])
    assert [Raw().combine(step, losses).item() for step in (1, 2, 3)] == [4.0, 4.0, 4.0]


def test_loss_with_lte_adds_the_lte_loss_of_every_exit() -> None:
    certainties = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    outputs = MultiExitOutput(exit_logits=VALUE_LOGITS, certainties=certainties)
    both = exit_losses(VALUE_LOGITS, VALUE_LABELS, True) + lte_losses(certainties, VALUE_LOGITS, VALUE_LABELS, True)
    even = Alternating().loss(2, outputs, VALUE_LABELS, True)
    odd = Alternating().loss(1, outputs, VALUE_LABELS, True)
    assert even.item() == pytest.approx(both.sum().item())
    assert odd.item() == pytest.approx(both[1].item())
    without = Alternating().loss(2, MultiExitOutput(exit_logits=VALUE_LOGITS), VALUE_LABELS, True)
    assert without.item() == pytest.approx(1.125)


def gradients(strategy: str, step: int) -> tuple[Tensor, Tensor]:
    """(n,) sums of absolute gradients of one step's loss with respect to each exit's logits, and to each certainty."""
    logits = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    certainties = torch.full((4, 3), 0.3, requires_grad=True)
    objective = stages_of(STRATEGIES[strategy])[-1]()
    objective.loss(
        step, MultiExitOutput(exit_logits=logits, certainties=certainties), torch.tensor([0, 1, 1, 0]), False
    ).backward()
    return logits.grad.abs().sum(dim=(0, 2)), certainties.grad.abs().sum(dim=0)


@pytest.mark.parametrize(("strategy", "step"), [("alternating", 1), ("alternating", 3), ("raw", 1), ("raw", 2)])
def test_step_on_the_last_exit_has_no_gradient_for_other_exits(strategy: str, step: int) -> None:
    for reached in gradients(strategy, step):
        assert reached[:2].tolist() == [0.0, 0.0]
        assert reached[2] > 0


@pytest.mark.parametrize(("strategy", "step"), [("alternating", 2), ("joint", 1), ("joint", 2)])
def test_step_on_all_exits_has_gradients_for_all(strategy: str, step: int) -> None:
    for reached in gradients(strategy, step):
        assert (reached > 0).all()


@pytest.mark.parametrize("strategy", ["two-stage", "self-distillation"])
def test_second_stage_has_gradients_for_all_exits_except_the_last(strategy: str) -> None:
    for reached in gradients(strategy, 1):
        assert (reached[:2] > 0).all()
        assert reached[2] == 0


def test_joint_sums_all_exits_and_second_stage_all_but_the_last() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0])
    assert [Joint().combine(step, losses).item() for step in (1, 2)] == [7.0, 7.0]
    assert [OtherExits().combine(step, losses).item() for step in (1, 2)] == [3.0, 3.0]


def test_two_stage_and_self_distillation_train_the_last_exit_first() -> None:
    assert [stages_of(STRATEGIES[name])[0] for name in ("two-stage", "self-distillation")] == [Raw, Raw]


def test_distillation_is_the_divergence_from_the_last_exit() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    logits = torch.stack([p.log(), q.log(), q.log()])[None]  # Layer 1 predicts p; layers 2 and 3 predict q.
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    wrong_labels = torch.tensor([0])  # Distillation does not use the labels.
    assert Distillation().loss(1, MultiExitOutput(exit_logits=logits), wrong_labels, False).item() == pytest.approx(
        expected
    )
    values = torch.tensor([[[1.0], [2.0], [4.0]]])
    assert Distillation().loss(
        1, MultiExitOutput(exit_logits=values), torch.tensor([0.0]), True
    ).item() == pytest.approx(9 + 4)


def test_warm_up_trains_the_last_exit_before_the_strategy() -> None:
    labels, outputs = torch.tensor([0]), MultiExitOutput(exit_logits=torch.zeros(1, 3, 2))
    objective = Joint(LossOptions(warm_up_steps=2))
    found = [objective.loss(step, outputs, labels, False).item() for step in (1, 2, 3)]
    assert found == pytest.approx([math.log(2), math.log(2), 3 * math.log(2)])


def test_distillation_option_adds_to_the_loss_of_other_exits() -> None:
    values = torch.tensor([[[1.0], [2.0], [4.0]]])  # label 0: losses 1, 4, 16; from the last exit: 9, 4
    objective = Alternating(LossOptions(distillation=0.5))
    labels = torch.tensor([0.0])
    assert objective.loss(1, MultiExitOutput(exit_logits=values), labels, True).item() == pytest.approx(16)
    assert objective.loss(2, MultiExitOutput(exit_logits=values), labels, True).item() == pytest.approx(21 + 0.5 * 13)


def test_distillation_has_no_gradient_for_the_teacher() -> None:
    logits = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    distillation_losses(logits, False).sum().backward()
    assert logits.grad[:, 2].abs().sum() == 0
    assert logits.grad[:, :2].abs().sum() > 0


def test_layer_weights_multiply_the_loss_of_every_exit() -> None:
    values = torch.tensor([[[1.0], [2.0], [4.0]]])
    objective = Alternating(LossOptions(layer_weights=(0.5, 0.25, 1.0)))
    found = [
        objective.loss(step, MultiExitOutput(exit_logits=values), torch.tensor([0.0]), True).item() for step in (1, 2)
    ]
    assert found == pytest.approx([16, 0.5 * 1 + 0.25 * 4 + 16])


def test_layer_weights_accepts_names_and_numbers() -> None:
    assert layer_weights("uniform", 4) == ()
    assert layer_weights("linear", 4) == (0.25, 0.5, 0.75, 1.0)
    assert layer_weights("0,1,0.5,2", 4) == (0.0, 1.0, 0.5, 2.0)


@pytest.mark.parametrize("text", ["heavy", "1,2", "1,1,1,0", "1,-1,1,1", "1,inf,1,1", "1,nan,1,1", ""])
def test_layer_weights_rejects_other_values(text: str) -> None:
    with pytest.raises(InputError, match="--layer-weights"):
        layer_weights(text, 4)


@pytest.mark.parametrize("stage", [OtherExits, Distillation])
def test_second_stage_trains_only_other_exits_and_lte(stage: type[Objective]) -> None:
    objective = stage()
    assert objective.trains("heads.0.classifier.weight", 12)
    assert objective.trains("heads.1.classifier.weight", 12)
    assert objective.trains("lte.weight", 12)
    assert not objective.trains("heads.11.classifier.weight", 12)
    assert not objective.trains("backbone.embeddings.word_embeddings.weight", 12)


@pytest.mark.parametrize("regression", [False, True])
def test_lte_targets_have_no_gradient(regression: bool) -> None:
    logits = torch.randn(4, 3, 1 if regression else 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0.5, 1.0, 0.0, 2.0]) if regression else torch.tensor([0, 1, 1, 0])
    certainties = torch.full((4, 3), 0.3, requires_grad=True)
    lte_losses(certainties, logits, labels, regression).sum().backward()
    assert logits.grad is None
    assert certainties.grad.abs().sum() > 0
    assert not lte_targets(logits, labels, regression).requires_grad


def test_class_weights_multiply_the_cross_entropies_but_not_the_lte_loss() -> None:
    labels = torch.tensor([1, 0])
    outputs = MultiExitOutput(exit_logits=CLASS_LOGITS, certainties=torch.full((2, 2), 0.5))
    plain, weighted = (
        Joint(LossOptions(class_weights=weights)).loss(1, outputs, labels, False).item() for weights in ((), (3.0, 0.5))
    )
    # Cross-entropies of row 1: -log 3/4, log 2. Row 2, class 0: -log 3/4, -log 1/4.
    first, second = math.log(4 / 3) + math.log(2), math.log(4 / 3) + math.log(4)
    assert plain - (first + second) / 2 == pytest.approx(2 * 0.25, rel=1e-6)  # (0.5 - target)^2 in both layers
    assert weighted - (0.5 * first + 3 * second) / 2 == pytest.approx(2 * 0.25, rel=1e-6)


def test_balanced_weights_equal_scikit_learn_and_are_1_on_average() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 70 + [1] * 20 + [3] * 10)
    weights = balanced_weights(labels, 4)
    assert [weights[number] for number in (0, 1, 3)] == pytest.approx(
        compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    )
    assert weights[2] == 1
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1)
