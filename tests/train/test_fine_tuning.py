"""Fine-tuning: trained parameters per step, rejected options, and continuation after an interruption."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENCODERS, WORDS
from pytest import MonkeyPatch
from safetensors.torch import load_file
from transformers import TrainerCallback

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import write_json
from berxit.train import fine_tuning, stages, trainer
from berxit.train.checkpoint import load_checkpoint, read_record
from berxit.train.encoding import EncodedExamples
from berxit.train.fine_tuning import fine_tune, run_key, start_model
from berxit.train.objectives import Alternating, Raw
from berxit.train.options import TrainingOptions
from berxit.train.resuming import RunState, Stopwatch
from berxit.train.tasks import Task, custom_task
from berxit.train.tokenizing import saved_tokenizer
from berxit.train.trainer import ByLength, MultiExitTrainer, training_arguments


@pytest.fixture
def task(data_folder: Path) -> Task:
    return custom_task(data_folder, ("text",), "label")


@pytest.fixture
def options(backbone_folders: dict[str, Path]) -> TrainingOptions:
    return TrainingOptions(
        str(backbone_folders["bert"]), epochs=2, batch_size=16, learning_rate=1e-3, max_length=16, limit_train=32
    )


class Spy(Alternating):
    """Alternating that records its steps."""

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
    examples = task.read(data, "train").head(options.limit_train)
    dataset = EncodedExamples(examples, saved_tokenizer(tokenizer, options.model, 16))
    arguments = training_arguments(options, folder, 32)
    return MultiExitTrainer(
        model,
        replace(arguments, gradient_accumulation_steps=accumulate, save_strategy="no"),
        objective=objective,
        head_learning_rate=options.head_learning_rate,
        train_dataset=dataset,
        data_collator=dataset.collate,
    )


def test_alternation_counts_optimizer_steps(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    spy = Spy()
    small = replace(options, batch_size=4, epochs=1)
    trainer_of(task, small, data_folder, tmp_path, spy, accumulate=2).train()
    assert spy.steps == [1, 1, 2, 2, 3, 3, 4, 4]


def test_alternation_continues_across_epochs(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    spy = Spy()
    trainer_of(task, replace(options, limit_train=48), data_folder, tmp_path, spy).train()
    assert spy.steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("heads", "expected"), [(None, 1e-3), (0.5, 0.5)])
def test_exits_and_encoder_have_their_own_learning_rates(
    heads: float | None, expected: float, task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(task, replace(options, head_learning_rate=heads), data_folder, tmp_path, Alternating())
    encoder, exits = trainer.create_optimizer().param_groups
    model = trainer.model
    assert (encoder["lr"], exits["lr"]) == (1e-3, expected)
    assert {id(p) for p in encoder["params"]} == {id(p) for p in model.backbone.parameters()}
    assert {id(p) for p in exits["params"]} == {id(p) for p in [*model.heads.parameters(), *model.lte.parameters()]}
    assert (encoder["weight_decay"], exits["weight_decay"]) == (0.0, 0.0)


def test_training_arguments_are_the_papers(options: TrainingOptions, tmp_path: Path) -> None:
    paper = TrainingOptions.paper(options.model)
    assert (paper.pooling, paper.head_learning_rate) == ("first", None)
    assert (paper.epochs, paper.batch_size, paper.learning_rate, paper.seed) == (3, 8, 2e-5, 42)
    assert (paper.max_length, paper.strategy, paper.exit_head) == (128, "alternating", "linear")
    arguments = training_arguments(paper, tmp_path, 3668)
    assert (arguments.weight_decay, arguments.max_grad_norm, arguments.warmup_steps) == (0.0, 1.0, 0)
    assert arguments.lr_scheduler_type == "linear"


def test_raw_does_not_change_the_other_exits(
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


def test_second_stage_changes_no_bit_of_frozen_parameters(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    states = {}
    for strategy in ("raw", "two-stage", "self-distillation"):
        fine_tune(task, data_folder, replace(options, strategy=strategy), tmp_path / strategy)
        states[strategy] = load_file(tmp_path / strategy / "model.safetensors")
    first = states.pop("raw")
    for both in states.values():
        for name, weights in first.items():
            frozen = name.startswith(("backbone.", "heads.2."))
            assert torch.equal(weights, both[name]) == frozen, name


@pytest.mark.parametrize(
    ("strategy", "step"), [("two-stage", 3), pytest.param("self-distillation", 1, marks=pytest.mark.slow)]
)
def test_run_interrupted_in_its_second_stage_continues_there(
    strategy: str,
    step: int,
    task: Task,
    options: TrainingOptions,
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: MonkeyPatch,
) -> None:
    """At step 1 no state of the stage is saved yet: it starts from the weights of the first stage."""
    monkeypatch.setattr(trainer, "SAVE_EVERY", 1)
    two = replace(options, strategy=strategy)
    whole = fine_tune(task, data_folder, two, tmp_path / "whole")
    interrupt(monkeypatch, task, data_folder, two, tmp_path / "resumed", step=step, stage=2)
    stages: list[tuple[str, bool]] = []
    train = MultiExitTrainer.train

    def note(self: MultiExitTrainer, resume_from_checkpoint: str | None) -> object:
        stages.append((type(self.objective).__name__, resume_from_checkpoint is not None))
        return train(self, resume_from_checkpoint=resume_from_checkpoint)

    monkeypatch.setattr(MultiExitTrainer, "train", note)
    resumed = fine_tune(task, data_folder, two, tmp_path / "resumed")
    assert stages == [("OtherExits" if strategy == "two-stage" else "Distillation", step > 1)]
    assert difference(whole, resumed) <= 1e-6
    records = [json.loads((folder / "training.json").read_text(encoding="utf-8")) for folder in (whole, resumed)]
    assert records[0]["steps"] == records[1]["steps"] == 8  # both stages, all steps
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], abs=1e-4)


def difference(first: Path, second: Path) -> float:
    """Largest difference of any weight of two checkpoints."""
    a, b = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_limit_uses_the_first_layers_of_the_encoder(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    two, all_layers = (start_model(task, replace(options, layers=layers))[0] for layers in (2, None))
    assert (two.layers, len(two.heads), all_layers.layers) == (2, 2, 3)
    whole = all_layers.backbone.state_dict()
    assert all(torch.equal(weights, whole[name]) for name, weights in two.backbone.state_dict().items())
    fine_tune(task, data_folder, replace(options, strategy="limit", layers=1), tmp_path / "limit")
    assert load_checkpoint(tmp_path / "limit")[0].layers == 1
    with pytest.raises(InputError, match="limit needs --layers"):
        replace(options, strategy="limit")
    with pytest.raises(InputError, match="--layers 4 is more than the 3"):
        start_model(task, replace(options, layers=4))


def test_nan_loss_ends_the_run(task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BerxitError, match=r"the loss is nan at step \d+: use a lower --learning-rate"):
        fine_tune(task, data_folder, replace(options, learning_rate=1e30), tmp_path / "output")
    assert not (tmp_path / "output").exists()
    assert not (tmp_path / ".output.partial").exists()


def test_run_after_a_nan_loss_accepts_a_lower_learning_rate(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BerxitError, match="lower --learning-rate"):
        fine_tune(task, data_folder, replace(options, learning_rate=1e30), tmp_path / "output")
    fine_tune(task, data_folder, options, tmp_path / "output")
    assert (tmp_path / "output" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "guess"}, "unknown --strategy 'guess': choose one of alternating, joint"),
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
        ({"class_weights": "even"}, "unknown --class-weights 'even': choose one of none, balanced"),
        ({"early_stopping": 0}, "--early-stopping is 0: it must be above 0"),
    ],
)
def test_bad_options_raise_with_their_name(
    change: dict, message: str, task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fine_tune(task, data_folder, replace(options, **change), tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_start_model_rejects_more_tokens_than_positions(task: Task, options: TrainingOptions) -> None:
    with pytest.raises(InputError, match="--max-length 41 is more than the 40"):
        start_model(task, replace(options, max_length=41))


def test_missing_model_folder_raises_one_line(task: Task, options: TrainingOptions, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: --model is a model folder, or a name on the hub"):
        start_model(task, replace(options, model=str(tmp_path / "nowhere")))


def test_folder_without_a_model_raises_one_line(task: Task, options: TrainingOptions, tmp_path: Path) -> None:
    with pytest.raises(BerxitError, match="cannot load --model") as caught:
        start_model(task, replace(options, model=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_existing_output_is_kept(task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    with pytest.raises(InputError, match="exists: choose another --output, or replace it with --force"):
        fine_tune(task, data_folder, options, tmp_path / "output")
    assert list(tmp_path.iterdir()) == [tmp_path / "output"]


class Interrupt(TrainerCallback):
    """Ctrl-C at the end of an optimizer step, before its state is saved."""

    def __init__(self, step: int, stage: int) -> None:
        self.step, self.stage = step, stage

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        here = args.output_dir.endswith(f"stage-{self.stage}")  # type: ignore[attr-defined]
        if here and state.global_step == self.step:  # type: ignore[attr-defined]
            raise KeyboardInterrupt


def interrupt(monkeypatch: MonkeyPatch, *arguments: object, step: int = 3, stage: int = 1) -> None:
    """By default in the second epoch."""

    class Interrupted(MultiExitTrainer):
        def __init__(self, *positional: object, **named: object) -> None:
            super().__init__(*positional, callbacks=[Interrupt(step, stage)], **named)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "MultiExitTrainer", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(*arguments)


def test_interrupted_run_ends_with_the_same_weights(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    whole = load_file(fine_tune(task, data_folder, options, tmp_path / "whole") / "model.safetensors")
    output = tmp_path / "output"
    interrupt(monkeypatch, task, data_folder, options, output)
    assert not output.exists()
    assert (tmp_path / ".output.training").is_dir()
    steps: list[int] = []
    combine = Alternating.combine
    monkeypatch.setattr(
        Alternating, "combine", lambda self, step, losses: steps.append(step) or combine(self, step, losses)
    )
    fine_tune(task, data_folder, options, output)
    assert steps == [3, 4]  # the first epoch was not repeated
    resumed = load_file(output / "model.safetensors")
    assert resumed.keys() == whole.keys()
    assert max((resumed[name] - whole[name]).abs().max().item() for name in whole) <= 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "whole"]


@pytest.mark.parametrize("step", [2, 4])
def test_run_interrupted_in_an_epoch_ends_with_the_same_weights(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(trainer, "SAVE_EVERY", 1)
    whole = load_file(fine_tune(task, data_folder, options, tmp_path / "whole") / "model.safetensors")
    interrupt(monkeypatch, task, data_folder, options, tmp_path / "output", step=step)
    saved = [path.name for path in (tmp_path / ".output.training" / "stage-1").glob("checkpoint-*")]
    assert saved == [f"checkpoint-{step - 1}"]
    resumed = load_file(fine_tune(task, data_folder, options, tmp_path / "output") / "model.safetensors")
    assert max((resumed[name] - whole[name]).abs().max().item() for name in whole) <= 1e-6


def test_partially_saved_state_is_ignored(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SAVE_EVERY", 1)
    whole = fine_tune(task, data_folder, options, tmp_path / "whole")
    interrupt(monkeypatch, task, data_folder, options, tmp_path / "output", step=3)
    half = tmp_path / ".output.training" / "stage-1" / "checkpoint-3"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert difference(whole, fine_tune(task, data_folder, options, tmp_path / "output")) <= 1e-6


@pytest.mark.parametrize("change", [{"metric": "f1"}, {"labels": ("other", "cat")}, {"label_column": "text"}])
def test_interrupted_run_of_another_task_is_not_continued(
    change: dict, task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    interrupt(monkeypatch, task, data_folder, options, tmp_path / "output")
    kept = RunState.of(tmp_path / "output")
    train_file = data_folder / "train.tsv"
    with kept.prepared(run_key(task, options, train_file, 1), force=False):
        pass
    for other in (run_key(replace(task, **change), options, train_file, 1), run_key(task, options, train_file, 2)):
        message = r"interrupted run with other options or data \(.*add --force to delete it and start again"
        with pytest.raises(InputError, match=message), kept.prepared(other, force=False):
            pass
    assert kept.last_checkpoint(1) is not None


def test_machines_without_shared_output_raise_an_error(tmp_path: Path) -> None:
    state = RunState.of(tmp_path / "output")
    with pytest.raises(BerxitError, match="multi-node training needs an --output on shared storage"):
        state.check_shared()
    with state.prepared({"seed": 1}, force=False):
        state.check_shared()


def test_seconds_add_up_across_an_interruption(tmp_path: Path) -> None:
    write_json({"seconds": 100.0}, tmp_path / "seconds.json")
    assert 100 <= Stopwatch(str(tmp_path)).seconds < 101
    assert Stopwatch(None).seconds < 1


def test_one_process_uses_one_gpu_and_reports_it(
    options: TrainingOptions, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    arguments = training_arguments(options, tmp_path, 32)
    arguments._n_gpu = 4
    assert trainer.on_one_device(arguments).n_gpu == 1
    assert arguments.train_batch_size == options.batch_size
    said: list[str] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    fine_tuning.one_of_many(1, said.append)
    fine_tuning.one_of_many(4, said.append)
    assert said == ["using 1 of 4 GPUs: torchrun --nproc-per-node 4 --no-python berxit-train ... uses them all"]


def test_skip_bad_rows_skips_and_reports_them(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    for split in ("train", "dev"):
        text = (data_folder / f"{split}.tsv").read_text(encoding="utf-8")
        (tmp_path / f"{split}.tsv").write_text(text + "a\tb\tc\n", encoding="utf-8")
    said: list[str] = []
    brief = replace(options, max_steps=1, limit_train=None)
    with pytest.raises(InputError, match=r"train\.tsv, line 98: 3 columns"):
        fine_tune(task, tmp_path, brief, tmp_path / "output")
    skip = replace(brief, skip_bad_rows=True)
    output = fine_tune(task, tmp_path, skip, tmp_path / "output", report=said.append)
    assert [line.partition(" of ")[0] for line in said if "bad row" in line] == ["skipped 1 bad row"] * 2
    record = json.loads((output / "training.json").read_text(encoding="utf-8"))
    assert (record["train_examples"], record["options"]["skip_bad_rows"]) == (96, True)


def test_bad_dev_row_raises_before_training(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    (tmp_path / "train.tsv").write_bytes((data_folder / "train.tsv").read_bytes())
    (tmp_path / "dev.tsv").write_text("text\tlabel\nthe cat\tfish\n", encoding="utf-8")
    monkeypatch.setattr(MultiExitTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError, match=r"dev\.tsv, line 2: unknown label 'fish'"):
        fine_tune(task, tmp_path, options, tmp_path / "output")


@pytest.mark.parametrize("family", ENCODERS)
def test_every_family_is_fine_tuned(
    family: str,
    task: Task,
    options: TrainingOptions,
    backbone_folders: dict[str, Path],
    data_folder: Path,
    tmp_path: Path,
) -> None:
    brief = replace(options, model=str(backbone_folders[family]), max_steps=2, exit_head="pooler", pooling="mean")
    fine_tuning.set_seed(brief.seed)
    before = start_model(task, brief)[0].state_dict()
    after = load_checkpoint(fine_tune(task, data_folder, brief, tmp_path / "output"))[0].state_dict()
    assert before.keys() == after.keys()
    learnt = {name for name in after if not torch.equal(before[name], after[name])}
    assert {"lte.weight", *(f"heads.{layer}.classifier.weight" for layer in range(3))} <= learnt
    assert any(name.startswith("backbone.") and "embeddings" in name for name in learnt)


def test_order_differs_per_epoch_and_depends_only_on_the_seed() -> None:
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


def test_batches_of_similar_length_need_less_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 100, 640).tolist()

    def padding(order: list[int]) -> int:
        batches = [[lengths[row] for row in order[start : start + 8]] for start in range(0, len(order), 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    shuffled = rng.permutation(640).tolist()
    grouped = list(ByLength(lengths, 8, seed=0))
    assert sorted(grouped) == list(range(640))
    assert padding(grouped) < 0.2 * padding(shuffled)


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_computes_layers_in_bfloat16_and_keeps_float32_weights(
    bf16: bool, dtype: torch.dtype, task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    made = trainer_of(task, replace(options, bf16=bf16, epochs=1), data_folder, tmp_path, Alternating())
    seen: set[torch.dtype] = set()
    dense = made.model.backbone.encoder.layer[1].intermediate.dense
    dense.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    made.train()
    assert seen == {dtype}
    assert {parameter.dtype for parameter in made.model.parameters()} == {torch.float32}


def test_gradient_accumulation_equals_one_larger_batch(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, still: str
) -> None:
    """Without dropout, two batches of 8 give the step of one batch of 16."""
    whole = replace(options, model=still, strategy="joint")
    halves = replace(whole, batch_size=8, gradient_accumulation=2)
    a, b = (
        load_file(fine_tune(task, data_folder, taken, tmp_path / name) / "model.safetensors")
        for name, taken in (("whole", whole), ("halves", halves))
    )
    assert max((a[name] - b[name]).abs().max().item() for name in a) <= 1e-4


def test_logs_are_readable_by_tensorboard(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    fine_tune(task, data_folder, options, tmp_path / "output", logs=tmp_path / "logs")
    events = accumulator(str(tmp_path / "logs")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 4  # one per step of a short run
    assert all(loss > 0 for loss in losses)


def test_regression_heads_start_at_the_mean_label(
    options: TrainingOptions, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    rows = "".join(f"the cat {word}\t{3.5 + sign}\n" for word in WORDS[:16] for sign in (-1.5, 1.5))
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + rows, encoding="utf-8")
    task = custom_task(tmp_path, ("text",), "label", kind="regression")
    starts: list[float] = []
    train = MultiExitTrainer.train

    def note(self: MultiExitTrainer, **options: object) -> object:
        starts.extend(head.classifier.bias.item() for head in self.model.heads)
        return train(self, **options)

    monkeypatch.setattr(MultiExitTrainer, "train", note)
    fine_tune(task, tmp_path, replace(options, max_steps=1), tmp_path / "output")
    assert starts == [3.5, 3.5, 3.5]


def test_two_stage_rejects_a_model_of_one_layer(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    alone = replace(options, strategy="two-stage", layers=1)
    with pytest.raises(InputError, match="--strategy two-stage trains the exits before the last: one layer has none"):
        fine_tune(task, data_folder, alone, tmp_path / "output")
    assert list(tmp_path.iterdir()) == []


def test_warm_up_steps_train_the_last_exit_alone(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning, "describe_plan", lambda *arguments: "")  # it rejects a run of warm-up only
    warm = replace(options, strategy="joint", lte=False, warm_up_steps=4)  # as long as the whole run
    fine_tuning.set_seed(warm.seed)
    before = {name: tensor.clone() for name, tensor in start_model(task, warm)[0].heads.state_dict().items()}
    after = load_checkpoint(fine_tune(task, data_folder, warm, tmp_path / "output"))[0].heads.state_dict()
    last = [name for name in before if name.startswith("2.")]
    assert all(torch.equal(before[name], after[name]) for name in before if name not in last)
    assert not any(torch.equal(before[name], after[name]) for name in last)


def test_interrupted_run_with_other_options_is_not_continued(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    interrupt(monkeypatch, task, data_folder, options, tmp_path / "output")
    other = replace(options, seed=1)
    with pytest.raises(InputError, match=r"interrupted run with other options or data \(seed 42, now 1\): rerun with"):
        fine_tune(task, data_folder, other, tmp_path / "output")
    fine_tune(task, data_folder, other, tmp_path / "output", force=True)
    record = json.loads((tmp_path / "output" / "training.json").read_text(encoding="utf-8"))
    assert (record["options"]["seed"], record["steps"]) == (1, 4)


def test_record_contains_the_last_epochs_loss(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    losses: list[float] = []
    combine = Alternating.combine

    def spy(self: Alternating, step: int, values: torch.Tensor) -> torch.Tensor:
        loss = combine(self, step, values)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(Alternating, "combine", spy)
    fine_tune(task, data_folder, options, tmp_path / "output")
    record = json.loads((tmp_path / "output" / "training.json").read_text(encoding="utf-8"))
    assert len(losses) == 4
    assert record["loss"] == pytest.approx(sum(losses[2:]) / 2, rel=1e-4)


def test_max_steps_ends_the_run_early(task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path) -> None:
    fine_tune(task, data_folder, replace(options, max_steps=1), tmp_path / "output")
    record = json.loads((tmp_path / "output" / "training.json").read_text(encoding="utf-8"))
    assert (record["steps"], record["train_examples"]) == (1, 32)


def test_fine_tune_records_the_loss_of_a_run_shorter_than_the_logging_interval(
    task: Task, still: str, data_folder: Path, tmp_path: Path
) -> None:
    options = TrainingOptions(still, batch_size=1, max_steps=1, max_length=32)
    fine_tune(task, data_folder, options, tmp_path / "checkpoint")
    assert read_record(tmp_path / "checkpoint")["loss"] > 0


class RecordedBar:
    """Progress callback that records lengths, steps and notes."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.steps: list[int] = []
        self.notes: list[str] = []
        self.open = 0

    @contextmanager
    def __call__(self, length: int) -> Iterator[RecordedBar]:
        self.lengths.append(length)
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    def update(self, n_steps: int) -> None:
        self.steps.append(n_steps)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_fine_tune_reports_steps_and_loss_to_the_progress_callback(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bar = RecordedBar()
    brief = replace(options, epochs=1, limit_train=None, max_steps=4)
    fine_tune(task, data_folder, brief, tmp_path / "output", progress=bar)
    assert (bar.lengths[-1], bar.open) == (4, 0)
    assert bar.steps[-4:] == [1, 1, 1, 1]
    assert re.fullmatch(r"loss \d+\.\d{3}", bar.notes[-1])
    printed = capfd.readouterr()
    assert (printed.out, "loss" in printed.err) == ("", False)  # transformers' own bars are its user's choice


def test_fine_tune_closes_the_bar_after_a_failure(
    task: Task, options: TrainingOptions, data_folder: Path, tmp_path: Path
) -> None:
    bar = RecordedBar()
    with pytest.raises(BerxitError, match="the loss is"):
        fine_tune(task, data_folder, replace(options, learning_rate=1e30), tmp_path / "output", progress=bar)
    assert bar.open == 0


def test_fine_tune_refuses_an_output_that_another_process_is_writing(
    backbone_folders: dict[str, Path], data_folder: Path, tmp_path: Path
) -> None:
    """Otherwise both would train to the end and overwrite each other's state."""
    output = tmp_path / "ckpt"
    state = RunState.of(output)
    options = TrainingOptions(str(backbone_folders["bert"]), max_steps=2, batch_size=4, max_length=32)
    with state.prepared({"options": {}}, force=False), pytest.raises(InputError, match="another process is writing"):
        fine_tune(custom_task(data_folder, ("text",), "label"), data_folder, options, output, force=True)
    assert not output.exists()
