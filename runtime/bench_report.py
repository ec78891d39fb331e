"""The bench's report: headline, tables, Markdown, and the result files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from berxit import devices
from berxit.runtime.backend_options import backend_label
from berxit.runtime.benchmark import CALIBRATED, BenchResult
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
    enough = [
        (layer, point)
        for layer, point in result.by_layer.items()
        if point.score is not None and point.score >= policy.score
    ]
    if not enough:
        return "adaptive exits pay here: no single exit layer has the policy's score"
    layer, fixed = min(enough, key=lambda each: each[1].latency.mean)
    took = policy.latency.mean
    verdict = "pay" if took < fixed.latency.mean else "do not pay"
    return (
        f"adaptive exits {verdict} here: the fastest single exit layer with at least the policy's score is {layer},"
        f" with {result.metric} {fixed.score:.4f} in {fixed.latency.mean:.2f} ms; the policy takes {took:.2f} ms"
    )


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


def _memory(result: BenchResult) -> str:
    return (
        f"{result.memory_mib:.0f} MiB resident after every input"
        f" {'under the calibrated policy' if result.policy else 'at full depth'},"
        f" {'only layers that an input reached are loaded (lazy)' if result.lazy else 'all layers are loaded'}"
    )


def _line(result: BenchResult) -> str:
    if result.line is None:
        return "no latency line: all latencies are of one depth"
    return (
        f"latency = {result.line.intercept_ms:.2f} ms + {result.line.ms_per_layer:.2f} ms x average exit layer,"
        f" R^2 = {result.line.r_squared:.4f}"
    )


def _sensors(result: BenchResult) -> str:
    """Means of the sensors during the measurement, and the names of those that the machine does not have."""
    found, missing = [], []
    for sensor in devices.SENSORS:
        sampled = result.sensors.get(sensor.name)
        if sampled is None:
            missing.append(sensor.title)
            continue
        parts = [f"{name} {value:.3g}" for name, value in sampled.channels.items()]
        text = f"{sensor.title} {sampled.mean:.4g} {sampled.unit} ({sampled.lowest:.4g} to {sampled.highest:.4g})"
        found.append(text + (f", of which {', '.join(parts)}" if len(parts) > 1 else ""))
    if result.after.power_mode:
        found.append(f"power mode {result.after.power_mode}")
    if missing:
        found.append(f"no sensor for {', '.join(missing)}")
    return f"during the measurement: {'; '.join(found)}"


def _energy(result: BenchResult) -> str:
    points = [f"{energy.millijoules:.3g} mJ {name} ({energy.watts:.3g} W)" for name, energy in result.energy.items()]
    return f"energy per input, idle power included: {', '.join(points)}"


CLOCKS = "advice: the clocks of this Jetson change with the load. Run `sudo jetson_clocks` on it, then bench again"


def _noise(result: BenchResult) -> str:
    problems = result.noise_problems()
    if not problems:
        return f"noise: {result.noise}"
    return f"warning: noisy measurement: {'; '.join(problems)}. Bench again when no other process is busy"


def report_text(result: BenchResult) -> str:
    """The whole report, as Markdown."""
    lines = [
        headline(result),
        *filter(None, [fixed_comparison(result)]),
        *(f"warning: {line}" for line in result.warnings),
        f"bundle {result.bundle} ({result.task}, {result.target} {result.precision}) on {result.device} by"
        f" {backend_label(result.backend, result.backend_options)}:"
        f" {', '.join(filter(None, (str(result.machine), result.machine.software)))},"
        f" {plural(result.threads, 'thread')}; {plural(result.inputs, 'input')}, {plural(result.rounds, 'round')},"
        f" batch 1; {result.boundary}",
        *([f"tuned: fastest with {result.tuned[0]}"] if result.tuned else []),
        *([_one_graph(result)] if result.one_graph is not None else []),
        *([_memory(result)] if result.memory_mib is not None else []),
        *(markdown_table(*table) for table in tables(result)),
        f"{_line(result)}; exits within {result.self_check:.0e} of the checkpoint on this device",
        *([_energy(result)] if result.energy else []),
        *([_sensors(result)] if result.sensors else []),
        *([_noise(result)] if result.noise else []),
        *([CLOCKS] if result.after.clocks_fixed is False else []),
    ]
    return "\n\n".join(lines)


def write_result(result: BenchResult, folder: Path, report: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Writes bench.json, bench.md and, if a plug-in can draw it, bench.png. Returns the files.

    ``report`` receives a line if the figure's package is missing.
    """
    plugins = [plugin for plugin in metadata.entry_points(group="berxit.figures") if plugin.name == "bench"]

    def draw(path: Path) -> None:  # The runtime does not depend on matplotlib.
        plugins[0].load()(result, path)

    return write_results(
        folder,
        "bench",
        dataclasses.asdict(result),
        report_text(result),
        figure=draw if plugins else None,
        report=report,
    )


def _latency(point: Measured) -> list[str]:
    return [f"{value:.2f}" for value in dataclasses.astuple(point.latency)]
