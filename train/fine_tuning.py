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
from accelerate import PartialState
from safetensors.torch import load_model, save_model
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
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
from train.objectives import STRATEGIES, TAKES, LossOptions, Objective, layer_weights
from train.tasks import Task

NAN_CHECK_EVERY = 10
"""Optimiser steps. Looking at the loss makes a GPU wait, so not at every step; a loss that is NaN once stays so."""
SAVE_EVERY = 1000
"""Optimiser steps, or every epoch where that is sooner: what an interruption costs at most."""
LOGS_PER_EPOCH = 20
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
    """Rows per process and batch."""
    gradient_accumulation: int = 1
    """Batches per optimiser step."""
    learning_rate: float = 2e-5
    head_learning_rate: float | None = None
    """Of the exits and the LTE module; None takes ``learning_rate``, as the paper does."""
    seed: int = 42
    max_length: int = 128
    limit_train: int | None = None
    bf16: bool = False
    """Mixed precision: matrix products in bfloat16, weights and losses in float32."""
    warm_up_steps: int = 0
    """This and the next two: see train.objectives.LossOptions."""
    distillation: float = 0.0
    layer_weights: str = "uniform"
    """uniform, linear, or n numbers with commas."""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError(f"unknown strategy '{self.strategy}': choose one of {', '.join(STRATEGIES)}")
        numbers = (
            "epochs",
            "max_steps",
            "batch_size",
            "gradient_accumulation",
            "learning_rate",
            "head_learning_rate",
            "limit_train",
            "layers",
        )
        for flag in numbers:
            value = getattr(self, flag)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{flag.replace('_', '-')} is {value}: it must be above 0, and finite")
        for flag in ("warm_up_steps", "distillation"):
            value = getattr(self, flag)
            if not 0 <= value < math.inf:
                raise InputError(f"--{flag.replace('_', '-')} is {value}: it must be 0 (off) or above, and finite")
        chosen = {
            "warm_up_steps": self.warm_up_steps,
            "distillation": self.distillation,
            "layer_weights": self.layer_weights != "uniform",
        }
        for flag, value in chosen.items():
            if value and flag not in TAKES.get(self.strategy, ()):
                raise InputError(f"--{flag.replace('_', '-')} goes with --strategy {' or '.join(TAKES)}")
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

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Rows of about the same length together; over all processes, so that none waits for another's long rows."""
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ByLength(self.train_dataset.lengths, rows, self.args.seed)  # type: ignore[union-attr]


