"""Runs of a study: checkpoints with their passes, grouped so that the runs of a group differ in nothing but the seed.

Labels name every option in which any runs of the study differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from berxit.runtime.errors import InputError
from berxit.runtime.tables import plural
from berxit.train.checkpoint import read_config, read_record
from berxit.train.evaluation import Predictions, layer_scores
from berxit.train.options import TrainingOptions, model_name_of

DEFAULTS = {field.name: field.default for field in fields(TrainingOptions) if field.name != "model"}
"""Option -> default, for records of older versions, which do not contain every option."""
NOT_OPTIONS = ("model", "strategy", "seed", "epochs", "max_steps")
"""Recorded options without a part of their own in a label. Epochs or steps are the option ``training``."""
OF_A_MODEL = ("layers", "weights", "encoder")
"""Options that always differ between models. Labels name them if runs of one model differ."""
CODE = "strategy_code_sha256"
"""Option of a user's strategy: sha256 of its source. Labels name it if runs of one strategy differ."""
UNRECORDED = "options not recorded"
VOLATILE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "num_hidden_layers", "n_layers")
"""Entries of an encoder's configuration that do not identify the encoder. The number of layers is an option."""


@dataclass(frozen=True)
class Training:
    """The choices of a training, from the files of its checkpoint."""

    folder: Path
    model: str
    strategy: str
    options: dict[str, Any]
    """All choices except model, strategy and seed."""
    seed: int | None
    """None if it was not recorded."""


@dataclass(frozen=True)
class StudyRun(Training):
    """A checkpoint in a study, with its pass."""

    task: str
    predictions: Predictions
    key: str
    """sha256 over checkpoint and data."""

    @cached_property
    def layer_scores(self) -> list[float]:
        return layer_scores(self.predictions)

    @property
    def full_depth(self) -> float:
        return self.layer_scores[-1]

    @cached_property
    def floor(self) -> float:
        """Score of the constant prediction."""
        return self.predictions.constant.score

    @property
    def above_floor(self) -> bool:
        """True if full depth scores better than the constant prediction."""
        return self.full_depth > self.floor


@dataclass(frozen=True)
class Group:
    """Runs of one model that differ in nothing but the seed."""

    model: str
    label: str
    """The strategy, and the options in which runs of the study differ."""
    runs: tuple[StudyRun, ...]

    @property
    def strategy(self) -> str:
        return self.runs[0].strategy

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.runs[0].predictions.layers

    @property
    def seeds(self) -> str:
        """Seeds for a table."""
        return ", ".join("unknown" if run.seed is None else str(run.seed) for run in self.runs)

    @property
    def name(self) -> str:
        """The label, with the number of seeds if there are several."""
        return self.label if len(self.runs) == 1 else f"{self.label} ({len(self.runs)} seeds)"

    def name_of(self, run: StudyRun) -> str:
        """Model, label, and the seed if the group has several."""
        seed = f", seed {run.seed}" if len(self.runs) > 1 else ""
        return f"{self.model}, {self.label}{seed}"

    @property
    def usable(self) -> tuple[StudyRun, ...]:
        """The runs whose full depth scores better than the constant prediction. Only they count for 100%, areas and
        claims."""
        return tuple(run for run in self.runs if run.above_floor)

    @property
    def mean_layer_scores(self) -> list[float]:
        """(n,) mean over the runs."""
        return [float(score) for score in np.mean([run.layer_scores for run in self.runs], axis=0)]


def read_training(folder: Path, layers: int) -> Training:
    """The choices of a checkpoint's training. ``layers``: number of its layers.

    A checkpoint without a training record has an option ``record``, which differs from every other checkpoint's.
    """
    config, record = read_config(folder), read_record(folder)
    recorded: dict[str, Any] = record.get("options", {})
    name = model_name_of(str(recorded.get("model") or config["backbone"]["model_type"]))
    options: dict[str, Any] = {name: config.get(name) for name in ("pooling", "exit_head", "lte", "max_length")}
    encoder = {name: value for name, value in config["backbone"].items() if name not in VOLATILE}
    options |= {"layers": layers, "encoder": _digest(encoder)}
    if recorded:
        options = {**DEFAULTS, **recorded, **options}
        steps, epochs = options["max_steps"], options["epochs"]
        options["training"] = f"{epochs:g} epoch{'s' * (epochs != 1)}" if steps is None else plural(steps, "step")
        options["head_learning_rate"] = options["head_learning_rate"] or options["learning_rate"]
        options["processes"] = record.get("processes", 1)
        digest = str(record.get("train_sha256") or "")
        options["data"] = f"{record.get('train_file', 'unknown data')} {digest[:8]}".strip()
        options["weights"] = str(record.get("model_sha256") or "of the hub")[:10]
        options = {name: value for name, value in options.items() if name not in NOT_OPTIONS}
    else:
        options["record"] = f"{folder.resolve().name} {_digest(str(folder.resolve()))}"
    return Training(folder, name, config["strategy"], options, recorded.get("seed"))


