"""Input of a study: checkpoints (or bundles), data and the reference score. Passes over the data are stored and
reused."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from berxit.runtime.bundle import sha256
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import Examples, find_split
from berxit.runtime.progress import Progress, silent
from berxit.train.chance_warnings import depth_warning
from berxit.train.checkpoint import load_checkpoint, read_config, read_record
from berxit.train.evaluation import Predictions, best_device, layer_scores, predict
from berxit.train.options import TrainingOptions, model_name_of
from berxit.train.tasks import task_of

DEFAULTS = {field.name: field.default for field in fields(TrainingOptions) if field.name != "model"}
"""Option -> default, for records of older versions, which do not contain every option."""


def _no_bar(label: str) -> Progress:
    return silent


@dataclass(frozen=True)
class Request:
    """One call of berxit-study."""

    paths: Sequence[Path]
    """Checkpoints; bundles for the study ``runtime``."""
    output: Path
    data: Path | None = None
    split: str = "dev"
    relative_to: str | None = None
    """The reference score, or a checkpoint: the score of its last exit is 100%."""
    criterion: str | None = None
    length: int | None = None
    """Number of tokens of an input, for the study ``flops``."""
    batch_size: int = 32
    bar: Callable[[str], Progress] = _no_bar

    @cached_property
    def data_file(self) -> Path:
        if self.data is None:
            raise InputError("this study needs --data: add a folder with the split, or a file")
        return find_split(self.data, self.split)

    @cached_property
    def models(self) -> dict[str, list[StudyRun]]:
        """Model -> its runs with their passes, in the given order. Raises InputError for runs of different tasks."""
        runs = [self.run(path) for path in dict.fromkeys(self.paths)]
        if len(tasks := {run.task: run.folder for run in runs}) > 1:
            named = ", ".join(f"{folder} is {task}" for task, folder in tasks.items())
            raise InputError(f"a study needs checkpoints of one task, but {named}: run the study for each task")
        groups: dict[str, list[StudyRun]] = defaultdict(list)
        for run in label_runs(runs):
            groups[run.model].append(run)
        return dict(groups)

    @property
    def task(self) -> str:
        return next(iter(self.models.values()))[0].task

    @property
    def metric(self) -> str:
        return next(iter(self.models.values()))[0].predictions.metric

    def run(self, folder: Path) -> StudyRun:
        """A checkpoint with its pass: the stored pass if checkpoint and data are unchanged, else a new one."""
        config = read_config(folder)
        files = [folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
        digests = [sha256(file) for file in (*files, self.data_file)]
        key = hashlib.sha256("".join(digests).encode()).hexdigest()
        stored = self.output / "passes" / f"{folder.resolve().name}-{key[:12]}" / "predictions.npz"
        if stored.is_file():
            predictions = _load(stored)
            predictions.check(str(self.data_file))
        else:
            model, tokenizer = load_checkpoint(folder, best_device())
            examples = task_of(model.config).read(self.data_file, self.split)
            predictions = predict(
                model, tokenizer, examples, self.batch_size, self.bar(folder.name), str(self.data_file)
            )
            _save(predictions, stored)
        known = {name: config[name] for name in ("pooling", "exit_head", "lte")}
        options = {**DEFAULTS, **known, **read_record(folder).get("options", {})}
        model_name = model_name_of(str(options.get("model") or config["backbone"]["model_type"]))
        strategy = config["strategy"]
        return StudyRun(folder, model_name, config["task"], strategy, strategy, options, predictions, key)

    def examples(self, run: StudyRun) -> Examples:
        """The examples of a run's pass, in its order."""
        from berxit.train.configuration import MultiExitConfig

        return task_of(MultiExitConfig.from_pretrained(str(run.folder))).read(self.data_file, self.split)

    def reference(self, runs: Sequence[StudyRun]) -> Reference:
        """The reference score (100%) for the runs of one model.

        One reference for all runs, so that their curves can be compared:

        1. ``relative_to`` if given.
        2. The last exit of raw, as in the paper, or of two-stage, which trains it in the same way.
        3. The highest score of a last exit among the runs.

        Raises InputError for a score outside (0, 1].
        """
        if self.relative_to is not None:
            return self._given(self.relative_to)
        for strategy in ("raw", "two-stage"):
            if same := [run for run in runs if run.strategy == strategy]:
                mean = sum(run.full_depth for run in same) / len(same)
                return Reference(mean, f"the last exit of {strategy}" + (" (mean of runs)" if len(same) > 1 else ""))
        best = max(runs, key=lambda run: run.full_depth)
        return Reference(best.full_depth, f"the last exit of {best.label}" if len(runs) > 1 else "its own last exit")

    def _given(self, text: str) -> Reference:
        try:
            score = float(text)
        except ValueError:
            run = self.run(Path(text))
            if run.task != self.task:
                raise InputError(
                    f"--relative-to {text} is a checkpoint for {run.task}, the others are for {self.task}: choose one"
                    f" for {self.task}"
                ) from None
            chance = ", which is at chance" if depth_warning(run.predictions) else ""
            return Reference(run.full_depth, f"the last exit of {run.folder.name}{chance}")
        if not 0 < score <= 1:
            raise InputError(f"--relative-to {text} is out of range: give a score above 0 and at most 1, such as 0.889")
        return Reference(score, "as given")

    def conditions(self) -> list[str]:
        """Data, checkpoints and warnings, for the report."""
        runs = [run for group in self.models.values() for run in group]
        return [
            f"data: {self.data_file.parent.name}/{self.data_file.name}, {len(runs[0].predictions.labels)} examples,"
            f" sha256 {sha256(self.data_file)[:12]}; metric: {self.metric}",
            *(f"{run.model}, {run.label}: {run.folder.name}" for run in runs),
            *(f"warning: {run.folder.name}: {line}" for run in runs if (line := depth_warning(run.predictions))),
        ]


