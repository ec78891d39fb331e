"""The columns that predictions add to the rows of a file or table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.runtime.bundle import ModelInfo
from berxit.runtime.errors import InputError
from berxit.runtime.heads import classes_in, heads_of
from berxit.runtime.prediction import Prediction
from berxit.runtime.spans import Span
from berxit.runtime.storage import replacing

PREDICTION, EXIT_LAYER, CERTAINTY, TRUNCATED = "prediction", "exit_layer", "certainty", "truncated"
SCORE = "score_"
"""Prefix of the columns with the probability of each class."""
HEAD = f"{PREDICTION}_"
"""Prefix of the columns with the class of each named head."""


def column_names(model: ModelInfo, *, scores: bool) -> tuple[str, ...]:
    """Names of the added columns. ``scores``: with the probability of each class; regression has none."""
    has_scores = scores and not model.regression and not model.task_kind.words
    classes = tuple(f"{SCORE}{name}" for name in model.labels) if has_scores else ()
    return PREDICTION, EXIT_LAYER, CERTAINTY, TRUNCATED, *head_columns(model), *classes


def head_columns(model: ModelInfo) -> tuple[str, ...]:
    """Names of the columns with the class of each named head; none for other models."""
    return tuple(f"{HEAD}{head.name}" for head in heads_of(model.labels)) if model.kind == "heads" else ()


def refuse_collisions(columns: Iterable[str], added: Sequence[str], where: str) -> None:
    """Raises InputError if a column of the input has the name of an added one."""
    if twice := [column for column in columns if column in added]:
        raise InputError(f"{where} has a column '{twice[0]}', which the predictions add: rename or delete it")


@dataclass(frozen=True)
class Outputs:
    """Predictions for N rows as arrays."""

    labels: npt.NDArray
    """(N,) predictions as numbers (``runtime.kinds``): int64, or float64 for regression."""
    exit_layers: npt.NDArray[np.int64]
    """(N,)"""
    certainty: npt.NDArray[np.float64]
    """(N,)"""
    truncated: npt.NDArray[np.bool_]
    """(N,) True for a text that was truncated to the model's maximum length."""
    scores: npt.NDArray[np.float64]
    """(N, C) probability of each class; (N, 0) for regression."""
    full_depth: npt.NDArray
    """(N,) as ``labels``, at full depth; (0,) if full depth did not run."""
    spans: npt.NDArray[np.str_]
    """(N,) the spans of a tokens model as JSON lists of [start, end, label, score]; (0,) for other kinds."""

    @classmethod
    def of(
        cls,
        predictions: Sequence[Prediction],
        model: ModelInfo,
        full_depth: Sequence[Prediction] = (),
        truth: Sequence[Sequence[Span]] = (),
    ) -> Outputs:
        """Arrays of a runner's predictions. ``truth`` (N,): the true spans of a tokens model, if they are known."""

        def labels(found: Sequence[Prediction]) -> npt.NDArray:
            pairs = zip(found, truth or [()] * len(found), strict=False)
            numbers = [model.task_kind.number(prediction, model.labels, spans) for prediction, spans in pairs]
            return np.array(numbers, dtype=np.float64 if model.regression else np.int64)

        classes = [] if model.regression or model.task_kind.words else model.labels
        scores = [[prediction.scores[name] for name in classes] for prediction in predictions]
        return cls(
            labels(predictions),
            np.array([prediction.exit_layer for prediction in predictions], dtype=np.int64),
            np.array([prediction.certainty for prediction in predictions], dtype=np.float64),
            np.array([prediction.truncated for prediction in predictions], dtype=bool),
            np.array(scores, dtype=np.float64).reshape(len(predictions), len(classes)),
            labels(full_depth),
            np.array([_json(prediction.spans) for prediction in predictions if prediction.spans is not None], np.str_),
        )

    @classmethod
    def join(cls, parts: Sequence[Outputs]) -> Outputs:
        """All rows of ``parts``, in their order."""
        arrays = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        return cls(**arrays)

    @classmethod
    def load(cls, path: Path) -> Outputs:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def save(self, path: Path) -> None:
        """Writes an .npz file atomically."""
        with replacing(path) as scratch, scratch.open("wb") as stream:
            np.savez(stream, **{field.name: getattr(self, field.name) for field in fields(self)})

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, start: int, end: int) -> Outputs:
        """The rows from ``start`` to before ``end``."""
        return Outputs(**{field.name: getattr(self, field.name)[start:end] for field in fields(self)})

    def columns(self, model: ModelInfo, *, scores: bool) -> dict[str, list[Any]]:
        """Name of each added column -> its N values, rounded to the seven digits of float32."""
        labels = _rounded(self.labels) if model.regression else self._texts(model)
        found: list[list[Any]] = [
            labels,
            self.exit_layers.tolist(),
            _rounded(self.certainty),
            self.truncated.tolist(),
            *self._classes_of_heads(model),
            *(_rounded(column) for column in self.scores.T),
        ]
        return dict(zip(column_names(model, scores=scores), found, strict=False))

    def _classes_of_heads(self, model: ModelInfo) -> list[list[str]]:
        if model.kind != "heads":
            return []
        heads = heads_of(model.labels)
        columns = zip(heads, classes_in(self.labels, len(heads)).T.tolist(), strict=True)
        return [[head.classes[number] for number in numbers] for head, numbers in columns]

    def _texts(self, model: ModelInfo) -> list[str]:
        if model.task_kind.words:
            return self.spans.tolist()
        return [str(model.task_kind.text(number, model.labels)) for number in self.labels.tolist()]


def _json(spans: Sequence[Span]) -> str:
    return json.dumps([[*span[:3], float(f"{span.score:.7g}")] for span in spans], ensure_ascii=False)


def _rounded(values: npt.NDArray) -> list[float]:
    return [float(f"{value:.7g}") for value in values.tolist()]
