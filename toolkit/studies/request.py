"""What a study is asked: checkpoints (or bundles), data, and what 100% is. Passes over the data are kept and reused."""

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
"""Of the options: what a record from before an option was there means."""


def _no_bar(label: str) -> Progress:
    return silent


@dataclass(frozen=True)
class Request:
    """One call of berxit-study."""

    paths: Sequence[Path]
    """Checkpoints; bundles for ``runtime``."""
    output: Path
    data: Path | None = None
    split: str = "dev"
    relative_to: str | None = None
    """A score, or a checkpoint whose last exit's score is 100%."""
    criterion: str | None = None
    length: int | None = None
    """Tokens of an input, for ``flops``."""
    batch_size: int = 32
    bar: Callable[[str], Progress] = _no_bar

    @cached_property
    def data_file(self) -> Path:
        if self.data is None:
            raise InputError("this study needs --data: a folder with the split, or a file")
        return find_split(self.data, self.split)

    @cached_property
    def models(self) -> dict[str, list[Run]]:
        """Model -> its runs, in the order given; each with its pass. All are of one task, or InputError."""
        runs = [self.run(path) for path in dict.fromkeys(self.paths)]
        if len(tasks := {run.task: run.folder for run in runs}) > 1:
            named = ", ".join(f"{folder} is {task}" for task, folder in tasks.items())
            raise InputError(f"one study, one task, but {named}: ask for each by itself")
        groups: dict[str, list[Run]] = defaultdict(list)
        for run in label_runs(runs):
            groups[run.model].append(run)
        return dict(groups)

    @property
    def task(self) -> str:
        return next(iter(self.models.values()))[0].task

    @property
    def metric(self) -> str:
        return next(iter(self.models.values()))[0].predictions.metric

    def run(self, folder: Path) -> Run:
        """A checkpoint with its pass: the stored one where checkpoint and data are the same, else a new one."""
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
        return Run(folder, model_name, config["task"], strategy, strategy, options, predictions, key)

    def examples(self, run: Run) -> Examples:
        """The texts of a run's pass, in its order."""
        from berxit.train.configuration import MultiExitConfig

        return task_of(MultiExitConfig.from_pretrained(str(run.folder))).read(self.data_file, self.split)

    def reference(self, runs: Sequence[Run]) -> Reference:
        """What 100% is for one model's runs.

        ``relative_to`` where given. Else, as in the paper, the last exit of raw, or of two-stage, which is the same,
        where one is among the runs; else the highest last exit among them: one reference for all, or the curves could
        not be compared. Raises InputError for a score out of (0, 1].
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
                raise InputError(f"--relative-to {text} is {run.task}, the others are {self.task}") from None
            chance = ", which is at chance" if depth_warning(run.predictions) else ""
            return Reference(run.full_depth, f"the last exit of {run.folder.name}{chance}")
        if not 0 < score <= 1:
            raise InputError(f"--relative-to {text} is out of range: a score lies above 0, up to 1, as 0.889")
        return Reference(score, "as given")

    def conditions(self) -> list[str]:
        """Data and checkpoints, for the report."""
        runs = [run for group in self.models.values() for run in group]
        return [
            f"data: {self.data_file.parent.name}/{self.data_file.name}, {len(runs[0].predictions.labels)} examples,"
            f" sha256 {sha256(self.data_file)[:12]}; metric: {self.metric}",
            *(f"{run.model}, {run.label}: {run.folder.name}" for run in runs),
            *(f"warning: {run.folder.name}: {line}" for run in runs if (line := depth_warning(run.predictions))),
        ]


@dataclass(frozen=True)
class Run:
    """A checkpoint under study."""

    folder: Path
    model: str
    task: str
    strategy: str
    label: str
    """What the legend says: the strategy, and what else tells it from the model's other runs. Equal but for the seed,
    equal labels."""
    options: dict[str, Any]
    """How it was trained, from its record."""
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
    """What 100% is."""

    score: float
    source: str

    def __str__(self) -> str:
        return f"100% is {self.score:.4f}, {self.source}"


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of one model that differ in nothing but the seed, together."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.label].append(run)
    return {label if len(same) == 1 else f"{label} (mean of {len(same)})": same for label, same in groups.items()}


def label_runs(runs: Sequence[Run]) -> list[Run]:
    """Gives each run a label: its strategy, and the options in which the model's runs differ, but for defaults."""
    labelled = []
    for run in runs:
        peers = [peer for peer in runs if (peer.model, peer.strategy) == (run.model, run.strategy)]
        names = sorted({name for peer in peers for name in peer.options} - {"model", "strategy", "seed"})
        differ = [name for name in names if len({str(peer.options.get(name)) for peer in peers}) > 1]
        said = [_said(run.options, name) for name in differ if run.options.get(name) != DEFAULTS.get(name)]
        labelled.append(replace(run, label=", ".join([run.strategy, *said])))
    return labelled


def _said(options: dict[str, Any], name: str) -> str:
    """An option as a legend has it: "no lte", "mean pooling", "epochs 5"."""
    value = options[name]
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return f"{value} {words}" if isinstance(value, str) else f"{words} {value}"


def _load(path: Path) -> Predictions:
    try:
        return Predictions.load(path)
    except Exception as error:  # zip, numpy and the file system each have their own
        raise BerxitError(f"{path} is damaged: delete it, and the pass is made again") from error


def _save(predictions: Predictions, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        predictions.save(path)
    except OSError as error:
        raise BerxitError(f"cannot write {path}: {error.strerror}. Choose another --output") from error
