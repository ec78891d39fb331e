"""Comparison of two models: predictions, scores, size, latency, and for CoreML hidden states."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from berxit.runtime.chance import check_labels
from berxit.runtime.errors import InputError
from berxit.runtime.examples import find_split, read_examples_for
from berxit.runtime.golden import read_golden
from berxit.runtime.metrics import metric_named
from berxit.runtime.policies import certainties, exit_layers
from berxit.runtime.progress import Progress, silent
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import Text
from berxit.toolkit.comparison.sides import RowOutputs, Side, open_side

NEAR = 1e-5
"""A row whose certainty is this close to a threshold can exit at another layer through rounding alone."""
SAME_VALUE = 1e-2
"""Regression: two values that differ by less, relative to their size, count as the same prediction."""
LISTED = 10
"""Rows that differ are listed up to this number."""


@dataclass(frozen=True)
class RowDifference:
    """One row on which the two models differ."""

    row: int
    exit_layers: tuple[int, int]
    predictions: tuple[str, str]
    margin: float
    """The smallest distance between a certainty of the first model and its threshold."""

    @property
    def near(self) -> bool:
        return self.margin < NEAR

    def __str__(self) -> str:
        before, after = self.exit_layers
        reason = f"predicts {self.predictions[1]} instead of {self.predictions[0]}"
        if before != after:
            same = self.predictions[0] == self.predictions[1]
            reason = f"exits at layer {after} instead of {before}" + ("" if same else f" and {reason}")
        return f"row {self.row}: {reason}; its closest certainty is {self.margin:.1e} from the threshold"


@dataclass(frozen=True)
class HiddenDifference:
    """Differences of the hidden states after one layer, over all rows."""

    layer: int
    """0: the embeddings."""
    largest_value: float
    max_diff: float
    relative: float
    """The largest difference, each divided by the value's size if that is above 1."""


@dataclass(frozen=True)
class LatencyRatio:
    """Latency of both bundles on the same inputs, one after the other; milliseconds per input."""

    policy: str
    median_ms: tuple[float, float]
    ratio: float
    """Median over the inputs of the second model's latency divided by the first's."""
    low: float
    """10th percentile of that ratio."""
    high: float
    """90th percentile of that ratio."""


@dataclass(frozen=True)
class ModelComparison:
    """Everything that was compared between two models."""

    names: tuple[str, str]
    executed_by: tuple[str, str]
    mib: tuple[float, float]
    data: str
    rows: int
    metric: str | None
    """None without labels."""
    exits: tuple[int, ...]
    """Layers at which both models have an exit."""
    max_diff: tuple[float, ...]
    """Per common exit: the largest absolute difference of logits and LTE."""
    scores: tuple[tuple[float, float], ...]
    """Per common exit; empty without labels."""
    policy_scores: tuple[float, float] | None
    average_exit_layers: tuple[float, float]
    differ: tuple[RowDifference, ...]
    latencies: tuple[LatencyRatio, ...]
    """Full depth and calibrated; empty where one side is not executed by a device's backend."""
    hidden: tuple[HiddenDifference, ...]

    @property
    def beyond_rounding(self) -> tuple[RowDifference, ...]:
        return tuple(each for each in self.differ if not each.near)

    def regressions(self, percent: float) -> list[str]:
        """Values that are worse in the second model by more than ``percent``: rows that differ, latency, score."""
        found = []
        share = 100 * len(self.beyond_rounding) / self.rows
        if share > percent:
            found.append(f"{share:.2f}% of the rows differ")
        for each in self.latencies:
            if (slower := 100 * (each.ratio - 1)) > percent:
                found.append(f"latency at {each.policy} is {slower:.1f}% higher")
        if self.policy_scores and self.policy_scores[0] > 0:
            lost = 100 * (1 - self.policy_scores[1] / self.policy_scores[0])
            if lost > percent:
                found.append(f"{self.metric} is {lost:.2f}% lower")
        return found

    def text(self) -> str:
        """The comparison as Markdown."""
        facts: list[list[str]] = [
            ["executed by", *self.executed_by],
            ["MiB on disk", *(f"{size:.1f}" for size in self.mib)],
            ["average exit layer", *(f"{layer:.2f}" for layer in self.average_exit_layers)],
        ]
        if self.policy_scores:
            facts.append([f"{self.metric} with the policy", *(f"{score:.4f}" for score in self.policy_scores)])
        facts += [[f"median ms, {each.policy}", *(f"{ms:.2f}" for ms in each.median_ms)] for each in self.latencies]
        header = [
            "exit layer",
            "max diff",
            *([f"{self.metric} of {name}" for name in self.names] if self.scores else []),
        ]
        exits = [
            [
                str(layer),
                f"{self.max_diff[i]:.1e}",
                *(f"{score:.4f}" for score in (self.scores[i] if self.scores else ())),
            ]
            for i, layer in enumerate(self.exits)
        ]
        blocks = [
            f"{self.rows} rows of {self.data}, one at a time",
            markdown_table(["", *self.names], facts),
            *(
                f"{each.policy}: {self.names[1]} takes {each.ratio:.3f} times the latency of {self.names[0]}"
                f" (10th to 90th percentile over the inputs: {each.low:.3f} to {each.high:.3f})"
                for each in self.latencies
            ),
            markdown_table(header, exits),
        ]
        if self.hidden:
            rows = [
                [str(h.layer), f"{h.largest_value:.1f}", f"{h.max_diff:.1e}", f"{h.relative:.1e}"] for h in self.hidden
            ]
            blocks.append(markdown_table(["hidden states after layer", "largest value", "max diff", "relative"], rows))
        within = len(self.differ) - len(self.beyond_rounding)
        agree = f"{self.rows - len(self.differ)} of {self.rows} rows agree: same exit layer, same prediction"
        blocks.append(agree + (f"; {within} differ within {NEAR:.0e} of a threshold" if within else ""))
        if self.differ:
            more = len(self.differ) - LISTED
            blocks.append(
                "\n".join([*map(str, self.differ[:LISTED]), *([f"and {more} more rows"] if more > 0 else [])])
            )
        return "\n\n".join(blocks)


