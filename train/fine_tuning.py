"""Fine-tuning a multi-exit model: transformers' Trainer with our objective, from options to a checkpoint."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint, set_seed

from runtime.bundle import sha256
from runtime.errors import BerxitError, InputError
from runtime.examples import Examples, find_split, has_split
from runtime.json_data import read_json, write_json
from train.checkpoint import (
    TrainingRecord,
    refuse_to_overwrite,
    save_checkpoint,
    write_whole,
)
from train.configuration import EXIT_HEADS, POOLINGS
from train.encoding import EncodedExamples
from train.modeling import MultiExitModel
from train.objectives import STRATEGIES, Objective
from train.tasks import Task

NAN_CHECK_EVERY = 10
"""Optimiser steps. Looking at the loss makes a GPU wait, so not at every step; a loss that is NaN once stays so."""
STAGE_DONE = "model.safetensors"
"""Where a stage leaves the weights that the next one starts from."""
SAMPLES = 32
"""Texts of the data that a checkpoint carries along; they become the golden inputs of its bundles."""


@dataclass(frozen=True)
class TrainingOptions:
    """What the user chose; the defaults are the paper's (appendix B)."""

    model: str
    strategy: str = "alternating"
    lte: bool = True
    layers: int | None = None
    """Only the first so many layers of the encoder; None takes all."""
    exit_head: str = "linear"
    pooling: str = "first"
    epochs: float = 3
    max_steps: int | None = None
    batch_size: int = 8
    learning_rate: float = 2e-5
    head_learning_rate: float | None = None
    """Of the exits and the LTE module; None takes ``learning_rate``, as the paper does."""
    seed: int = 42
    max_length: int = 128
    limit_train: int | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError(f"unknown strategy '{self.strategy}': choose one of {', '.join(STRATEGIES)}")
        numbers = ("epochs", "max_steps", "batch_size", "learning_rate", "head_learning_rate", "limit_train", "layers")
        for flag in numbers:
            value = getattr(self, flag)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{flag.replace('_', '-')} is {value}: it must be above 0, and finite")
        if self.strategy == "limit" and self.layers is None:
            raise InputError("--strategy limit needs --layers: how many of the encoder's first layers to take")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed is {self.seed}: it must be from 0 to 2^32 - 1")
        for flag, choices in (("exit_head", EXIT_HEADS), ("pooling", POOLINGS)):
            if getattr(self, flag) not in choices:
                raise InputError(
                    f"unknown --{flag.replace('_', '-')} '{getattr(self, flag)}': choose one of {', '.join(choices)}"
                )
        if self.max_length < 4:
            raise InputError(f"--max-length is {self.max_length}: too short for a text between its special tokens")


