"""Measurements of the side-by-side benchmark, and the bars (requirements) that they are compared with."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from benchmarks.side_by_side.contenders import SHALLOW, Case, Spec
from benchmarks.side_by_side.products import Shape
from berxit.runtime.tables import plural

OURS = "ours, ONNX Runtime fp32"
OURS_INT8 = "ours, ONNX Runtime int8"
POOL = "ours, ONNX Runtime {}, one pool"
"""Name of a contender, with a precision. It changes process-wide state, so that only the bars that name it use it."""
EAGER = "PyTorch eager"
MACHINE = "matrix products alone, {}"
"""Name of the contender that computes matrix multiplications only, with a precision."""
KEEP = 0.99
"""Minimum score relative to the fp32 model. Contenders below it are excluded from comparisons."""
USED = 0.01
"""An exit is in use if at least this share of the rows exits there."""


@dataclass(frozen=True)
class Timings:
    """Measurements with one thread count. Times are in ms per row, one per round. Contenders are identified by name."""

    threads: int
    rounds: int
    times: dict[str, list[float]]
    """ "CASE | TASK | NAME" -> times; tasks: ``full`` (full depth) and ``early`` (under the policy)."""
    average_exit_layer: dict[str, float]
    """ "CASE | NAME" -> average exit layer."""
    ways: dict[str, str]
    """ "CASE | NAME" -> the fastest implementation of matrix multiplication."""

    def ms(self, case: str, task: str, name: str) -> float | None:
        """Median over the rounds; None if the contender was not measured in this case and task."""
        series = self.times.get(f"{case} | {task} | {name}")
        return statistics.median(series) if series else None

    def ratio(self, case: str, over: tuple[str, str], under: tuple[str, str]) -> float:
        """Time of (task, name) ``over`` divided by that of ``under``: the median of the ratios of the rounds, which is
        robust to noise."""
        pair = (self.times[f"{case} | {task} | {name}"] for task, name in (over, under))
        return statistics.median(a / b for a, b in zip(*pair, strict=True))

    def fastest(self, case: str, task: str, among: Sequence[Spec]) -> str:
        return min((spec.name for spec in among), key=lambda name: self.ms(case, task, name) or float("inf"))


class Scored(NamedTuple):
    """Scores of a contender on all rows."""

    full: float
    """Score of the last exit."""
    by_exit: list[float]
    """(n,) score of each exit if all rows exit there; one entry for a graph without exits."""
    early: float | None
    """Score under the policy; None without early exit."""
    leaving: list[int]
    """(n,) number of rows that exit at each layer; empty without early exit."""

    @property
    def average_exit_layer(self) -> float:
        return sum(layer * count for layer, count in enumerate(self.leaving, start=1)) / sum(self.leaving)


@dataclass(frozen=True)
class Measurements:
    """All measurements and scores."""

    runs: list[Timings]
    differs: dict[str, float]
    """Name -> largest difference of the last exit's logits from those of our fp32 segments."""
    memory_mib: dict[str, dict[str, float]]
    """Name -> stage of the process -> resident memory in MiB."""
    scores: dict[str, Scored] = field(default_factory=dict)
    """Name -> scores; empty without labels."""
    metric: str = ""

    def keeps_score(self, spec: Spec) -> bool:
        """True if the contender keeps 99% of the score of the fp32 model, or if there are no scores."""
        if not self.scores:
            return True
        mine = self.scores[spec.name]
        return (mine.full if mine.early is None else mine.early) >= KEEP * self.scores[OURS].full


@dataclass(frozen=True)
class Bar:
    """Measured ratio with its limit; without a limit, a ratio that is only reported."""

    what: str
    """Name of the ratio."""
    where: str
    """Case and thread count."""
    against: str
    """Contender that ours is compared with."""
    found: float
    """Measured value."""
    limit: float | None = None
    at_most: bool = False
    """True if the limit is a maximum, False if it is a minimum."""
    claimed: bool = True
    """False if none of our contenders keeps the score; the bar then fails regardless of the measured value."""

    @property
    def wanted(self) -> str:
        return "" if self.limit is None else f"{'<=' if self.at_most else '>='} {self.limit:g}"

    @property
    def holds(self) -> bool:
        return self.margin >= 0

    @property
    def margin(self) -> float:
        if self.limit is None:
            return float("inf")
        if not self.claimed:
            return float("-inf")
        return self.limit - self.found if self.at_most else self.found - self.limit


