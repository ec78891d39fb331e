"""transformers' Trainer with our objectives: learning rates, batch order, progress bar, and the paper's
hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from berxit.devices import install_command
from berxit.runtime.errors import BerxitError, DivergedError
from berxit.runtime.progress import Bar, Progress, show_note
from berxit.train.evaluation import best_device
from berxit.train.losses import by_head
from berxit.train.objectives import Objective
from berxit.train.options import TrainingOptions

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NAN_CHECK_EVERY = 10
"""Optimizer steps between two checks of the loss. Reading the loss synchronizes the GPU, and a NaN loss stays NaN."""
SAVE_EVERY = 1000
"""Optimizer steps between two checkpoints; an epoch if that is shorter. An interruption loses at most this many."""
LOGS_PER_EPOCH = 20


def processes_here() -> PartialState:
    """The processes that torchrun or accelerate launch started. On a machine without GPU, accelerate recognizes them
    only with ``cpu=True``."""
    return PartialState(cpu=best_device().type == "cpu")


class MultiExitTrainer(Trainer):
    """Trainer with the loss of an objective. Steps are optimizer steps and not micro-batches."""

    optimizer: Any

    def __init__(
        self, *arguments: Any, objective: Objective, head_learning_rate: float | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.objective = objective
        self.head_learning_rate = head_learning_rate or self.args.learning_rate
        self.model_accepts_loss_kwargs = False  # our losses are means over the batch

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with separate learning rates for the encoder and the exits."""
        if self.optimizer is None:
            named = [(name, p) for name, p in (model or self.model).named_parameters() if p.requires_grad]
            groups = [
                {"params": [p for name, p in named if _in_encoder(name)], "lr": self.args.learning_rate},
                {"params": [p for name, p in named if not _in_encoder(name)], "lr": self.head_learning_rate},
            ]
            groups = [group for group in groups if group["params"]]  # A stage may freeze a complete group.
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(groups, **{**options, "weight_decay": self.args.weight_decay})
        return self.optimizer

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        step = self.state.global_step + 1
        config = self.model.config
        outputs.exit_logits = by_head(outputs.exit_logits, config.task_kind)
        loss = self.objective.loss(step, outputs, labels, config.regression)
        if step % NAN_CHECK_EVERY == 0:
            check_loss(loss.item(), step)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Batches of rows of similar length over all processes, so that no process waits for longer rows elsewhere."""
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ByLength(self.train_dataset.lengths, rows, self.args.seed)  # type: ignore[union-attr]


class ByLength(LengthGroupedSampler):
    """transformers' LengthGroupedSampler with an order that depends only on seed and epoch. A run that resumes within
    an epoch therefore continues with the remaining rows, and all processes use the same order."""

    def __init__(self, lengths: list[int], rows: int, seed: int) -> None:
        super().__init__(rows, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


class StepProgress(TrainerCallback):
    """Reports optimizer steps and the last logged loss to a progress callback. ``stack`` closes its bar."""

    def __init__(self, progress: Progress, stack: ExitStack, report: Callable[[str], None] = lambda line: None) -> None:
        self._progress, self._stack, self._report = progress, stack, report
        self._bar: Bar | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = self._stack.enter_context(self._progress(state.max_steps))
        self._bar.update(state.global_step)  # steps of the interrupted run

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def line(self, text: str) -> None:
        """Reports a line, above the bar if there is one on the screen."""
        getattr(self._bar, "line", self._report)(text)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self._bar is not None and logs and "loss" in logs:
            show_note(self._bar, f"loss {float(logs['loss']):.3f}")


def _in_encoder(name: str) -> bool:
    return name.removeprefix("module.").startswith("backbone.")  # Data parallel wrappers add "module.".


def training_arguments(options: TrainingOptions, state: Path, examples: int) -> TrainingArguments:
    """The paper's hyperparameters: AdamW, linear decay without warm-up, no weight decay, gradients clipped at 1."""
    rows = options.batch_size * options.gradient_accumulation * processes_here().num_processes
    epoch = math.ceil(examples / rows)
    arguments = TrainingArguments(
        output_dir=str(state),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        bf16=options.bf16,
        use_cpu=best_device().type == "cpu",
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        warmup_steps=0,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",  # One pass over the weights, five times as fast as the default on a CPU.
        seed=options.seed,
        data_seed=options.seed,
        save_strategy="steps",
        save_steps=min(epoch, SAVE_EVERY),
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=max(1, epoch // LOGS_PER_EPOCH),
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # Every step has gradients for all parameters of its stage, see Alternating.
    )
    return on_one_device(arguments)


def on_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """The arguments for one GPU per process. Without this, Trainer uses DataParallel on all visible GPUs, which
    multiplies the batch size. For several GPUs, see torchrun in docs/training.md."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def check_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss is {loss} at step {step}: use a lower --learning-rate, or check the labels for extreme values"
        )


def summary_writer() -> type[SummaryWriter]:
    """The class that writes TensorBoard logs. Raises BerxitError with the pip command if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise BerxitError(f"--tensorboard needs tensorboard: {install_command('tensorboard')}") from None
    return SummaryWriter


def tensorboard(logs: Path) -> TensorBoardCallback:
    return TensorBoardCallback(summary_writer()(str(logs)))


def last_epochs_loss(trainer: Trainer) -> float:
    """Mean loss of the last epoch's logs; of all steps if the run ended before its first log."""
    history = trainer.state.log_history
    logs = [log for log in history if "loss" in log]
    if not logs:
        return float(next(log["train_loss"] for log in reversed(history) if "train_loss" in log))
    last = [log["loss"] for log in logs if log["epoch"] > logs[-1]["epoch"] - 1]
    return float(sum(last) / len(last))
