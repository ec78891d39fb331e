"""Lines of the bench's report about memory, start, throughput, energy, sensors and noise."""

from __future__ import annotations

from berxit import devices
from berxit.runtime.bench_result import CALIBRATED, FULL_DEPTH, BenchResult
from berxit.runtime.cold_start import ColdStart
from berxit.runtime.tables import markdown_table, plural
from berxit.runtime.validity import QUIETER, throttle_reasons

CLOCKS = "advice: the clocks of this Jetson change with the load. Run `sudo jetson_clocks` on it, then bench again"
NO_ENERGY = "no energy: this machine has no power sensor that this process may read"


def telemetry_lines(result: BenchResult) -> list[str]:
    """The lines, as Markdown. A sensor that the machine does not have is named as missing."""
    return [
        *([start_line(result.cold_start, result.size_mib)] if result.cold_start else []),
        *([_memory_by_layer(result.cold_start)] if result.cold_start else []),
        *([_memory(result)] if result.memory_mib is not None else []),
        *([_throughput(result)] if result.throughput else []),
        *machine_lines(result),
    ]


def machine_lines(result: BenchResult) -> list[str]:
    """The lines about energy, sensors and noise, without tables."""
    return [
        *([_energy(result)] if result.energy else [NO_ENERGY] if result.sensors else []),
        *([_sensors(result)] if result.sensors else []),
        *([_noise(result)] if result.noise else []),
        *([CLOCKS] if result.after.clocks_fixed is False else []),
    ]


def start_line(start: ColdStart, size_mib: float | None) -> str:
    """Start of a new process, in one line."""
    size = "" if size_mib is None else f"{size_mib:.1f} MiB on disk; "
    return (
        f"{size}new process: {start.import_s:.2f} s to import the runtime, {start.load_s:.2f} s to load the bundle,"
        f" {start.first_ms:.1f} ms for the first prediction (medians of {plural(start.starts, 'start')})"
    )


def _memory_by_layer(start: ColdStart) -> str:
    known = {layer: mib for layer, mib in start.memory_by_layer.items() if mib is not None}
    if not known or start.memory_before_mib is None:
        return "no memory by exit layer: this system does not report the peak memory of a process"
    how = "deeper layers not loaded" if start.lazy else "all layers loaded"
    table = markdown_table(["exit layer", *map(str, known)], [["peak MiB", *(f"{mib:.0f}" for mib in known.values())]])
    return (
        f"peak resident memory of a new process by the deepest layer reached, {how};"
        f" {start.memory_before_mib:.0f} MiB before the bundle is loaded:\n\n{table}"
    )


def _memory(result: BenchResult) -> str:
    return (
        f"{result.memory_mib:.0f} MiB resident after every input"
        f" {'under the calibrated policy' if result.policy else 'at full depth'},"
        f" {'only layers that an input reached are loaded (lazy)' if result.lazy else 'all layers are loaded'}"
    )


def _throughput(result: BenchResult) -> str:
    """Table of inputs per second: batch 1 from the mean latencies, larger batches as measured."""
    single = {FULL_DEPTH: result.full_depth, CALIBRATED: result.policy}
    sizes = sorted({each.batch_size for each in result.throughput})
    rows = []
    for name, point in single.items():
        found = {each.batch_size: each.inputs_per_second for each in result.throughput if each.point == name}
        if point is not None and found:
            rows.append([name, f"{1e3 / point.latency.mean:.0f}", *(f"{found[size]:.0f}" for size in sizes)])
    return "throughput, inputs per second:\n\n" + markdown_table(["", *(f"batch {size}" for size in (1, *sizes))], rows)


def _energy(result: BenchResult) -> str:
    titles = {sensor.name: sensor.title for sensor in devices.SENSORS}
    points = []
    for name, energy in result.energy.items():
        parts = [f"{titles.get(sensor, sensor)} {part:.3g} mJ" for sensor, part in energy.sensors.items()]
        detail = f": {', '.join(parts)}" if len(parts) > 1 else ""
        points.append(f"{energy.millijoules:.3g} mJ {name} ({energy.watts:.3g} W{detail})")
    return f"energy per input, idle power included: {', '.join(points)}"


def _sensors(result: BenchResult) -> str:
    """Means of the sensors during the measurement, and the names of those that the machine does not have."""
    found, missing = [], []
    for sensor in devices.SENSORS:
        sampled = result.sensors.get(sensor.name)
        if sampled is None:
            missing.append(sensor.title)
        elif sensor.name == "throttled":
            found.append(f"throttled: {throttle_reasons(sampled)}" if sampled.highest > 0 else "not throttled")
        else:
            parts = [f"{name} {value:.3g}" for name, value in sampled.channels.items()]
            text = f"{sensor.title} {sampled.mean:.4g} {sampled.unit} ({sampled.lowest:.4g} to {sampled.highest:.4g})"
            found.append(text + (f", of which {', '.join(parts)}" if len(parts) > 1 else ""))
    if result.after.power_mode:
        found.append(f"power mode {result.after.power_mode}")
    if missing:
        found.append(f"no sensor for {', '.join(missing)}")
    return f"during the measurement: {'; '.join(found)}"


def _noise(result: BenchResult) -> str:
    problems = result.noise_problems()
    if not problems:
        return f"noise: {result.noise}"
    return f"warning: noisy measurement: {'; '.join(problems)}. {QUIETER}"
