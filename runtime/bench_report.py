"""The bench's report: headline, tables, Markdown, and the result files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from berxit.runtime.backend_options import backend_label
from berxit.runtime.bench_records import FILE
from berxit.runtime.bench_result import CALIBRATED, BenchResult
from berxit.runtime.bench_telemetry import telemetry_lines
from berxit.runtime.json_data import to_json
from berxit.runtime.measurement import Measured
from berxit.runtime.results import write_results
from berxit.runtime.tables import Table, markdown_table, plural


def headline(result: BenchResult) -> str:
    """The speed-up over full depth in one sentence, with the scores."""
    if len(result.by_layer) == 1:
        score = f", at {result.metric} {result.full_depth.score:.4f}" if result.full_depth.score is not None else ""
        return (
            f"one depth: every input runs {plural(result.layers, 'layer')}, in {result.full_depth.latency.mean:.2f} ms"
            f" per input{score}"
        )
    if result.policy is None:
        return f"full depth takes {result.full_depth.latency.mean:.2f} ms; not calibrated yet: berxit-calibrate"
    times = result.full_depth.latency.mean / result.policy.latency.mean
    text = (
        f"{times:.2f}x faster than full depth on this device: {result.policy.latency.mean:.2f} ms instead of"
        f" {result.full_depth.latency.mean:.2f} ms per input,"
        f" {result.policy.average_exit_layer:.2f} of {result.layers} layers"
    )
    if result.policy.score is None or result.full_depth.score is None:
        return text
    measured = result.full_depth.score > 0 and not result.warnings
    kept = f" ({result.policy.score / result.full_depth.score:.1%})" if measured else ""
    return f"{text}, at {result.metric} {result.policy.score:.4f} instead of {result.full_depth.score:.4f}{kept}"


def fixed_comparison(result: BenchResult) -> str:
    """The policy next to the best fixed exit, in one sentence: the fastest exit layer whose score is at least the
    policy's. Empty without a policy, without labels, and for one depth."""
    policy = result.policy
    if policy is None or policy.score is None or len(result.by_layer) == 1:
        return ""
    layer = result.best_fixed
    if layer is None:
        return "adaptive exits pay here: no fixed exit has the policy's score"
    fixed, took = result.by_layer[layer], policy.latency.mean
    verdict = f"adaptive exits {'pay' if took < fixed.latency.mean else 'do not pay'} here"
    ratio = result.speed_ups.get(f"layer {layer}")
    if ratio is not None and ratio.low <= 1 <= ratio.high:
        verdict = "adaptive exits neither pay nor cost measurably here"
    return (
        f"{verdict}: the fastest fixed exit with at least the policy's score is layer {layer},"
        f" with {result.metric} {fixed.score:.4f} in {fixed.latency.mean:.2f} ms; the policy takes {took:.2f} ms"
    )


def speed_up_text(result: BenchResult) -> str:
    """Speed-ups of the policy with their confidence intervals, in one line."""
    each = [f"{ratio} over {name}" for name, ratio in result.speed_ups.items()]
    return f"speed-up of the mean latency, with 95% confidence interval: {'; '.join(each)}"