def grouped(runs: Sequence[StudyRun]) -> dict[str, list[Group]]:
    """Model -> its groups, in the order of the runs.

    Raises InputError for equal checkpoints, and for runs that differ neither in an option nor in the seed.
    """
    _check_distinct(runs)
    found: dict[str, dict[str, list[StudyRun]]] = {}
    for run in runs:
        found.setdefault(run.model, {}).setdefault(label_of(run, runs), []).append(run)
    return {model: [Group(model, label, tuple(same)) for label, same in each.items()] for model, each in found.items()}


def label_of(run: Training, runs: Sequence[Training]) -> str:
    """The strategy of a run, and its value of every option in which the study's runs differ."""
    return ", ".join([run.strategy, *shown_options(run, runs)])


def shown_options(run: Training, runs: Sequence[Training], without: Sequence[str] = ()) -> list[str]:
    """The run's value of every option in which the study's runs differ, as text. ``without``: options to omit."""
    return [
        _text(run.options, name) for name in differing(run.model, runs) if name in run.options and name not in without
    ]


def differing(model: str, runs: Sequence[Training]) -> list[str]:
    """Names of the options in which runs of the study differ; those of OF_A_MODEL only if runs of ``model`` do, and
    CODE only if runs of one strategy do."""
    order = ["training", "data", "limit_train", *(field.name for field in fields(TrainingOptions))]
    names = sorted({name for run in runs for name in run.options}, key=lambda name: (_place(order, name), name))
    return [
        name
        for name in names
        if any(len({_value(run, name) for run in same}) > 1 for same in _comparable(name, model, runs))
    ]


def _comparable(name: str, model: str, runs: Sequence[Training]) -> list[list[Training]]:
    """Runs whose values of an option are compared with each other."""
    if name == CODE:
        return [[run for run in runs if run.strategy == strategy] for strategy in {run.strategy for run in runs}]
    return [[run for run in runs if name not in OF_A_MODEL or run.model == model]]


def _value(run: Training, name: str) -> str:
    return repr(run.options.get(name, "unknown"))


def _place(order: list[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _text(options: dict[str, Any], name: str) -> str:
    """An option for a label: "no LTE", "mean pooling", "learning rate 2e-05", "40 steps"."""
    value, words = options[name], name.replace("_", " ").replace("lte", "LTE")
    texts = {
        "training": str(value),
        "record": f"{UNRECORDED} ({value})",
        "layers": plural(value, "layer") if isinstance(value, int) else "",
        "data": f"trained on {value}",
        "weights": f"weights {value}",
        "encoder": f"encoder configuration {value}",
        CODE: f"code {str(value)[:8]}",
    }
    if name in texts:
        return texts[name]
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if value is None:
        return f"no {words}"
    return f"{value} {words}" if isinstance(value, str) else f"{words} {value}"


def _check_distinct(runs: Sequence[StudyRun]) -> None:
    keys: dict[str, Path] = {}
    seeds: dict[tuple, Path] = {}
    for run in runs:
        if (other := keys.setdefault(run.key, run.folder)) != run.folder:
            raise InputError(f"{other} and {run.folder} are the same checkpoint: give one of them")
        options = tuple(sorted((name, repr(value)) for name, value in run.options.items()))
        known = seeds.setdefault((run.model, run.strategy, options, run.seed), run.folder)
        if run.seed is not None and known != run.folder:
            raise InputError(
                f"{known} and {run.folder} have the same options and the same seed, but different weights: a study"
                " averages runs that differ in the seed only. Give one of them"
            )


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