def bars(measured: Measurements, specs: Sequence[Spec], cases: Mapping[str, Case], shape: Shape) -> list[Bar]:
    """All bars and further ratios, for each case in which they can be computed."""
    made: list[Bar] = []
    for run in measured.runs:
        for case in cases.values():
            compared = _Compared(measured, run, case, specs, shape)
            made += compared.batch() if case.together else compared.one_by_one()
    return [*made, *_scores(measured, specs), *_memory(measured, specs, shape)]


@dataclass(frozen=True)
class _Compared:
    """Comparisons for one case and one thread count."""

    measured: Measurements
    run: Timings
    case: Case
    specs: Sequence[Spec]
    shape: Shape

    @property
    def where(self) -> str:
        return f"{self.case.name}, {plural(self.run.threads, 'thread')}"

    def one_by_one(self) -> Iterator[Bar]:
        for precision in ("fp32", "int8"):
            yield from self._segments(precision, f"ours, ONNX Runtime {precision}", "all segments")
        for precision in ("fp32", "int8"):
            if POOL.format(precision) in self._names:
                yield from self._segments(precision, POOL.format(precision), "all segments, one pool")
        case = self.case.name
        for precision, over_eager in (("fp32", 2.0), ("int8", 4.0)):
            mine = f"ours, ONNX Runtime {precision}"
            value = self.run.ratio(case, ("full", mine), ("early", mine))
            what = f"wall-clock speed-up / layer speed-up, {precision}"
            yield Bar(what, self.where, mine, value / self._layer_speed_up(mine), 0.95)
            if self.shape.last_alone:
                value /= self._layer_speed_up(mine, self._layers_worth)
                yield Bar(f"{what}, full depth counted by its products", self.where, mine, value)
            if EAGER in self._names:
                best = self.run.fastest(case, "early", self._ours(precision))
                value = self.run.ratio(case, ("early", EAGER), ("early", best))
                yield Bar(f"eager early exit / ours, {precision}", self.where, f"{EAGER} / {best}", value, over_eager)
        value = self.run.ratio(case, ("full", OURS), ("full", OURS_INT8))
        yield Bar("fp32 segments / int8 segments", self.where, OURS, value, 2.0)
        yield from self._rivals()

    def _segments(self, precision: str, mine: str, which: str) -> Iterator[Bar]:
        """Bar against the fastest graph; ratios to the other graphs."""
        graphs = self._graphs(precision)
        best = self.run.fastest(self.case.name, "full", graphs)
        for graph in graphs:
            value = self.run.ratio(self.case.name, ("full", mine), ("full", graph.name))
            limit = self._segments_limit() if graph.name == best else None
            what = f"{which} / one graph, {precision}"
            yield Bar(what, self.where, graph.name, value, limit, at_most=True)

    def _rivals(self) -> Iterator[Bar]:
        """Bars of our fastest contender with early exit against the fastest graphs, all among those that keep the
        score."""
        ours = self._ours()
        able = [spec for spec in ours if self.measured.keeps_score(spec)]
        mine = self.run.fastest(self.case.name, "early", able or ours)
        openvino = [spec for spec in self.specs if spec.kind == "openvino"]
        for what, graphs, limit in (("int8", self._graphs("int8"), 1.5), ("OpenVINO", openvino, 1.3)):
            those = [graph for graph in graphs if self.measured.keeps_score(graph)]
            rival = self.run.fastest(self.case.name, "full", those or graphs)
            value = self.run.ratio(self.case.name, ("full", rival), ("early", mine))
            against = f"{rival} / {mine}" + ("" if able else f", which loses more than {1 - KEEP:.0%} of the score")
            name = f"one graph, {what} / our fastest, early exit"
            yield Bar(name, self.where, against, value, limit, claimed=bool(able))

    def batch(self) -> Iterator[Bar]:
        for precision in ("fp32", "int8"):
            mine = f"ours, ONNX Runtime {precision}"
            rival = self.run.fastest(self.case.name, "full", self._graphs(precision))
            value = self.run.ratio(self.case.name, ("full", rival), ("early", mine)) / self._layer_speed_up(mine)
            what = f"batch: one graph / ours, over n / average exit layer, {precision}"
            yield Bar(what, self.where, rival, value, 0.9)
            if self.shape.last_alone:
                value *= self._layer_speed_up(mine) / self._layer_speed_up(mine, self._layers_worth)
                yield Bar(f"{what}, full depth counted by its products", self.where, rival, value)

    def _segments_limit(self) -> float | None:
        """Limit for long inputs of large models, and for inputs of typical length of small models; otherwise None."""
        tokens = statistics.fmean(map(len, self.case.ids))
        if self.shape.hidden >= 768:
            return 1.03 if tokens >= 128 else None
        return 1.06 if self.shape.hidden >= 384 and tokens >= 32 else None

    def _layer_speed_up(self, name: str, layers: float | None = None) -> float:
        return (layers or self.shape.layers) / self.run.average_exit_layer[f"{self.case.name} | {name}"]

    @property
    def _layers_worth(self) -> float:
        """Cost of full depth in units of the first layer, by FLOPs of the matrix multiplications. It is below n if the
        last layer computes only one token."""
        tokens = round(statistics.fmean(map(len, self.case.ids)))
        return self.shape.flops(tokens) / replace(self.shape, layers=1, last_alone=False).flops(tokens)

    @property
    def _names(self) -> set[str]:
        return {spec.name for spec in self.specs}

    def _ours(self, precision: str | None = None) -> list[Spec]:
        """Our contenders that ``--tune`` chooses from."""
        mine = [spec for spec in self.specs if spec.tunable]
        return [spec for spec in mine if precision in (None, spec.precision)]

    def _graphs(self, precision: str) -> list[Spec]:
        return [spec for spec in self.specs if spec.kind == "onnxruntime" and spec.precision == precision]