def tables(result: BenchResult) -> list[Table]:
    """Tables of exit layers, thresholds, tuning results and the exit histogram."""
    latency = ["mean ms", "p50", "p90", "p99"]
    score = [result.metric] if result.metric else []
    layers = [
        [str(layer), *_latency(point), *([f"{point.score:.4f}"] if score else [])]
        for layer, point in result.by_layer.items()
    ]
    points = [(f"{threshold:.4g}", point) for threshold, point in result.by_threshold.items()]
    if result.policy is not None:
        points.append((CALIBRATED, result.policy))
    full = result.full_depth.latency.mean
    thresholds = [
        [
            name,
            f"{point.average_exit_layer:.2f}",
            f"{1 - point.average_exit_layer / result.layers:.0%}",
            *_latency(point),
            f"{full / point.latency.mean:.2f}x",
            *([f"{point.score:.4f}"] if score else []),
        ]
        for name, point in points
    ]
    found = [Table(["exit layer", *latency, *score], layers)]
    several = len(layers) > 1
    if several:
        header = [f"{result.criterion} threshold", "average exit layer", "saved layers", *latency, "speed-up", *score]
        found.append(Table(header, thresholds))
    if result.tuned:
        rows = [[each.label, str(each.threads), f"{each.median_ms:.2f}"] for each in result.tuned]
        found.append(Table(["tuning: backend", "threads", "ms at full depth, without tokenization"], rows))
    if result.policy is not None and several:
        share = [f"{result.policy.histogram[layer - 1] / result.policy.queries:.1%}" for layer in result.by_layer]
        header = ["share that exits at layer", *map(str, result.by_layer)]
        found.append(Table(header, [[f"{CALIBRATED} policy", *share]]))
    return found


def _one_graph(result: BenchResult) -> str:
    """Latency of full depth as one graph (without exits), compared with the exits."""
    assert result.one_graph is not None
    one = result.one_graph.latency.mean
    exits = f"{result.full_depth.latency.mean:.2f} ms with {plural(len(result.by_layer), 'exit')}"
    if result.policy is None:
        return f"one graph (without exits): {one:.2f} ms per input; full depth takes {exits}"
    early = result.policy.latency.mean
    verdict = "the calibrated exits are faster" if early < one else "it is faster than the calibrated exits"
    return f"one graph (without exits): {one:.2f} ms per input; full depth takes {exits}; {verdict} ({early:.2f} ms)"


def _line(result: BenchResult) -> str:
    if result.line is None:
        return "no latency line: all latencies are of one depth"
    return (
        f"latency = {result.line.intercept_ms:.2f} ms + {result.line.ms_per_layer:.2f} ms x average exit layer,"
        f" R^2 = {result.line.r_squared:.4f}"
    )


def report_text(result: BenchResult) -> str:
    """The whole report, as Markdown."""
    lines = [
        headline(result),
        *([f"result: {result.validity}"] if result.validity else []),
        *filter(None, [fixed_comparison(result)]),
        *([speed_up_text(result)] if result.speed_ups else []),
        *(f"warning: {line}" for line in result.warnings),
        f"bundle {result.bundle} ({result.task}, {result.target} {result.precision}) on {result.device} by"
        f" {backend_label(result.backend, result.backend_options)}:"
        f" {', '.join(filter(None, (str(result.machine), result.machine.software)))},"
        f" {plural(result.threads, 'thread')}; {plural(result.inputs, 'input')}, {plural(result.rounds, 'round')},"
        f" batch 1; {result.boundary}",
        *([f"tuned: fastest with {result.tuned[0]}"] if result.tuned else []),
        *([_one_graph(result)] if result.one_graph is not None else []),
        *(markdown_table(*table) for table in tables(result)),
        f"{_line(result)}; exits within {result.self_check:.0e} of the checkpoint on this device",
        *telemetry_lines(result),
    ]
    return "\n\n".join(lines)


def write_result(result: BenchResult, folder: Path, report: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Writes bench.json, bench.md, queries.json and, if a plug-in can draw it, bench.png. Returns the files.

    ``report`` receives a line if the figure's package is missing.
    """
    plugins = [plugin for plugin in metadata.entry_points(group="berxit.figures") if plugin.name == "bench"]

    def draw(path: Path) -> None:  # The runtime does not depend on matplotlib.
        plugins[0].load()(result, path)

    return write_results(
        folder,
        "bench",
        to_json(result),
        report_text(result),
        figure=draw if plugins else None,
        more={} if result.records is None else {FILE: result.records.write},
        report=report,
    )


def _latency(point: Measured) -> list[str]:
    return [f"{value:.2f}" for value in dataclasses.astuple(point.latency)]
