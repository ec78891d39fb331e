"""Comparison of two bench.json files: latency, score and memory, and whether their conditions are the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import read_json
from berxit.runtime.tables import markdown_table

CONDITIONS = ("task", "target", "backend", "precision", "device", "threads", "inputs", "layers", "criterion")
"""Keys of bench.json that must be equal for two latencies to be comparable."""


def bench_file(path: Path) -> Path | None:
    """The bench.json that ``path`` is or contains; None for anything else."""
    file = path / "bench.json" if path.is_dir() else path
    return file if file.name.endswith(".json") and file.is_file() else None


@dataclass(frozen=True)
class BenchComparison:
    """Values of two benches, side by side."""

    names: tuple[str, str]
    conditions: dict[str, tuple[str, str]]
    """The conditions in which they differ."""
    latencies: dict[str, tuple[float, float]]
    """Name -> mean milliseconds per input."""
    scores: dict[str, tuple[float, float]]
    other: dict[str, tuple[float, float]]

    def regressions(self, percent: float) -> list[str]:
        """Values that are worse in the second bench by more than ``percent``: mean latency, score."""
        slower = {name: 100 * (b / a - 1) for name, (a, b) in self.latencies.items()}
        worse = {name: 100 * (1 - b / a) for name, (a, b) in self.scores.items() if a > 0}
        return [f"latency at {name} is {x:.1f}% higher" for name, x in slower.items() if x > percent] + [
            f"score at {name} is {x:.2f}% lower" for name, x in worse.items() if x > percent
        ]

    def text(self) -> str:
        """The comparison as Markdown."""
        rows = [
            *([f"mean ms, {name}", f"{a:.3f}", f"{b:.3f}", f"{b / a:.3f}x"] for name, (a, b) in self.latencies.items()),
            *([f"score, {name}", f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"] for name, (a, b) in self.scores.items()),
            *([name, f"{a:.2f}", f"{b:.2f}", f"{b / a:.3f}x" if a else "-"] for name, (a, b) in self.other.items()),
        ]
        blocks = [markdown_table(["", *self.names, "second / first"], rows)]
        blocks += [
            f"conditions differ: {name} is {a} in {self.names[0]} and {b} in {self.names[1]}"
            for name, (a, b) in self.conditions.items()
        ]
        return "\n\n".join(blocks)


def compare_benches(first: Path, second: Path) -> BenchComparison:
    """Compares two files that berxit-bench wrote. Raises BerxitError for a file that is not one, InputError for benches
    with different metrics."""
    a, b = (_read(path) for path in (first, second))
    if a["metric"] and b["metric"] and a["metric"] != b["metric"]:
        raise InputError(
            f"{first} has the metric {a['metric']}, {second} has {b['metric']}: compare benches of one task"
        )
    names = (str(first), str(second))
    latencies = {
        f"layer {layer}": (a["by_layer"][layer], b["by_layer"][layer])
        for layer in a["by_layer"]
        if layer in b["by_layer"]
    }
    if a["policy"] and b["policy"]:
        latencies["the bundle's policy"] = (a["policy"], b["policy"])
    scores = {
        name: (one["score"], two["score"])
        for name, (one, two) in latencies.items()
        if one["score"] is not None and two["score"] is not None
    }
    other = {}
    if a["policy"] and b["policy"]:
        other["average exit layer"] = (a["policy"]["average_exit_layer"], b["policy"]["average_exit_layer"])
    if a["memory_mib"] and b["memory_mib"]:
        other["resident MiB"] = (a["memory_mib"], b["memory_mib"])
    energies = [data.get("energy", {}) for data in (a, b)]  # Absent in the results of an older version.
    for name in (name for name in energies[0] if name in energies[1]):
        other[f"mJ per input, {name}"] = (energies[0][name]["millijoules"], energies[1][name]["millijoules"])
    conditions = {key: (str(a[key]), str(b[key])) for key in CONDITIONS if a[key] != b[key]}
    modes = [str(data.get("after", {}).get("power_mode")) for data in (a, b)]
    if modes[0] != modes[1]:
        conditions["power mode"] = (modes[0], modes[1])
    return BenchComparison(
        names,
        conditions,
        {name: (one["latency"]["mean"], two["latency"]["mean"]) for name, (one, two) in latencies.items()},
        scores,
        other,
    )


def _read(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if missing := {*CONDITIONS, "by_layer", "policy", "memory_mib"} - set(data):
        raise BerxitError(f"{path} is not a bench.json: it has no '{min(missing)}'. Run berxit-bench again")
    return data
