"""Fine-tuning: which step trains what, what is refused, and going on after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import WORDS
from safetensors.torch import load_file
from transformers import DataCollatorWithPadding, TrainerCallback

from runtime.errors import BerxitError, InputError
from train import fine_tuning, trainer
from train.checkpoint import load_checkpoint
from train.encoding import EncodedExamples
from train.fine_tuning import fine_tune, start_model
from train.objectives import Alternating, Raw
from train.options import TrainingOptions
from train.tasks import Task, custom_task
from train.trainer import ByLength, MultiExitTrainer, training_arguments


@pytest.fixture
def task(data_folder: Path) -> Task:
    return custom_task(data_folder, ("text",), "label")


@pytest.fixture
def options(backbone_folders: dict[str, Path]) -> TrainingOptions:
    return TrainingOptions(
        str(backbone_folders["bert"]), epochs=2, batch_size=16, learning_rate=1e-3, max_length=16, limit_train=32
    )


class Spy(Alternating):
    """Alternating, which notes the steps it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def combine(self, step: int, losses: torch.Tensor) -> torch.Tensor:
        self.steps.append(step)
        return super().combine(step, losses)


def trainer_of(
    task: Task, options: TrainingOptions, data: Path, folder: Path, objective: Alternating, accumulate: int = 1
) -> MultiExitTrainer:
    model, tokenizer = start_model(task, options)
    arguments = training_arguments(options, folder, True, 32)
    return MultiExitTrainer(
        model,
        replace(arguments, gradient_accumulation_steps=accumulate, save_strategy="no"),
        objective=objective,
        head_learning_rate=options.head_learning_rate,
        train_dataset=EncodedExamples(task.read(data, "train").head(options.limit_train), tokenizer, 16),
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def test_the_alternation_counts_optimiser_steps(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    spy = Spy()
    small = replace(options, batch_size=4, epochs=1)
    trainer_of(task, small, data_folder, tmp_path, spy, accumulate=2).train()
    assert spy.steps == [1, 1, 2, 2, 3, 3, 4, 4]


def test_the_alternation_goes_on_over_epochs(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    spy = Spy()
    trainer_of(task, replace(options, limit_train=48), data_folder, tmp_path, spy).train()
    assert spy.steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("heads", "expected"), [(None, 1e-3), (0.5, 0.5)])
def test_exits_and_encoder_have_their_learning_rates(
    heads: float | None, expected: float, task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(task, replace(options, head_learning_rate=heads), data_folder, tmp_path, Alternating())
    encoder, exits = trainer.create_optimizer().param_groups
    model = trainer.model
    assert (encoder["lr"], exits["lr"]) == (1e-3, expected)
    assert {id(p) for p in encoder["params"]} == {id(p) for p in model.backbone.parameters()}
    assert {id(p) for p in exits["params"]} == {id(p) for p in [*model.heads.parameters(), *model.lte.parameters()]}
    assert (encoder["weight_decay"], exits["weight_decay"]) == (0.0, 0.0)


def test_the_recipe_is_the_papers(options: TrainingOptions, tmp_path: Path) -> None:
    paper = TrainingOptions(options.model)
    assert (paper.epochs, paper.batch_size, paper.learning_rate, paper.seed) == (3, 8, 2e-5, 42)
    assert (paper.max_length, paper.strategy, paper.exit_head) == (128, "alternating", "linear")
    arguments = training_arguments(paper, tmp_path, True, 3668)
    assert (arguments.weight_decay, arguments.max_grad_norm, arguments.warmup_steps) == (0.0, 1.0, 0)
    assert arguments.lr_scheduler_type == "linear"


def test_raw_leaves_the_other_exits_alone(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    start = start_model(task, replace(options, strategy="raw"))[0]
    torch.manual_seed(options.seed)
    raw = replace(options, strategy="raw", lte=False, epochs=1)
    seen: dict[str, torch.Tensor] = {}
    trainer = trainer_of(task, raw, data_folder, tmp_path, Raw())
    seen.update({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, seen[name])}
    assert not any(name.startswith(("heads.0.", "heads.1.")) for name in changed)
    assert {"heads.2.classifier.weight", "heads.2.classifier.bias"} <= changed
    assert any(name.startswith("backbone.encoder.layer.0.") for name in changed)
    assert start.config.strategy == "raw"


@pytest.mark.parametrize("strategy", ["two-stage", "self-distillation"])
def test_a_second_stage_changes_no_bit_of_what_the_first_left(
    strategy: str, task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    fine_tune(task, data_folder, replace(options, strategy="raw"), tmp_path / "first", quiet=True)
    fine_tune(task, data_folder, replace(options, strategy=strategy), tmp_path / "both", quiet=True)
    first, both = (load_checkpoint(tmp_path / name)[0].state_dict() for name in ("first", "both"))
    for name, weights in first.items():
        stands_still = name.startswith(("backbone.", "heads.2."))
        assert torch.equal(weights, both[name]) == stands_still, name


def test_a_run_interrupted_in_its_second_stage_goes_on_there(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = replace(options, strategy="two-stage", epochs=1)
    fine_tune(task, data_folder, two, tmp_path / "whole", quiet=True)
    stages: list[str] = []
    train = MultiExitTrainer.train

    def interrupted(self: MultiExitTrainer, **arguments: object) -> object:
        stages.append(type(self.objective).__name__)
        if stages == ["Raw", "OtherExits"]:
            raise KeyboardInterrupt
        return train(self, **arguments)

    monkeypatch.setattr(MultiExitTrainer, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(task, data_folder, two, tmp_path / "resumed", quiet=True)
    fine_tune(task, data_folder, two, tmp_path / "resumed", quiet=True)
    assert stages == ["Raw", "OtherExits", "OtherExits"]
    whole, resumed = (load_checkpoint(tmp_path / name)[0].state_dict() for name in ("whole", "resumed"))
    first_stage = [name for name in whole if name.startswith(("backbone.", "heads.2."))]
    assert all(torch.equal(whole[name], resumed[name]) for name in first_stage)


def test_limit_takes_the_first_layers_of_the_encoder(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    two, all_layers = (start_model(task, replace(options, layers=layers))[0] for layers in (2, None))
    assert (two.layers, len(two.heads), all_layers.layers) == (2, 2, 3)
    whole = all_layers.backbone.state_dict()
    assert all(torch.equal(weights, whole[name]) for name, weights in two.backbone.state_dict().items())
    fine_tune(task, data_folder, replace(options, strategy="limit", layers=1), tmp_path / "limit", quiet=True)
    assert load_checkpoint(tmp_path / "limit")[0].layers == 1
    with pytest.raises(InputError, match="limit needs --layers"):
        replace(options, strategy="limit")
    with pytest.raises(InputError, match="--layers 4 is more than the 3"):
        start_model(task, replace(options, layers=4))


def test_a_loss_that_is_not_a_number_ends_the_run(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BerxitError, match=r"the loss is nan at step \d+: lower --learning-rate"):
        fine_tune(task, data_folder, replace(options, learning_rate=1e30), tmp_path / "output", quiet=True)
    assert not (tmp_path / "output").exists()
    assert not (tmp_path / ".output.partial").exists()


def test_after_a_bad_loss_a_lower_learning_rate_is_taken(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BerxitError, match="lower --learning-rate"):
        fine_tune(task, data_folder, replace(options, learning_rate=1e30), tmp_path / "output", quiet=True)
    fine_tune(task, data_folder, options, tmp_path / "output", quiet=True)
    assert (tmp_path / "output" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "guess"}, "unknown --strategy 'guess': choose one of raw, joint"),
        ({"epochs": 0}, "--epochs is 0: it must be above 0"),
        ({"max_steps": -1}, "--max-steps is -1"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"learning_rate": -1e-5}, "--learning-rate is -1e-05"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan"),
        ({"head_learning_rate": 0.0}, r"--head-learning-rate is 0\.0"),
        ({"limit_train": 0}, "--limit-train is 0"),
        ({"max_length": 3}, "--max-length is 3: it must be 4 or more"),
        ({"seed": -1}, "--seed is -1"),
        ({"exit_head": "deep"}, "deep.*choose one of linear, pooler"),
        ({"pooling": "max"}, "max.*choose one of first, mean"),
    ],
)
def test_bad_options_are_refused_by_name(
    change: dict, message: str, task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fine_tune(task, data_folder, replace(options, **change), tmp_path / "output", quiet=True)
    assert not (tmp_path / "output").exists()


def test_more_tokens_than_the_model_takes_are_refused(task: Task, options: TrainingOptions) -> None:
    with pytest.raises(InputError, match="--max-length 41 is more than the 40"):
        start_model(task, replace(options, max_length=41))


def test_a_model_folder_that_is_not_there_is_one_clear_error(
    task: Task, options: TrainingOptions, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nowhere: --model is a model folder, or a name on the hub"):
        start_model(task, replace(options, model=str(tmp_path / "nowhere")))


def test_a_folder_without_a_model_is_one_clear_error(task: Task, options: TrainingOptions, tmp_path: Path) -> None:
    with pytest.raises(BerxitError, match="cannot load --model") as caught:
        start_model(task, replace(options, model=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_an_output_that_is_there_is_kept(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    with pytest.raises(InputError, match="is there already: choose another --output, or --force"):
        fine_tune(task, data_folder, options, tmp_path / "output", quiet=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "output"]


class Interrupt(TrainerCallback):
    """Ctrl-C at the end of an optimiser step, before it is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step:  # type: ignore[attr-defined]
            raise KeyboardInterrupt


def interrupt(monkeypatch: pytest.MonkeyPatch, *arguments: object, step: int = 3) -> None:
    """By default in the second epoch."""

    class Interrupted(MultiExitTrainer):
        def __init__(self, *positional: object, **named: object) -> None:
            super().__init__(*positional, callbacks=[Interrupt(step)], **named)

    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning, "MultiExitTrainer", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(*arguments, quiet=True)


def test_an_interrupted_run_goes_on_to_the_same_weights(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(fine_tune(task, data_folder, options, tmp_path / "whole", quiet=True) / "model.safetensors")
    output = tmp_path / "output"
    interrupt(monkeypatch, task, data_folder, options, output)
    assert not output.exists()
    assert (tmp_path / ".output.training").is_dir()
    steps: list[int] = []
    combine = Alternating.combine
    monkeypatch.setattr(
        Alternating, "combine", lambda self, step, losses: steps.append(step) or combine(self, step, losses)
    )
    fine_tune(task, data_folder, options, output, quiet=True)
    assert steps == [3, 4]  # the first epoch was not trained again
    resumed = load_file(output / "model.safetensors")
    assert resumed.keys() == whole.keys()
    assert max((resumed[name] - whole[name]).abs().max().item() for name in whole) <= 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "whole"]


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_interrupted_within_an_epoch_goes_on_to_the_same_weights(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(trainer, "SAVE_EVERY", 1)
    whole = load_file(fine_tune(task, data_folder, options, tmp_path / "whole", quiet=True) / "model.safetensors")
    interrupt(monkeypatch, task, data_folder, options, tmp_path / "output", step=step)
    saved = [path.name for path in (tmp_path / ".output.training" / "stage-1").glob("checkpoint-*")]
    assert saved == [f"checkpoint-{step - 1}"]
    resumed = load_file(fine_tune(task, data_folder, options, tmp_path / "output", quiet=True) / "model.safetensors")
    assert max((resumed[name] - whole[name]).abs().max().item() for name in whole) <= 1e-6


def test_every_epoch_has_an_order_of_its_own_that_the_seed_fixes() -> None:
    lengths = [3, 9, 4, 8, 5, 7, 6, 2] * 4
    orders = []
    for seed, epoch in ((1, 0), (1, 1), (2, 0), (1, 0)):
        sampler = ByLength(lengths, 4, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert sorted(orders[0]) == list(range(32))
    assert orders[0] == orders[3]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_bf16_trains(task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path) -> None:
    output = fine_tune(task, data_folder, replace(options, bf16=True), tmp_path / "output", quiet=True)
    weights = load_file(output / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float32"}


def test_two_batches_make_one_step_of_their_mean(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, still: str
) -> None:
    """Without dropout, two batches of 8 are one of 16."""
    whole = replace(options, model=still, strategy="joint")
    halves = replace(whole, batch_size=8, gradient_accumulation=2)
    a, b = (
        load_file(fine_tune(task, data_folder, taken, tmp_path / name, quiet=True) / "model.safetensors")
        for name, taken in (("whole", whole), ("halves", halves))
    )
    assert max((a[name] - b[name]).abs().max().item() for name in a) <= 1e-4


def test_logs_are_tensorboards(task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    fine_tune(task, data_folder, options, tmp_path / "output", logs=tmp_path / "logs", quiet=True)
    events = accumulator(str(tmp_path / "logs")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 4  # one for each step of so short a run
    assert all(loss > 0 for loss in losses)


def test_regression_starts_from_the_mean_of_the_labels(
    options: TrainingOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"the cat {word}\t{3.5 + sign}\n" for word in WORDS[:16] for sign in (-1.5, 1.5))
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + rows, encoding="utf-8")
    task = custom_task(tmp_path, ("text",), "label", regression=True)
    starts: list[float] = []
    train = MultiExitTrainer.train

    def note(self: MultiExitTrainer, **options: object) -> object:
        starts.extend(head.classifier.bias.item() for head in self.model.heads)
        return train(self, **options)

    monkeypatch.setattr(MultiExitTrainer, "train", note)
    fine_tune(task, tmp_path, replace(options, max_steps=1), tmp_path / "output", quiet=True)
    assert starts == [3.5, 3.5, 3.5]


def test_one_layer_has_no_other_exits(task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path) -> None:
    alone = replace(options, strategy="two-stage", layers=1)
    with pytest.raises(InputError, match="--strategy two-stage trains the exits before the last: one layer has none"):
        fine_tune(task, data_folder, alone, tmp_path / "output", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_the_first_steps_can_warm_up_the_last_exit(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    warm = replace(options, strategy="joint", lte=False, warm_up_steps=4)  # as long as the whole run
    fine_tuning.set_seed(warm.seed)
    before = {name: tensor.clone() for name, tensor in start_model(task, warm)[0].heads.state_dict().items()}
    after = load_checkpoint(fine_tune(task, data_folder, warm, tmp_path / "output", quiet=True))[0].heads.state_dict()
    last = [name for name in before if name.startswith("2.")]
    assert all(torch.equal(before[name], after[name]) for name in before if name not in last)
    assert not any(torch.equal(before[name], after[name]) for name in last)


def test_an_interrupted_run_with_other_options_is_not_mixed(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, task, data_folder, options, tmp_path / "output")
    other = replace(options, seed=1)
    with pytest.raises(InputError, match="interrupted run with other options or data: --force drops it"):
        fine_tune(task, data_folder, other, tmp_path / "output", quiet=True)
    fine_tune(task, data_folder, other, tmp_path / "output", quiet=True, force=True)
    record = json.loads((tmp_path / "output" / "training.json").read_text(encoding="utf-8"))
    assert (record["options"]["seed"], record["steps"]) == (1, 4)


def test_the_record_keeps_the_last_epochs_loss(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    combine = Alternating.combine

    def spy(self: Alternating, step: int, values: torch.Tensor) -> torch.Tensor:
        loss = combine(self, step, values)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(Alternating, "combine", spy)
    fine_tune(task, data_folder, options, tmp_path / "output", quiet=True)
    record = json.loads((tmp_path / "output" / "training.json").read_text(encoding="utf-8"))
    assert len(losses) == 4
    assert record["loss"] == pytest.approx(sum(losses[2:]) / 2, rel=1e-4)


def test_max_steps_ends_the_run_early(task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path) -> None:
    fine_tune(task, data_folder, replace(options, max_steps=1), tmp_path / "output", quiet=True)
    record = json.loads((tmp_path / "output" / "training.json").read_text(encoding="utf-8"))
    assert (record["steps"], record["train_examples"]) == (1, 32)