class MultiExitTrainer(Trainer):
    """Trainer whose loss is the strategy's. The alternation counts optimiser steps, not micro-batches."""

    optimizer: Any

    def __init__(
        self, *arguments: Any, objective: Objective, head_learning_rate: float | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.objective = objective
        self.head_learning_rate = head_learning_rate or self.args.learning_rate
        self.model_accepts_loss_kwargs = False  # our losses are means over the batch

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with a learning rate for the encoder and one for the exits."""
        if self.optimizer is None:
            named = [(name, p) for name, p in (model or self.model).named_parameters() if p.requires_grad]
            groups = [
                {"params": [p for name, p in named if _in_encoder(name)], "lr": self.args.learning_rate},
                {"params": [p for name, p in named if not _in_encoder(name)], "lr": self.head_learning_rate},
            ]
            groups = [group for group in groups if group["params"]]  # a stage may freeze all of one
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(groups, **{**options, "weight_decay": self.args.weight_decay})
        return self.optimizer

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        step = self.state.global_step + 1
        loss = self.objective.loss(step, outputs, labels, self.model.config.regression)
        if step % NAN_CHECK_EVERY == 0:
            check_loss(loss.item(), step)
        return (loss, outputs) if return_outputs else loss


class LossOnTheBar(ProgressCallback):
    """Trainer's progress bar, with the loss at its end instead of a printed dictionary per epoch."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def _in_encoder(name: str) -> bool:
    return name.removeprefix("module.").startswith("backbone.")  # "module." is what data parallel wrappers add


def fine_tune(
    task: Task, data: Path, options: TrainingOptions, output: Path, *, force: bool = False, quiet: bool = False
) -> Path:
    """Trains on DATA's training split and writes the checkpoint ``output``, whole or not at all.

    An interrupted run leaves its last state in ``.OUTPUT.training``; the same command goes on from there. Raises
    InputError for bad options or data, BerxitError for a model that cannot be loaded or a loss that is not finite.
    """
    refuse_to_overwrite(output, force)
    train_file = find_split(data, "train")
    examples = task.read(data, "train").head(options.limit_train)
    set_seed(options.seed)
    model, tokenizer = start_model(task, options)
    state = output.with_name(f".{output.name}.training")
    _prepare_state(state, {**asdict(options), "task": task.name, "train_sha256": sha256(train_file)}, force)
    dataset = EncodedExamples(examples, tokenizer, options.max_length)
    start, steps = time.monotonic(), 0
    stages = STRATEGIES[options.strategy]
    for number, objective in enumerate(stages, start=1):
        folder = state / f"stage-{number}"
        if (folder / STAGE_DONE).is_file():  # an interrupted run had this stage behind it
            load_model(model, str(folder / STAGE_DONE))
            continue
        trainer = _trainer(model, tokenizer, dataset, objective(), options, folder, quiet)
        try:
            result = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
            check_loss(result.training_loss, result.global_step)
        except BerxitError:  # a loss that is not finite: what was kept to go on from is spoilt too
            shutil.rmtree(state, ignore_errors=True)
            raise
        steps += result.global_step
        if number < len(stages):
            save_model(model, str(folder / STAGE_DONE))
    record = TrainingRecord(
        options=asdict(options),
        train_file=str(train_file),
        train_sha256=sha256(train_file),
        train_examples=len(examples),
        steps=steps,
        seconds=round(time.monotonic() - start, 1),
        loss=next(log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log),
        device=str(model.device),
        versions={name: version(name) for name in ("torch", "transformers")},
    )
    if trainer.is_world_process_zero():
        with write_whole(output, force=force) as folder:
            save_checkpoint(folder, model, tokenizer, record, _samples(task, data, examples))
        shutil.rmtree(state, ignore_errors=True)
    return output


def start_model(task: Task, options: TrainingOptions) -> tuple[MultiExitModel, PreTrainedTokenizerBase]:
    """The pre-trained encoder with fresh exits for the task, and its tokenizer."""
    if not Path(options.model).is_dir() and (options.model.startswith((".", "/", "~")) or options.model.count("/") > 1):
        raise InputError(f"no folder {options.model}: --model is a model folder, or a name on the hub (OWNER/NAME)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = MultiExitModel.from_backbone(
            options.model,
            layers=options.layers,
            exit_head=options.exit_head,
            pooling=options.pooling,
            lte=options.lte,
            strategy=options.strategy,
            task=task.name,
            problem_type="regression" if task.regression else "single_label_classification",
            id2label=dict(enumerate(task.labels)) if task.labels else {0: "value"},
            label2id={name: i for i, name in enumerate(task.labels or ("value",))},
            metric=task.metric,
            text_columns=task.text_columns,
            label_column=task.label_column,
            max_length=options.max_length,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or [""])[0][:200].rstrip(".")
        raise BerxitError(
            f"cannot load --model {options.model}: {reason}. Give a model folder or a hub name"
        ) from error
    if options.max_length > model.adapter.max_length:
        raise InputError(
            f"--max-length {options.max_length} is more than the {model.adapter.max_length} of {options.model}"
        )
    return model, tokenizer


def training_arguments(options: TrainingOptions, state: Path, quiet: bool) -> TrainingArguments:
    """The paper's recipe: AdamW, linear decay without warm-up, no weight decay, gradients clipped at 1."""
    return TrainingArguments(
        output_dir=str(state),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        warmup_steps=0,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",  # one pass over the weights; on a CPU five times faster than the default
        seed=options.seed,
        data_seed=options.seed,
        train_sampling_strategy="group_by_length",
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=quiet,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def check_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise BerxitError(
            f"the loss is {loss} at step {step}: lower --learning-rate, or look for bad values in the data"
        )


def _prepare_state(state: Path, run: dict[str, Any], force: bool) -> None:
    """The folder from which an interrupted run goes on: kept if it is of the same run, else made anew."""
    marker = state / "run.json"
    if marker.is_file() and not force:
        if read_json(marker) != run:
            raise InputError(f"{state} holds an interrupted run with other options: --force drops it")
        return
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    write_json(run, marker)


def _trainer(
    model: MultiExitModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: EncodedExamples,
    objective: Objective,
    options: TrainingOptions,
    state: Path,
    quiet: bool,
) -> MultiExitTrainer:
    """The trainer of one stage; parameters that the stage does not train stand still."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(objective.trains(name, model.layers))
    trainer = MultiExitTrainer(
        model,
        training_arguments(options, state, quiet),
        objective=objective,
        head_learning_rate=options.head_learning_rate,
        train_dataset=dataset,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    for plain in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(plain)
    if not quiet:
        trainer.add_callback(LossOnTheBar)
    return trainer


def _samples(task: Task, data: Path, examples: Examples) -> list[Any]:
    """Texts spread over the dev split, which training has not seen; over the training split where there is none."""
    if data.is_dir() and has_split(data, "dev"):
        examples = task.read(data, "dev")
    step = max(1, len(examples) // SAMPLES)
    return examples.texts[::step][:SAMPLES]
