"""The stages of a strategy, one after another, each with its own trainer. An interrupted stage resumes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from transformers.trainer_callback import PrinterCallback, ProgressCallback

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.progress import Progress, duration, silent
from berxit.runtime.tokenization import TextTokenizer
from berxit.train import objectives
from berxit.train.encoding import EncodedExamples
from berxit.train.epoch_scores import EpochScores, ScoredRows
from berxit.train.losses import balanced_weights
from berxit.train.modeling import MultiExitModel
from berxit.train.objectives import LossOptions, Objective, layer_weights
from berxit.train.options import TrainingOptions
from berxit.train.resuming import RunState, StageResult, Stopwatch
from berxit.train.splitting import TrainingData
from berxit.train.strategies import STRATEGIES
from berxit.train.tasks import Task
from berxit.train.trainer import (
    MultiExitTrainer,
    StepProgress,
    check_loss,
    last_epochs_loss,
    processes_here,
    tensorboard,
    training_arguments,
)
from berxit.train.training_plan import steps_per_epoch

SCORED = 2000
"""Largest number of dev rows that are scored after every epoch."""


def class_weights(task: Task, data: TrainingData, options: TrainingOptions) -> tuple[float, ...]:
    """(C,) the weights of ``class_weights``; empty for none. Raises InputError for a task without classes."""
    if options.class_weights == "none":
        return ()
    if task.kind != "classification":
        raise InputError(f"--class-weights {options.class_weights} needs one class per text: omit it for {task.kind}")
    return balanced_weights(data.train.labels, len(task.labels))


def scored_rows(data: TrainingData, tokenizer: TextTokenizer, metric: str) -> ScoredRows | None:
    """The rows that are scored after every epoch: those of early stopping, else at most SCORED of the dev split, at
    even distances. None without a dev split."""
    if data.stopping is not None:
        return ScoredRows(f"{len(data.stopping)} held-out rows", EncodedExamples(data.stopping, tokenizer), metric)
    if data.dev is None:
        return None
    step = -(-len(data.dev) // SCORED)
    dev = data.dev.rows(range(0, len(data.dev), step))
    return ScoredRows("dev" if step == 1 else f"{len(dev)} dev rows", EncodedExamples(dev, tokenizer), metric)


def stages_of(options: TrainingOptions, layers: int, weights: tuple[float, ...] = ()) -> list[Objective]:
    """The strategy's stages, with the weights of the classes. Raises InputError for layer weights or a strategy that
    does not fit the model's layers."""
    losses = LossOptions(
        options.warm_up_steps, options.distillation, layer_weights(options.layer_weights, layers), weights
    )
    stages = [stage(losses) for stage in objectives.stages_of(STRATEGIES[options.strategy])]
    if len(stages) > 1 and layers == 1:
        raise InputError(f"--strategy {options.strategy} trains the exits before the last: one layer has none")
    return stages


def train_stages(
    model: MultiExitModel,
    dataset: EncodedExamples,
    stages: list[Objective],
    options: TrainingOptions,
    state: RunState,
    scored: ScoredRows | None,
    *,
    logs: Path | None = None,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> list[StageResult]:
    """Trains all stages that ``state`` does not contain as finished. Every process of the run calls this function.

    ``scored``: rows to score after every epoch. ``logs``: a folder for TensorBoard. Raises as ``train_stage`` does.
    """
    processes = processes_here()
    epoch = steps_per_epoch(len(dataset), options, processes.num_processes)
    results = []
    for number, objective in enumerate(stages, start=1):
        result = state.finished(number, model)  # finished by the interrupted run
        if result is None:
            folder, name = state.stage(number), f", stage {number} of {len(stages)}" if len(stages) > 1 else ""
            trainer = _trainer(model, dataset, objective, options, folder)
            if logs is not None:
                trainer.add_callback(tensorboard(logs / folder.name if len(stages) > 1 else logs))
            scores = None
            if scored is not None:
                scores = EpochScores(
                    model, scored, folder, exits=objective.exits, epoch_steps=epoch, patience=options.early_stopping
                )
            result = train_stage(trainer, state, number, scores, name, progress, report)
            if processes.is_main_process:
                state.finish(number, model, result)
            processes.wait_for_everyone()
        results.append(result)
    return results


def train_stage(
    trainer: MultiExitTrainer,
    state: RunState,
    number: int,
    scores: EpochScores | None = None,
    name: str = "",
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> StageResult:
    """Runs a stage to its end, from its last saved state if there is one. ``name``: its place, for messages.

    Raises BerxitError for a loss that is not finite, and then deletes the saved state, which cannot be continued.
    """
    resumed = state.last_checkpoint(number)
    done = 0 if resumed is None else int(resumed.rpartition("-")[2])
    stopwatch = Stopwatch(resumed)
    trainer.add_callback(stopwatch)
    if done:
        report(f"resuming at step {done}{name}, after {duration(stopwatch.before)} of training")
    try:
        with ExitStack() as stack:
            steps = StepProgress(progress, stack, report)
            if scores is not None:
                scores.resume(done, steps.line)
                trainer.add_callback(scores)
            trainer.add_callback(steps)
            found = trainer.train(resume_from_checkpoint=resumed)
        check_loss(found.training_loss, found.global_step)
    except BerxitError:
        state.delete()
        raise
    if scores is not None and (kept := scores.finish()):
        report(kept)
    history = () if scores is None else scores.scores
    return StageResult(found.global_step, stopwatch.seconds, last_epochs_loss(trainer), history)


def _trainer(
    model: MultiExitModel,
    dataset: EncodedExamples,
    objective: Objective,
    options: TrainingOptions,
    state: Path,
) -> MultiExitTrainer:
    """The trainer of one stage; parameters that the stage does not train are frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(objective.trains(name, model.layers))
    trainer = MultiExitTrainer(
        model,
        training_arguments(options, state, len(dataset)),
        objective=objective,
        head_learning_rate=options.head_learning_rate,
        train_dataset=dataset,
        data_collator=dataset.collate,
    )
    for plain in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(plain)
    return trainer
