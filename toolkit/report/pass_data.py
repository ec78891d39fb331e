"""Compact data of a pass over N inputs with E exits, from which the page computes every number at any threshold.

A row exits at the first exit that passes the threshold. The page therefore needs, per row and exit, only the number of
the slider's thresholds that the certainty passes. Thresholds are sorted: the first one lets every row exit at the
first exit, the last one none before the last.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.runtime.bench_records import BenchRecords
from berxit.runtime.bench_result import ONE_GRAPH
from berxit.runtime.kinds import KINDS
from berxit.runtime.metrics import METRICS
from berxit.runtime.policies import UNBOUNDED, Criterion, exit_layers, exit_layers_at
from berxit.runtime.queries import ExitOutputs
from berxit.runtime.reliability import certainty_quality
from berxit.runtime.tokenization import Text

POSITIONS = 200
"""Largest number of the slider's positions. A number of passed thresholds is stored in one byte."""
CANDIDATES = 1500
TEXT_BYTES = 200_000
"""Largest size of all texts on the page; the texts of the other rows are omitted."""
LONGEST_TEXT = 240
"""Characters of a text; longer ones are shortened."""


def pass_data(
    outputs: ExitOutputs, *, metric: str | None, latency_ms: npt.NDArray | None, calibrated: bool, texts: bool
) -> dict[str, Any]:
    """The data as JSON types. Arrays are base64 of little-endian numbers, row by row.

    ``latency_ms`` (N, E): latency of each input if it exits there; None without a bench. ``metric``: None without
    labels. ``calibrated``: the policy of ``outputs`` is calibrated. ``texts``: include the texts.
    """
    criterion, off = outputs.criterion, outputs.policy.at_exits(outputs.exits).off
    thresholds = slider_thresholds(outputs, calibrated=calibrated)
    passed = _passed(criterion, outputs.certainty, thresholds, off)
    rows, shown = np.arange(len(outputs.certainty)), numbered_classes(outputs)
    data: dict[str, Any] = {
        "rows": len(rows),
        "exits": list(outputs.exits),
        "thresholds": [float(f"{t:.6g}") if abs(t) < UNBOUNDED else None for t in thresholds],
        "passed": _base64(passed, np.uint8),
        "certainty": _quantized(outputs.certainty),
        "predictions": _values(shown.predictions),
        "labels": None if shown.labels is None else _values(shown.labels),
        "latency": None if latency_ms is None else _quantized(latency_ms),
        "scores": None,
        "layer_scores": None,
        "calibrated": None,
        "texts": _texts(outputs.texts) if texts else None,
    }
    taken = [_exits_at(passed, position) for position in range(len(thresholds))]
    if metric is not None and outputs.labels is not None:
        score = METRICS[metric].scores
        data["scores"] = score(np.stack([outputs.predictions[rows, exits] for exits in taken]), outputs.labels).tolist()
        data["layer_scores"] = score(outputs.predictions.T, outputs.labels).tolist()
    if calibrated:
        own = calibrated_exits(outputs)
        chosen = outputs.predictions[rows, own]
        data["calibrated"] = {
            "exits": _base64(own, np.uint8),
            "position": _position(taken, own),
            "threshold": _uniform_threshold(outputs),
            "score": None if metric is None or outputs.labels is None else METRICS[metric](chosen, outputs.labels),
        }
    return data


def numbered_classes(outputs: ExitOutputs) -> ExitOutputs:
    """The outputs with class numbers, for the page: sets of labels are numbered in ascending order."""
    if not KINDS[outputs.kind].several:
        return outputs
    known = distinct_numbers(outputs)
    labels = None if outputs.labels is None else np.searchsorted(known, outputs.labels)
    return replace(outputs, predictions=np.searchsorted(known, outputs.predictions), labels=labels)


def distinct_numbers(outputs: ExitOutputs) -> npt.NDArray:
    """The different predictions and labels, in ascending order."""
    return np.unique(
        np.concatenate([outputs.predictions.ravel(), *([] if outputs.labels is None else [outputs.labels])])
    )


def page_classes(outputs: ExitOutputs, labels: Sequence[str]) -> list[str]:
    """Names of the page's classes: the model's, or the different sets of labels."""
    kind = KINDS[outputs.kind]
    return (
        [str(kind.text(number, labels)) for number in distinct_numbers(outputs).tolist()]
        if kind.several
        else list(labels)
    )


def latency_by_exit(records: BenchRecords) -> npt.NDArray[np.float64]:
    """(N, E) milliseconds of each input if it exits there: the median of all its queries that exited there."""
    latency = np.concatenate([each.latency_ms for name, each in records.queries.items() if name != ONE_GRAPH])
    taken = np.concatenate([each.exit_layers for name, each in records.queries.items() if name != ONE_GRAPH])
    columns = [np.where(taken == layer, latency, np.nan) for layer in records.outputs.exits]
    return np.stack([np.nanmedian(column, axis=0) for column in columns], axis=1)


def calibrated_exits(outputs: ExitOutputs) -> npt.NDArray[np.int64]:
    """(N,) place of the exit that each row takes under the policy, from 0."""
    policy = outputs.policy.at_exits(outputs.exits)
    logits = None
    if any(isinstance(threshold, tuple) for threshold in policy.thresholds):  # They need the predicted class only.
        classes = np.arange(len(next(t for t in policy.thresholds if isinstance(t, tuple))))
        logits = (outputs.predictions[..., None] == classes).astype(np.float64)
    return (exit_layers(policy, outputs.certainty, logits) - 1).astype(np.int64)