def compare_models(
    first: Path,
    second: Path,
    *,
    data: Path | None = None,
    split: str = "dev",
    limit: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> ModelComparison:
    """Runs two models (bundles or checkpoints) on the same texts, one text at a time.

    ``data``: labelled texts; by default the golden inputs of one of the bundles, which have no labels. A checkpoint is
    executed by PyTorch under the other side's policy. Latency is measured if this machine runs both bundles.

    Raises InputError for models of different tasks, and if there are no texts to compare on.
    """
    a, b = (open_side(path, threads) for path in (first, second))
    described = [(side.model.kind, side.model.labels, len(side.model.text_columns)) for side in (a, b)]
    if described[0] != described[1]:
        raise InputError(f"{first} predicts {_labels(a)}, {second} predicts {_labels(b)}: compare models of one task")
    if a.model.task_kind.words:
        raise InputError(f"{first} labels words: compare benches of such models with berxit compare BENCH BENCH")
    if threads is not None and a.manifest is None and b.manifest is None:
        raise InputError(f"--threads goes with bundles, and {first} and {second} are checkpoints: omit --threads")
    if a.manifest is None and b.manifest is not None:
        a = replace(a, policy=b.policy, exits=b.exits)
    elif b.manifest is None and a.manifest is not None:
        b = replace(b, policy=a.policy, exits=a.exits)
    texts, labels, source = _texts(a, b, data, split, limit)
    timed = a.runner is not None and b.runner is not None
    with progress((2 + 4 * timed) * len(texts)) as bar:
        found = [[_at_exits(side, side.outputs(text), bar.update) for text in texts] for side in (a, b)]
        latencies = _latencies(a, b, texts, bar.update) if timed else ()
    common = tuple(layer for layer in a.exits if layer in b.exits)
    decided = [_decide(side, rows) for side, rows in zip((a, b), found, strict=True)]
    scores: tuple[tuple[float, float], ...] = ()
    policy_scores = None
    if labels is not None:
        metric = metric_named(a.model.metric)
        per_exit = [
            [metric(_predicted(side, rows, layer), labels) for layer in common]
            for side, rows in zip((a, b), found, strict=True)
        ]
        scores = tuple(zip(*per_exit, strict=True))
        policy_scores = metric(decided[0].predictions, labels), metric(decided[1].predictions, labels)
    return ModelComparison(
        names=(a.name, b.name) if a.name != b.name else (str(first), str(second)),
        executed_by=(a.executed_by, b.executed_by),
        mib=(a.mib, b.mib),
        data=source,
        rows=len(texts),
        metric=a.model.metric if labels is not None else None,
        exits=common,
        max_diff=tuple(_max_diff(a, b, found, layer) for layer in common),
        scores=scores,
        policy_scores=policy_scores,
        average_exit_layers=(float(decided[0].layers.mean()), float(decided[1].layers.mean())),
        differ=_differences(a, decided[0], decided[1]),
        latencies=latencies,
        hidden=_hidden(a.exits, *found) if a.exits == b.exits else (),
    )


@dataclass(frozen=True)
class _Decisions:
    """Exit layers and predictions of N rows under a policy."""

    layers: npt.NDArray
    """(N,)"""
    predictions: npt.NDArray
    """(N,) class numbers, or values."""
    margins: npt.NDArray
    """(N,) smallest distance of a certainty to its threshold."""


def _labels(side: Side) -> str:
    names = "classes" if side.model.kind == "classification" else "labels"
    predicted = f"the {names} {', '.join(side.model.labels)}," if side.model.labels else "a value"
    return f"{predicted} for {'pairs' if len(side.model.text_columns) == 2 else 'single texts'}"


def _texts(
    a: Side, b: Side, data: Path | None, split: str, limit: int | None
) -> tuple[list[Text], npt.NDArray | None, str]:
    """Texts, their labels (N,) or None, and a description of both."""
    if data is not None:
        path = find_split(data, split)
        examples = read_examples_for(a.model, path).head(limit)
        check_labels(a.model.metric, examples.labels, str(path))
        return examples.texts, examples.labels, path.name
    for side in (a, b):
        if side.manifest is not None:
            return read_golden(side.path, side.manifest).inputs[:limit], None, f"golden inputs of {side.name}"
    raise InputError(f"two checkpoints, {a.path} and {b.path}: --data gives the texts to compare them on")


def _at_exits(side: Side, row: RowOutputs, advance: Callable[[int], None]) -> RowOutputs:
    """The row at the side's own exits: a checkpoint has one after every layer, its bundle possibly fewer."""
    advance(1)
    if len(row.logits) == len(side.exits):
        return row
    places = np.array(side.exits) - 1
    hidden = tuple(row.hidden[layer] for layer in (0, *side.exits)) if row.hidden else ()
    return RowOutputs(row.logits[places], None if row.lte is None else row.lte[places], hidden)


def _decide(side: Side, rows: Sequence[RowOutputs]) -> _Decisions:
    policy = side.policy.at_exits(side.exits)
    logits = np.stack([row.logits for row in rows])
    lte = [row.lte for row in rows if row.lte is not None]
    certainty = certainties(policy, logits, np.stack(lte) if lte else None)
    places = exit_layers(policy, certainty, logits) - 1
    last = logits[np.arange(len(logits)), places]
    predictions = side.model.task_kind.numbers(last)
    margins = np.abs(certainty[:, :-1] - np.array(policy.thresholds)).min(axis=1, initial=np.finfo(np.float64).max)
    return _Decisions(np.array(side.exits)[places], predictions, margins)


def _predicted(side: Side, rows: Sequence[RowOutputs], layer: int) -> npt.NDArray:
    """(N,) predictions of one exit."""
    logits = np.stack([row.logits[side.exits.index(layer)] for row in rows])
    return side.model.task_kind.numbers(logits)


def _max_diff(a: Side, b: Side, found: Sequence[Sequence[RowOutputs]], layer: int) -> float:
    i, j = a.exits.index(layer), b.exits.index(layer)
    largest = 0.0
    for mine, other in zip(*found, strict=True):
        largest = max(largest, float(np.abs(mine.logits[i] - other.logits[j]).max()))
        if mine.lte is not None and other.lte is not None:
            largest = max(largest, float(abs(mine.lte[i] - other.lte[j])))
    return largest


def _differences(a: Side, first: _Decisions, second: _Decisions) -> tuple[RowDifference, ...]:
    if a.model.labels:
        same = first.predictions == second.predictions
        kind, labels = a.model.task_kind, a.model.labels
        names = [[str(kind.shown(number, labels)) for number in each.predictions] for each in (first, second)]
    else:
        size = np.maximum(1.0, np.abs(first.predictions))
        same = np.abs(first.predictions - second.predictions) < SAME_VALUE * size
        names = [[f"{value:.4g}" for value in each.predictions] for each in (first, second)]
    rows = np.flatnonzero(~same | (first.layers != second.layers)).tolist()
    return tuple(
        RowDifference(
            row,
            (int(first.layers[row]), int(second.layers[row])),
            (names[0][row], names[1][row]),
            float(first.margins[row]),
        )
        for row in rows
    )


def _latencies(a: Side, b: Side, texts: Sequence[Text], advance: Callable[[int], None]) -> tuple[LatencyRatio, ...]:
    """Latency of both bundles on every text, in random order, after a warm-up pass over the first texts."""
    runners = [side.runner for side in (a, b) if side.runner is not None]
    order, found = random.Random(0), []
    for name, policies in (
        ("full depth", [runner.policy.at_depth(runner.backend.layers) for runner in runners]),
        ("the bundle's policy", [runner.policy for runner in runners]),
    ):
        for text in texts[:10]:
            for runner, policy in zip(runners, policies, strict=True):
                runner.answer([text], policy)
        taken = np.empty((2, len(texts)))
        for row, text in enumerate(texts):
            for which in order.sample([0, 1], 2):
                start = time.perf_counter()
                runners[which].answer([text], policies[which])
                taken[which, row] = 1e3 * (time.perf_counter() - start)
                advance(1)
        low, median, high = np.percentile(taken[1] / taken[0], [10, 50, 90])
        medians = np.median(taken, axis=1)
        found.append(LatencyRatio(name, (float(medians[0]), float(medians[1])), float(median), float(low), float(high)))
    return tuple(found)


def _hidden(
    exits: Sequence[int], first: Sequence[RowOutputs], second: Sequence[RowOutputs]
) -> tuple[HiddenDifference, ...]:
    """Per layer with an exit; empty unless both sides return their hidden states."""
    if not (first[0].hidden and second[0].hidden):
        return ()
    found = []
    for place, layer in enumerate((0, *exits)):
        largest = max_diff = relative = 0.0
        for mine, other in zip(first, second, strict=True):
            gap, size = np.abs(mine.hidden[place] - other.hidden[place]), np.abs(mine.hidden[place])
            largest, max_diff = max(largest, float(size.max())), max(max_diff, float(gap.max()))
            relative = max(relative, float((gap / np.maximum(1, size)).max()))
        found.append(HiddenDifference(layer, largest, max_diff, relative))
    return tuple(found)
