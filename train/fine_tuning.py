"""Fine-tuning of a multi-exit model: from a task, its data and options to a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import set_seed

from berxit.runtime.bundle import sha256
from berxit.runtime.errors import BerxitError, InputError, first_line
from berxit.runtime.examples import Examples, find_split, has_split
from berxit.runtime.progress import Progress, silent
from berxit.runtime.storage import refuse_to_overwrite, write_whole
from berxit.runtime.tokenization import Text
from berxit.train import checks, objectives
from berxit.train.checkpoint import DEV_FILE, TrainingRecord, read_config, read_record, save_checkpoint, spread_samples
from berxit.train.configuration import MultiExitConfig
from berxit.train.continuing import continue_from, is_checkpoint
from berxit.train.encoding import EncodedExamples
from berxit.train.modeling import MultiExitModel
from berxit.train.objectives import LossOptions, Objective, layer_weights
from berxit.train.options import TrainingOptions
from berxit.train.pretrained import read_tokenizer, resolve_model
from berxit.train.resuming import KEY, RunState, StageResult, Stopwatch, changes
from berxit.train.strategies import STRATEGIES
from berxit.train.tasks import Task, write_examples
from berxit.train.tokenizing import CONFIG_FILE, TOKENIZER_FILE, saved_tokenizer
from berxit.train.trainer import (
    MultiExitTrainer,
    StepProgress,
    check_loss,
    last_epochs_loss,
    processes_here,
    tensorboard,
    training_arguments,
)

MODEL_SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".model")
CHECKPOINT_FILES = ("config.json", "model.safetensors", TOKENIZER_FILE, CONFIG_FILE)
"""The files of a checkpoint on which a run that continues from it depends. A calibration changes other files."""


def fine_tune(
    task: Task,
    data: Path,
    options: TrainingOptions,
    output: Path,
    *,
    logs: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Trains on DATA's training split and writes the checkpoint ``output``, whole or not at all.

    ``logs``: a folder for TensorBoard. ``progress`` receives rows of the tokenization, then optimizer steps. ``report``
    receives lines for the user. The last state of an interrupted run is stored in ``.OUTPUT.training``; the same call
    continues from there, with or without ``force``. If ``output`` is the finished checkpoint of the same call, nothing
    is trained, unless ``force`` is given. Under torchrun or accelerate launch every process calls this function, and
    the first one writes and reports.

    Raises InputError for bad options or data, or an output of another run without ``force``; BerxitError for a model
    that cannot be loaded or a loss that is not finite.
    """
    processes = processes_here()
    first = processes.is_main_process
    if not first:
        report, progress = _nothing, silent
    train_file = find_split(data, "train")
    key = run_key(task, options, train_file, processes.num_processes)
    state = RunState.of(output)
    finished = check_output(output, key, force)
    if finished and not state.is_of(key):
        report(f"{output} is finished: this command has already trained it. --force trains it again")
        return output
    examples, held_out, samples = read_data(task, data, options, report)
    set_seed(options.seed)
    mean_label = float(examples.labels.mean()) if task.regression else None
    model, tokenizer = start_model(task, options, report, mean_label)
    text_tokenizer = saved_tokenizer(tokenizer, resolve_model(options.model), options.max_length)
    report(str(checks.unknown_tokens(options.model, tokenizer, examples.texts)))
    stages = stages_of(options, model.layers)
    if first:
        one_of_many(processes.num_processes, report)
        state.prepare(key, force)
    processes.wait_for_everyone()
    state.check_shared()
    dataset = EncodedExamples(examples, text_tokenizer, progress)
    results = []
    for number, objective in enumerate(stages, start=1):
        result = state.finished(number, model)  # finished by the interrupted run
        if result is None:
            trainer = _trainer(model, dataset, objective, options, state.stage(number))
            if logs is not None:
                trainer.add_callback(tensorboard(logs / f"stage-{number}" if len(stages) > 1 else logs))
            result = train_stage(trainer, state, number, progress)
            if first:
                state.finish(number, model, result)
            processes.wait_for_everyone()
        results.append(result)
    if first:
        held = 0 if held_out is None else len(held_out)
        record = record_of(key, train_file, len(examples), held, results, str(model.device))
        with write_whole(output, force=force or finished) as folder:
            if held_out is not None:
                write_examples(held_out, task, folder / DEV_FILE)
            save_checkpoint(folder, model, tokenizer, record, samples)
        state.delete()
    processes.wait_for_everyone()
    return output