def used_exits(scored: Scored) -> list[int]:
    """Layers (from 1) at which at least 1% of the rows exit."""
    total = sum(scored.leaving)
    return [layer for layer, count in enumerate(scored.leaving, start=1) if count >= USED * total]


def _scores(measured: Measurements, specs: Sequence[Spec]) -> Iterator[Bar]:
    if not measured.scores:
        return
    fp32, int8 = measured.scores[OURS], measured.scores[OURS_INT8]
    for layer in used_exits(int8):
        lost = 100 * (fp32.by_exit[layer - 1] - int8.by_exit[layer - 1])
        yield Bar("points that int8 loses at an exit in use", f"exit {layer}", OURS, lost, 0.5, at_most=True)
    for spec in (spec for spec in specs if spec.tunable):  # A shared thread pool changes no prediction.
        early = measured.scores[spec.name].early or 0.0
        yield Bar("score kept, on rows that calibration has not seen", spec.name, OURS, early / fp32.full, KEEP)


def _memory(measured: Measurements, specs: Sequence[Spec], shape: Shape) -> Iterator[Bar]:
    """Memory bars. They have limits for large models only, because Python and ONNX Runtime dominate the memory of small
    ones."""
    if not measured.memory_mib:
        return
    promised = shape.hidden >= 768
    for precision in ("fp32", "int8"):
        mine = f"ours, ONNX Runtime {precision}"
        graphs = [s.name for s in specs if s.kind == "onnxruntime" and s.precision == precision]
        graphs = [name for name in graphs if name in measured.memory_mib]
        compared: list[tuple[str, str, float]] = [("resident memory / one graph's", mine, 1.1)]
        if shape.layers > SHALLOW:
            compared.append((f"resident memory / one graph's, lazy, nothing past layer {SHALLOW}", lazy(mine), 0.5))
        for what, name, limit in compared:
            for stage, held in measured.memory_mib[name].items():
                leanest = min(graphs, key=_held_at(measured, stage))
                value = held / measured.memory_mib[leanest][stage]
                yield Bar(f"{what}, {precision}", stage, leanest, value, limit if promised else None, at_most=True)


def _held_at(measured: Measurements, stage: str) -> Callable[[str], float]:
    return lambda name: measured.memory_mib[name][stage]


def lazy(name: str) -> str:
    return f"{name}, lazy, nothing past layer {SHALLOW}"
