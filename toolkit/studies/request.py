"""Input of a study: checkpoints (or bundles) and data. Passes over the data are stored and reused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from berxit.runtime.bundle import sha256
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.examples import Examples, find_split
from berxit.runtime.progress import Progress, silent
from berxit.toolkit.studies.reference import DEFINITION, Reference, default_reference, given_reference, reference_of
from berxit.toolkit.studies.runs import Group, StudyRun, grouped, read_training
from berxit.train.chance_warnings import depth_warning
from berxit.train.checkpoint import load_checkpoint, read_config
from berxit.train.evaluation import Predictions, best_device, predict
from berxit.train.resampling import RowBootstrap
from berxit.train.tasks import task_of


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
    """The score that is 100%, or a checkpoint: the full depth of its group."""
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
    def runs(self) -> list[StudyRun]:
        """All runs with their passes, in the given order. Raises InputError for runs of different tasks or metrics."""
        runs = [self.run(path) for path in dict.fromkeys(self.paths)]
        for what, values in (
            ("task", {run.task: run.folder for run in runs}),
            ("metric", {run.predictions.metric: run.folder for run in runs}),
        ):
            if len(values) > 1:
                named = ", ".join(f"{folder} has {value}" for value, folder in values.items())
                raise InputError(f"a study needs checkpoints of one {what}, but {named}: run the study for each {what}")
        return runs

    @cached_property
    def models(self) -> dict[str, list[Group]]:
        """Model -> its groups of runs that differ in the seed only. Raises InputError as ``runs`` and ``grouped``
        do."""
        return grouped(self.runs)

    @property
    def groups(self) -> list[Group]:
        return [group for groups in self.models.values() for group in groups]

    @property
    def task(self) -> str:
        return self.runs[0].task

    @property
    def metric(self) -> str:
        return self.runs[0].predictions.metric

    @cached_property
    def bootstrap(self) -> RowBootstrap:
        return RowBootstrap(len(self.runs[0].predictions.labels), self.metric)

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
        training = read_training(folder, predictions.layers)
        return StudyRun(**vars(training), task=config["task"], predictions=predictions, key=key)

    def examples(self, run: StudyRun) -> Examples:
        """The examples of a run's pass, in its order."""
        from berxit.train.configuration import MultiExitConfig

        return task_of(MultiExitConfig.from_pretrained(str(run.folder))).read(self.data_file, self.split)

    def reference(self, model: str) -> Reference:
        """The scale of the relative scores of a model's runs. Raises InputError for a score outside (0, 1]."""
        groups, text = self.models[model], self.relative_to
        if text is None:
            return default_reference(groups)
        if _is_number(text):
            return given_reference(text, groups[0].runs[0])
        run = self.run(Path(text))
        if run.task != self.task:
            raise InputError(
                f"--relative-to {text} is a checkpoint for {run.task}, the others are for {self.task}: choose one"
                f" for {self.task}"
            )
        same = next((group for group in self.groups if run.key in [each.key for each in group.runs]), None)
        chance = ", which is at chance" if depth_warning(run.predictions) else ""
        return reference_of(same or Group(run.model, f"{run.folder.name}{chance}", (run,)))

    def conditions(self, *, relative: bool = True) -> list[str]:
        """Data, checkpoints, scale and warnings, for the report. ``relative``: the study reports relative scores."""
        runs = self.runs
        low = [run for run in runs if not run.above_floor]
        return [
            f"data: {self.data_file.parent.name}/{self.data_file.name}, {len(runs[0].predictions.labels)} examples,"
            f" sha256 {sha256(self.data_file)[:12]}; metric: {self.metric}; the constant prediction scores"
            f" {runs[0].floor:.4f}",
            *(f"{group.name_of(run)}: {run.folder.name}" for group in self.groups for run in group.runs),
            *([DEFINITION] if relative else []),
            *(f"{model}: {self.reference(model)}" for model in self.models if relative),
            *(
                f"warning: {model}: no gains, because the score that is 100% is not above the constant prediction"
                for model in self.models
                if relative and not self.reference(model).above_floor
            ),
            *(f"warning: {run.folder.name}: {line}" for run in runs if (line := depth_warning(run.predictions))),
            *(
                f"warning: {run.folder.name} does not count for 100%, areas and claims: its full depth,"
                f" {run.full_depth:.4f}, is not above the constant prediction"
                for run in low
            ),
        ]

    def described(self, group: Group) -> dict[str, Any]:
        """A group for the JSON file."""
        return {
            "model": group.model,
            "label": group.label,
            "strategy": group.strategy,
            "seeds": [run.seed for run in group.runs],
            "options": group.runs[0].options,
            "checkpoints": [run.folder.name for run in group.runs],
            "constant": group.runs[0].floor,
        }


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