class ByLength(LengthGroupedSampler):
    """transformers' sampler with an order that depends on seed and epoch alone, so that a run which resumes in the
    middle of an epoch sees the rows that it has not seen, and all processes draw the same order."""

    def __init__(self, lengths: list[int], rows: int, seed: int) -> None:
        super().__init__(rows, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


class LossOnTheBar(ProgressCallback):
    """Trainer's progress bar, with the loss at its end instead of a printed dictionary per epoch."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def _in_encoder(name: str) -> bool:
    return name.removeprefix("module.").startswith("backbone.")  # "module." is what data parallel wrappers add


def fine_tune(
    task: Task,
    data: Path,
    options: TrainingOptions,
    output: Path,
    *,
    logs: Path | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Path:
    """Trains on DATA's training split and writes the checkpoint ``output``, whole or not at all.

    ``logs``: a folder for TensorBoard. An interrupted run leaves its last state in ``.OUTPUT.training``; the same
    command goes on from there. Under torchrun or accelerate launch every process calls this, and the first one writes.

    Raises InputError for bad options or data, BerxitError for a model that cannot be loaded or a loss that is not
    finite.
    """
    processes = PartialState()
    refuse_to_overwrite(output, force)
    train_file = find_split(data, "train")
    examples = task.read(data, "train").head(options.limit_train)
    set_seed(options.seed)
    model, tokenizer = start_model(task, options)
    if task.regression:
        model.answer_at_first(float(examples.labels.mean()))
    losses = LossOptions(
        options.warm_up_steps, options.distillation, layer_weights(options.layer_weights, model.layers)
    )
    stages = [stage(losses) for stage in STRATEGIES[options.strategy]]
    if len(stages) > 1 and model.layers == 1:
        raise InputError(f"--strategy {options.strategy} trains the exits before the last: one layer has none")
    state = output.with_name(f".{output.name}.training")
    if processes.is_main_process:
        _prepare_state(state, {**asdict(options), "task": task.name, "train_sha256": sha256(train_file)}, force)
    processes.wait_for_everyone()
    dataset = EncodedExamples(examples, tokenizer, options.max_length)
    start, steps = time.monotonic(), 0
    for number, objective in enumerate(stages, start=1):
        folder = state / f"stage-{number}"
        if (folder / STAGE_DONE).is_file():  # an interrupted run had this stage behind it
            load_model(model, str(folder / STAGE_DONE))
            continue
        trainer = _trainer(model, tokenizer, dataset, objective, options, folder, quiet)
        if logs is not None:
            trainer.add_callback(_tensorboard(logs / f"stage-{number}" if len(stages) > 1 else logs))
        try:
            result = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
            check_loss(result.training_loss, result.global_step)
        except BerxitError:  # a loss that is not finite: what was kept to go on from is spoilt too
            shutil.rmtree(state, ignore_errors=True)
            raise
        steps += result.global_step
        if number < len(stages) and processes.is_main_process:
            save_model(model, str(folder / STAGE_DONE))
        processes.wait_for_everyone()
    record = TrainingRecord(
        options=asdict(options),
        train_file=str(train_file),
        train_sha256=sha256(train_file),
        train_examples=len(examples),
        steps=steps,
        seconds=round(time.monotonic() - start, 1),
        loss=_last_epochs_loss(trainer),
        device=str(model.device),
        versions={name: version(name) for name in ("torch", "transformers")},
    )
    if processes.is_main_process:
        with write_whole(output, force=force) as folder:
            save_checkpoint(folder, model, tokenizer, record, _samples(task, data, examples))
        shutil.rmtree(state, ignore_errors=True)
    processes.wait_for_everyone()
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


def training_arguments(options: TrainingOptions, state: Path, quiet: bool, examples: int) -> TrainingArguments:
    """The paper's recipe: AdamW, linear decay without warm-up, no weight decay, gradients clipped at 1."""
    rows = options.batch_size * options.gradient_accumulation * PartialState().num_processes
    epoch = math.ceil(examples / rows)
    return TrainingArguments(
        output_dir=str(state),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        bf16=options.bf16,
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        warmup_steps=0,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",  # one pass over the weights; on a CPU five times faster than the default
        seed=options.seed,
        data_seed=options.seed,
        save_strategy="steps",
        save_steps=min(epoch, SAVE_EVERY),
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=max(1, epoch // LOGS_PER_EPOCH),
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=quiet,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # every step reaches all that its stage trains; see Alternating
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
        training_arguments(options, state, quiet, len(dataset)),
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


def _tensorboard(logs: Path) -> TensorBoardCallback:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise BerxitError("--tensorboard: it is not installed here: pip install tensorboard") from None
    return TensorBoardCallback(SummaryWriter(str(logs)))


def _last_epochs_loss(trainer: Trainer) -> float:
    """The mean over the last epoch's logs."""
    logs = [log for log in trainer.state.log_history if "loss" in log]
    last = [log["loss"] for log in logs if log["epoch"] > logs[-1]["epoch"] - 1]
    return float(sum(last) / len(last))


def _samples(task: Task, data: Path, examples: Examples) -> list[Any]:
    """Texts spread over the dev split, which training has not seen; over the training split where there is none."""
    if data.is_dir() and has_split(data, "dev"):
        examples = task.read(data, "dev")
    step = max(1, len(examples) // SAMPLES)
    return examples.texts[::step][:SAMPLES]