@dataclass(frozen=True)
class StudyRun:
    """A checkpoint in a study, with its pass."""

    folder: Path
    model: str
    task: str
    strategy: str
    label: str
    """Label in legends: the strategy, and the options in which the model's runs differ. Runs that differ only in the
    seed have equal labels."""
    options: dict[str, Any]
    """Training options from its record."""
    predictions: Predictions
    key: str
    """sha256 over checkpoint and data."""

    @cached_property
    def layer_scores(self) -> list[float]:
        return layer_scores(self.predictions)

    @property
    def full_depth(self) -> float:
        return self.layer_scores[-1]


@dataclass(frozen=True)
class Reference:
    """The score that is 100%."""

    score: float
    source: str

    def __str__(self) -> str:
        return f"100% is {self.score:.4f}, {self.source}"


def by_label(runs: Sequence[StudyRun]) -> dict[str, list[StudyRun]]:
    """Label -> the runs of one model that differ only in the seed."""
    groups: dict[str, list[StudyRun]] = defaultdict(list)
    for run in runs:
        groups[run.label].append(run)
    return {label if len(same) == 1 else f"{label} (mean of {len(same)})": same for label, same in groups.items()}


def label_runs(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Adds a label to each run: its strategy, and the non-default options in which the model's runs differ."""
    labelled = []
    for run in runs:
        peers = [peer for peer in runs if (peer.model, peer.strategy) == (run.model, run.strategy)]
        names = sorted({name for peer in peers for name in peer.options} - {"model", "strategy", "seed"})
        differ = [name for name in names if len({str(peer.options.get(name)) for peer in peers}) > 1]
        parts = [_option_label(run.options, name) for name in differ if run.options.get(name) != DEFAULTS.get(name)]
        labelled.append(replace(run, label=", ".join([run.strategy, *parts])))
    return labelled


def _option_label(options: dict[str, Any], name: str) -> str:
    """An option for a legend: "no lte", "mean pooling", "epochs 5"."""
    value = options[name]
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return f"{value} {words}" if isinstance(value, str) else f"{words} {value}"


def _load(path: Path) -> Predictions:
    try:
        return Predictions.load(path)
    except Exception as error:  # zip, numpy and the file system raise unrelated types
        raise BerxitError(f"{path} is damaged: delete the file and rerun the study") from error


def _save(predictions: Predictions, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        predictions.save(path)
    except OSError as error:
        raise BerxitError(f"cannot write {path}: {error.strerror}. Choose another --output") from error
