"""Description of what a run trains, for the user, before its first step."""

from __future__ import annotations

import math

from berxit.runtime.errors import InputError
from berxit.runtime.tables import plural
from berxit.train.modeling import MultiExitModel
from berxit.train.options import TrainingOptions, model_name_of
from berxit.train.splitting import TrainingData
from berxit.train.strategies import STRATEGIES


def steps_per_epoch(rows: int, options: TrainingOptions, processes: int) -> int:
    """Optimizer steps of an epoch over ``rows`` training rows."""
    return math.ceil(rows / (options.batch_size * options.gradient_accumulation * processes))


def steps_of_stage(rows: int, options: TrainingOptions, processes: int) -> int:
    """Optimizer steps of each stage. Raises InputError if all of them are warm-up, which trains the last exit only."""
    steps = options.max_steps or math.ceil(options.epochs * steps_per_epoch(rows, options, processes))
    if options.warm_up_steps >= steps:
        raise InputError(
            f"--warm-up-steps {options.warm_up_steps} is not below the {plural(steps, 'step')} of the training, so the"
            " exits before the last would not be trained: give a lower number, or more --epochs"
        )
    return steps


def describe_plan(model: MultiExitModel, data: TrainingData, options: TrainingOptions, processes: int) -> str:
    """Model, exits, strategy, steps and rows of a run, in a few lines. Raises InputError as ``steps_of_stage`` does."""
    strategy = STRATEGIES[options.strategy]
    epoch = steps_per_epoch(len(data.train), options, processes)
    steps = steps_of_stage(len(data.train), options, processes)
    stages = len(strategy.stages)
    million = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    exits = "only the last exit" if strategy.last_exit_only else "an exit after every layer"
    lines = [
        f"training: {model_name_of(options.model)} ({million:.3g} M parameters, {plural(model.layers, 'layer')}),"
        f" {exits}{', with LTE' if options.lte else ''}",
        f"strategy: {options.strategy}, {strategy.description}",
        f"steps: {steps}{f' in each of {stages} stages' if stages > 1 else ''}, {epoch} per epoch, on {model.device};"
        f" learning rate {options.learning_rate:g}"
        + (f", of the exits {options.head_learning_rate:g}" if options.head_learning_rate else ""),
    ]
    if data.held_out is not None:
        lines.append(
            f"dev split: {len(data.held_out)} rows held out from {data.file.name} (seed {options.seed}), stored in the"
            " checkpoint; berxit-eval and berxit-calibrate use them"
        )
    elif data.dev is None:
        lines.append("dev split: none, so there is no data to calibrate exits on")
    if data.stopping is not None:
        lines.append(
            f"early stopping: after {plural(options.early_stopping or 0, 'epoch')} without a better score on"
            f" {len(data.stopping)} rows held out from {data.file.name}"
        )
    return "\n".join(lines)
