"""Fine-tuning of a multi-exit model: from a task, its data and options to a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import set_seed

from berxit.runtime.bundle import sha256
from berxit.runtime.errors import InputError
from berxit.runtime.examples import find_split
from berxit.runtime.json_data import to_json
from berxit.runtime.kinds import KINDS
from berxit.runtime.progress import Progress, silent
from berxit.runtime.storage import refuse_to_overwrite, write_errors, write_whole
from berxit.train import checks
from berxit.train.checkpoint import DEV_FILE, TrainingRecord, read_config, read_record, save_checkpoint
from berxit.train.continuing import is_checkpoint
from berxit.train.data_summary import summarize
from berxit.train.encoding import EncodedExamples
from berxit.train.options import TrainingOptions
from berxit.train.pretrained import resolve_model
from berxit.train.resuming import KEY, RunState, StageResult, changes
from berxit.train.splitting import TrainingData, read_training_data
from berxit.train.stages import class_weights, scored_rows, stages_of, train_stages
from berxit.train.starting import start_model
from berxit.train.tasks import Task, write_examples
from berxit.train.tokenizing import CONFIG_FILE, TOKENIZER_FILE, saved_tokenizer
from berxit.train.trainer import processes_here
from berxit.train.training_plan import describe_plan

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

    Raises InputError for bad options or data, an output of another run without ``force``, or an output that another
    process is writing; BerxitError for a model
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
    rows = read_training_data(task, data, options, report)
    set_seed(options.seed)
    mean_label = float(rows.train.labels.mean()) if task.regression else None
    model, tokenizer = start_model(task, options, report, mean_label)
    words = KINDS[task.kind].words
    text_tokenizer = saved_tokenizer(tokenizer, resolve_model(options.model), options.max_length, words=words)
    unknown = checks.unknown_tokens(options.model, tokenizer, rows.train.texts)
    report(str(summarize(task, rows.splits, text_tokenizer, train_file.suffix.lower(), options.max_length)))
    report(str(unknown))
    stages = stages_of(options, model.layers, class_weights(task, rows, options))
    report(describe_plan(model, rows, options, processes.num_processes))
    with ExitStack() as alone:
        if first:
            one_of_many(processes.num_processes, report)
            alone.enter_context(state.prepared(key, force))
        processes.wait_for_everyone()
        state.check_shared()
        dataset = EncodedExamples(rows.train, text_tokenizer, progress)
        scored = scored_rows(rows, text_tokenizer, task.metric)
        with write_errors(output):
            results = train_stages(
                model, dataset, stages, options, state, scored, logs=logs, progress=progress, report=report
            )
        if first:
            record = record_of(key, rows, results, str(model.device))
            with write_whole(output, force=force or finished) as folder:
                if rows.held_out is not None:
                    write_examples(rows.held_out, task, folder / DEV_FILE)
                save_checkpoint(folder, model, tokenizer, record, rows.samples)
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


def run_key(task: Task, options: TrainingOptions, train_file: Path, processes: int) -> dict[str, Any]:
    """Everything on which the weights of a run depend. An interrupted run continues, and a finished run is recognized,
    if the keys are equal."""
    model = Path(resolve_model(options.model))
    key = {
        "options": options.recorded(),
        "task": {name: value for name, value in asdict(task).items() if name != "kind" or task.is_new_kind},
        "model_sha256": model_sha256(model) if model.is_dir() else None,
        "train_sha256": sha256(train_file),
        "processes": processes,
    }
    assert set(key) == set(KEY)
    return key


def model_sha256(folder: Path) -> str:
    """sha256 over the files of a model folder that transformers reads: configuration, weights, tokenizer.

    Raises BerxitError for a checkpoint without one of them.
    """
    if is_checkpoint(str(folder)):
        read_config(folder)
        files = [folder / name for name in CHECKPOINT_FILES]
    else:
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in MODEL_SUFFIXES)
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()


def one_of_many(processes: int, report: Callable[[str], None]) -> None:
    """Reports GPUs that this run does not use."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if processes == 1 and gpus > 1:
        report(f"using 1 of {gpus} GPUs: torchrun --nproc-per-node {gpus} --no-python berxit-train ... uses them all")


def record_of(key: dict[str, Any], data: TrainingData, results: list[StageResult], device: str) -> TrainingRecord:
    """The record of all stages for training.json."""
    return TrainingRecord(
        **key,
        train_file=data.file.name,
        train_examples=len(data.train),
        dev_examples=len(data.held_out or ()),
        stopping_examples=len(data.stopping or ()),
        scores=[to_json(result.scores) for result in results],
        steps=sum(result.steps for result in results),
        seconds=round(sum(result.seconds for result in results), 1),
        loss=results[-1].loss,
        device=device,
        versions={name: version(name) for name in ("torch", "transformers")},
    )