def _nothing(line: str) -> None:
    """Ignores a line: only the first process reports."""


def refuse_other_than_checkpoint(output: Path, force: bool) -> None:
    """Raises InputError for an ``output`` that exists and is not a checkpoint, unless ``force``. Call it before data is
    read."""
    refuse_to_overwrite(output, force or bool(read_record(output)))


def check_output(output: Path, key: dict[str, Any], force: bool) -> bool:
    """True if ``output`` is the finished checkpoint of the run with this ``key``; always False with ``force``.

    Raises InputError for any other existing ``output``, unless ``force``.
    """
    record = {} if force else read_record(output)
    finished = bool(record) and not changes(record, key)
    if finished:
        read_config(output)  # raises if it is damaged
    elif record:
        raise InputError(
            f"{output} was trained with other options or data ({changes(record, key)[0]}): choose another --output, or"
            " --force to replace it"
        )
    refuse_to_overwrite(output, force or finished)
    return finished


def read_data(
    task: Task, data: Path, options: TrainingOptions, report: Callable[[str], None]
) -> tuple[Examples, Examples | None, list[Text]]:
    """The training examples; those that ``dev_fraction`` holds out, or None; and sample texts for the checkpoint.

    Samples are spread over the dev split, on which the model is not trained, or over the training split if there is
    none. All data is read before training, so that a bad row costs no training. Raises InputError for a
    ``dev_fraction`` of data that has a dev split, or if no row remains to train on.
    """
    with_dev = has_dev(data)
    if with_dev and options.dev_fraction is not None:
        raise InputError(f"{find_split(data, 'dev')} is the dev split: omit --dev-fraction, or delete the file")
    found = []
    for split in ("train", *(["dev"] if with_dev else [])):
        examples = task.read(data, split, skip_bad_rows=options.skip_bad_rows)
        if examples.skipped:
            report(examples.skipped_line(find_split(data, split)))
        found.append(examples)
    held_out = None
    if options.dev_fraction is not None:
        found[0], held_out = hold_out(found[0], options.dev_fraction, options.seed)
        found.append(held_out)
    elif not with_dev:
        report(
            f"{data} has no dev split, on which exits are calibrated: --dev-fraction 0.1 holds out a tenth of the rows"
        )
    return found[0].head(options.limit_train), held_out, spread_samples(found[-1].texts)


def has_dev(data: Path) -> bool:
    """True if the data is a folder with a dev split; a single file is the training split."""
    return data.is_dir() and has_split(data, "dev")


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """The examples without a random ``fraction`` of them, and that fraction, both in the order of the file."""
    count = round(fraction * len(examples))
    if not 0 < count < len(examples):
        raise InputError(
            f"--dev-fraction {fraction} of {len(examples)} rows is {count}: at least one row must be held out, and one"
            " must remain"
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    return _rows(examples, np.sort(order[count:])), _rows(examples, np.sort(order[:count]))


def _rows(examples: Examples, rows: npt.NDArray[np.int64]) -> Examples:
    return replace(examples, texts=[examples.texts[row] for row in rows], labels=examples.labels[rows])


def run_key(task: Task, options: TrainingOptions, train_file: Path, processes: int) -> dict[str, Any]:
    """Everything on which the weights of a run depend. An interrupted run continues, and a finished run is recognized,
    if the keys are equal."""
    model = Path(resolve_model(options.model))
    key = {
        "options": options.recorded(),
        "task": asdict(task),
        "model_sha256": model_sha256(model) if model.is_dir() else None,
        "train_sha256": sha256(train_file),
        "processes": processes,
    }
    assert set(key) == set(KEY)
    return key


def model_sha256(folder: Path) -> str:
    """sha256 over the files of a model folder that transformers reads: configuration, weights, tokenizer."""
    if is_checkpoint(str(folder)):
        files = [folder / name for name in CHECKPOINT_FILES]
    else:
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in MODEL_SUFFIXES)
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()