def slider_thresholds(outputs: ExitOutputs, *, calibrated: bool) -> list[float]:
    """Thresholds with about evenly spaced average exit layers, from "always" to "never" exit early."""
    criterion, certainty = outputs.criterion, outputs.certainty
    ends = [criterion.always(outputs.policy.layers, 2), criterion.never(outputs.policy.layers, 2)]
    if not criterion.higher_is_more_certain:  # The largest value depends on the number of classes.
        ends[0] = max(ends[0], 1.01 * float(certainty.max()))
    uniform = _uniform_threshold(outputs) if calibrated else None
    if criterion.counts:
        return [float(k) for k in range(1, outputs.policy.layers + 1)]
    values = np.unique(certainty[:, :-1].astype(np.float64))
    middles = (values[1:] + values[:-1]) / 2
    middles = middles[np.linspace(0, max(len(middles) - 1, 0), min(len(middles), CANDIDATES)).astype(int)]
    found = set(middles.tolist())
    if len(found) > POSITIONS:
        averages = exit_layers_at(criterion, certainty, middles).mean(axis=1)
        wanted = np.linspace(averages.min(), averages.max(), POSITIONS)
        found = {float(middles[int(np.abs(averages - want).argmin())]) for want in wanted}
    if uniform is not None:
        found.add(uniform)
    inner = sorted(found - set(ends), reverse=not criterion.higher_is_more_certain)
    return [ends[0], *inner, ends[1]]


def quality_data(outputs: ExitOutputs) -> dict[str, Any]:
    """Quality of the policy's certainty at each exit, as in eval.json. Empty without labels."""
    if outputs.labels is None:
        return {}
    kind = outputs.criterion
    certainty = outputs.certainty if kind.higher_is_more_certain else -outputs.certainty
    regression = outputs.predictions.dtype.kind == "f"
    labels = outputs.labels[:, None]
    errors = np.abs(outputs.predictions - labels) if regression else outputs.predictions != labels
    found = [
        certainty_quality(
            layer, certainty[:, place], errors[:, place], classes=1 if regression else 2, probability=kind.probability
        )
        for place, layer in enumerate(outputs.exits)
    ]
    return {outputs.policy.criterion: found}


def _passed(
    criterion: Criterion, certainty: npt.NDArray, thresholds: Sequence[float], off: Sequence[int]
) -> npt.NDArray[np.int64]:
    """(N, E) number of thresholds that each certainty passes; at the last exit all."""
    values = np.array(thresholds).astype(certainty.dtype if certainty.dtype.kind == "f" else np.float64)
    passed = np.sum([criterion.exits(certainty, value) for value in values], axis=0)
    passed[:, [place - 1 for place in off]] = 0
    passed[:, -1] = len(thresholds)
    return np.asarray(passed, np.int64)


def _exits_at(passed: npt.NDArray[np.int64], position: int) -> npt.NDArray[np.int64]:
    """(N,) place of the exit at a position of the slider."""
    return np.asarray((passed > position).argmax(axis=1), np.int64)


def _position(taken: Sequence[npt.NDArray], own: npt.NDArray) -> int:
    """The position whose average exit is closest to the policy's; the same exits if its threshold is on the slider."""
    return int(np.argmin([(exits != own).mean() + abs(exits.mean() - own.mean()) for exits in taken]))


def _uniform_threshold(outputs: ExitOutputs) -> float | None:
    """The policy's threshold; None if it differs between exits or classes."""
    found = set(outputs.policy.at_exits(outputs.exits).thresholds)
    (threshold,) = found if len(found) == 1 else (None,)
    return None if threshold is None or isinstance(threshold, tuple) else float(threshold)


def _texts(texts: Sequence[Text]) -> list[list[str] | None]:
    """The texts of each row, shortened; None after TEXT_BYTES."""
    found: list[list[str] | None] = []
    size = 0
    for text in texts:
        parts = [" ".join(part.split()) for part in ((text,) if isinstance(text, str) else text)]
        parts = [part if len(part) <= LONGEST_TEXT else f"{part[: LONGEST_TEXT - 1]}…" for part in parts]
        size += sum(len(part.encode()) for part in parts)
        found.append(parts if size <= TEXT_BYTES else None)
    return found


def _quantized(values: npt.NDArray) -> dict[str, Any]:
    """Numbers in 16 bits between the smallest and the largest."""
    low, high = float(values.min()), float(values.max())
    step = (high - low) / 65535 or 1.0
    return {"low": low, "step": step, "data": _base64(np.round((values - low) / step), np.uint16)}


def _values(values: npt.NDArray) -> dict[str, Any]:
    """Class numbers in 16 bits; values of regression in float32."""
    if values.dtype.kind == "f":
        return {"type": "float32", "data": _base64(values, np.float32)}
    return {"type": "uint16", "data": _base64(values, np.uint16)}


def _base64(values: npt.NDArray, kind: type) -> str:
    return base64.b64encode(values.astype(np.dtype(kind).newbyteorder("<")).tobytes()).decode()