def one_of_many(processes: int, report: Callable[[str], None]) -> None:
    """Reports GPUs that this run does not use."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if processes == 1 and gpus > 1:
        report(f"using 1 of {gpus} GPUs: torchrun --nproc-per-node {gpus} --no-python berxit-train ... uses them all")


def stages_of(options: TrainingOptions, layers: int) -> list[Objective]:
    """The strategy's stages. Raises InputError for layer weights or a strategy that does not fit the model's layers."""
    losses = LossOptions(options.warm_up_steps, options.distillation, layer_weights(options.layer_weights, layers))
    stages = [stage(losses) for stage in objectives.stages_of(STRATEGIES[options.strategy])]
    if len(stages) > 1 and layers == 1:
        raise InputError(f"--strategy {options.strategy} trains the exits before the last: one layer has none")
    return stages


def train_stage(trainer: MultiExitTrainer, state: RunState, number: int, progress: Progress = silent) -> StageResult:
    """Runs a stage to its end, from its last saved state if there is one.

    Raises BerxitError for a loss that is not finite, and then deletes the saved state, which cannot be continued.
    """
    resumed = state.last_checkpoint(number)
    stopwatch = Stopwatch(resumed)
    trainer.add_callback(stopwatch)
    try:
        with ExitStack() as stack:
            trainer.add_callback(StepProgress(progress, stack))
            found = trainer.train(resume_from_checkpoint=resumed)
        check_loss(found.training_loss, found.global_step)
    except BerxitError:
        state.delete()
        raise
    return StageResult(found.global_step, stopwatch.seconds, last_epochs_loss(trainer))


def record_of(
    key: dict[str, Any], train_file: Path, examples: int, held_out: int, results: list[StageResult], device: str
) -> TrainingRecord:
    """The record of all stages for training.json."""
    return TrainingRecord(
        **key,
        train_file=train_file.name,
        train_examples=examples,
        dev_examples=held_out,
        steps=sum(result.steps for result in results),
        seconds=round(sum(result.seconds for result in results), 1),
        loss=results[-1].loss,
        device=device,
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def start_model(
    task: Task,
    options: TrainingOptions,
    report: Callable[[str], None] = lambda line: None,
    mean_label: float | None = None,
) -> tuple[MultiExitModel, PreTrainedTokenizerBase]:
    """The pre-trained encoder with exits for the task, and its tokenizer; both checked (train/checks.py).

    ``--model`` may be a checkpoint of this project (train/continuing.py). ``mean_label``: for regression, the value
    that new exit heads predict at the start.

    Raises InputError for a model or tokenizer that a check rejects, BerxitError for files that cannot be read.
    """
    source = resolve_model(options.model)
    try:
        fields = {
            "exit_head": options.exit_head,
            "pooling": options.pooling,
            "lte": options.lte,
            "strategy": options.strategy,
            "task": task.name,
            "problem_type": "regression" if task.regression else "single_label_classification",
            "id2label": dict(enumerate(task.labels)) if task.labels else {0: "value"},
            "label2id": {name: i for i, name in enumerate(task.labels or ("value",))},
            "metric": task.metric,
            "positive": task.positive,
            "text_columns": task.text_columns,
            "label_column": task.label_column,
            "max_length": options.max_length,
        }
        if is_checkpoint(source):
            continued = continue_from(source, MultiExitConfig(**fields), options.layers)
            model, new_heads = continued.model, not continued.heads_kept
            report(continued.description)
        else:
            model, new_heads = MultiExitModel.from_backbone(source, layers=options.layers, **fields), True
        if mean_label is not None and new_heads:
            model.init_head_bias(mean_label)
        tokenizer = read_tokenizer(source)
    except BerxitError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, and its own types for a bad config.json
        raise BerxitError(
            f"cannot load --model {options.model}: {first_line(error)}. Give a model folder or a hub name"
        ) from error
    checks.check_max_length(source, model.adapter, options.max_length)
    checks.check_tokenizer(
        source, tokenizer, model.backbone, pairs=len(task.text_columns) == 2, pooling=options.pooling
    )
    if stated := take_padding_id(model, tokenizer):
        report(stated)
    return model, tokenizer


def take_padding_id(model: MultiExitModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Sets the model's padding id to the tokenizer's, and returns a line about the change; empty without a change.

    The config.json of some models (multilingual MiniLM and E5) contains another id. If positions do not depend on
    padding, only the gradient does: the embedding of the wrong id would receive none.
    """
    stated, own = model.config.backbone.pad_token_id, tokenizer.pad_token_id
    model.config.backbone.pad_token_id = model.backbone.config.pad_token_id = own
    model.get_input_embeddings().padding_idx = own
    if stated == own:
        return ""
    return f"config.json has pad_token_id {stated}, the tokenizer pads with {own}: the model now uses {own}"


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
