"""Share of met deadlines, exit layers reached in time, and time of ``import runtime``.

    python benchmarks/deadline.py BUNDLE [--data DATA] [--threads 2] [--calls 1000] --output deadline

Measures the 99th percentile of the first exit's latency on the inputs. Then runs every input with deadlines of 1, 1.5,
2 and 4 times that percentile, interleaved, under a full-depth policy, so that only the deadline causes early exits. The
first exit without a deadline is interleaved with them: calls that exceed its own 99th percentile cannot be in time with
any policy. The latency is that of the call of ``predict``. The import is measured in new processes. For details, see
benchmarks/README.md.
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click
import numpy as np

from berxit import devices
from berxit.runtime import EarlyExitRunner
from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.examples import find_split, read_examples_for
from berxit.runtime.golden import read_golden
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table, plural
from berxit.runtime.tokenization import Text

FACTORS = (1.0, 1.5, 2.0, 4.0)
"""Deadlines, as multiples of the 99th percentile of the first exit."""
MET = 0.99
"""Required share of met deadlines."""
IMPORT_S = 0.25
"""Maximum time of ``import runtime``, in seconds."""
HEAVY = ("torch", "transformers", "onnx")
IMPORT = f"""
import json, sys, time
start = time.perf_counter()
import runtime
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted(set({HEAVY!r}) & set(sys.modules))]))
"""


@dataclass(frozen=True)
class Kept:
    """Results of the calls with one deadline."""

    deadline: str
    deadline_ms: float
    met: float
    """Share of the calls that ended in time."""
    average_exit_layer: float
    p50_ms: float
    p99_ms: float
    holds: bool | None
    """True if the share is at least MET; None without a requirement."""


@dataclass(frozen=True)
class Import:
    """Times of ``import runtime`` in new processes."""

    seconds: tuple[float, ...]
    heavy: tuple[str, ...]
    """Imported packages of HEAVY, which ``runtime`` must not import."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def holds(self) -> bool:
        return self.median <= IMPORT_S and not self.heavy


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Inputs.  [default: the golden inputs of the bundle]")
@click.option("--split", default="dev", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Use the first N inputs only.")
@click.option("--backend", help="Backend that runs the segments.  [default: the first installed]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--calls", default=1000, show_default=True, type=click.IntRange(min=1), help="Calls per deadline.")
@click.option("--imports", default=11, show_default=True, type=click.IntRange(min=1), help="New processes.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the results.")
@click.option("--quiet", is_flag=True, help="Show no progress bar.")
@debug_option
def command(
    bundle: Path,
    data: Path | None,
    split: str,
    limit: int | None,
    backend: str | None,
    threads: int | None,
    calls: int,
    imports: int,
    output: Path,
    quiet: bool,
) -> None:
    """Measure how often BUNDLE meets deadlines on this machine."""
    runner = EarlyExitRunner.load(bundle, backend=backend, threads=threads)
    model = runner.manifest.model
    inputs: Sequence[Text] = read_golden(bundle, runner.manifest).inputs
    if data is not None:
        path = find_split(data, split)
        inputs = read_examples_for(model, path).head(limit).texts
    before = devices.read_sensors()
    imported = time_imports(imports)
    with progress_bar("measuring", quiet)(calls * (len(FACTORS) + 2)) as bar:
        for text in inputs:  # warm-up: the first run of each input length takes longer
            call(runner, text, 1e6)
        first = []
        for i in range(calls):
            first.append(call(runner, inputs[i % len(inputs)], None)[0])
            bar.update(1)
        p99 = float(np.percentile(first, 99))
        kept = measure(runner, inputs, p99, calls, bar.update)
    conditions = {
        "bundle": str(bundle),
        "backend": runner.backend.name,
        "threads": runner.backend.threads,
        "layers": runner.backend.layers,
        "inputs": len(inputs),
        "calls": calls,
        "machine": dataclasses.asdict(devices.this_machine()),
        "versions": {name: metadata.version(name) for name in ("berxit", "numpy", "tokenizers")},
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(devices.read_sensors()),
    }
    text = "\n\n".join(
        [
            f"{bundle} by {runner.backend.name}; {devices.this_machine()}, {plural(runner.backend.threads, 'thread')};"
            f" {plural(len(inputs), 'input')}, {calls} calls each, interleaved;"
            f" the first exit's p50 is {np.median(first):.2f} ms, its p99 {p99:.2f} ms",
            _table(kept),
            f"import runtime: {1e3 * imported.median:.0f} ms, median of {len(imported.seconds)} new processes"
            f" (requirement {'met' if imported.holds else 'not met'}: <= {1e3 * IMPORT_S:.0f} ms, without"
            f" {', '.join(HEAVY)}{'; it imports ' + ', '.join(imported.heavy) if imported.heavy else ''})",
        ]
    )
    measured = {
        "first_exit_p99_ms": p99,
        "deadlines": [dataclasses.asdict(each) for each in kept],
        "import": {**dataclasses.asdict(imported), "median": imported.median, "holds": imported.holds},
    }
    files = write_results(output, "deadline", {**conditions, **measured}, text)
    click.echo(f"\n{text}\n\nwritten: {', '.join(map(str, files))}")


def measure(
    runner: EarlyExitRunner, inputs: Sequence[Text], p99: float, calls: int, advance: Callable[[int], None]
) -> list[Kept]:
    """Measures the first exit without a deadline and every deadline: ``calls`` calls each, interleaved in a shuffled
    order."""
    order = random.Random(0)
    ways = {"the first exit, no deadline": None, **{f"{factor:g} x p99": factor * p99 for factor in FACTORS}}
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    for i in range(calls):
        for name in order.sample(list(ways), len(ways)):
            found[name].append(call(runner, inputs[i % len(inputs)], ways[name]))
        advance(len(ways))
    return [
        _kept(name, ways[name] or p99, calls_of, promised=ways[name] is not None) for name, calls_of in found.items()
    ]


def call(runner: EarlyExitRunner, text: Text, deadline_ms: float | None) -> tuple[float, int]:
    """Latency of ``predict`` in milliseconds, and the exit layer; without a deadline, of an exit at the first exit."""
    parts = text if isinstance(text, tuple) else (text,)
    depth = runner.backend.exits[0] if deadline_ms is None else runner.backend.layers
    runner.policy = runner.policy.at_depth(depth)
    start = time.perf_counter()
    answer = runner.predict(*parts, deadline_ms=deadline_ms)
    return 1e3 * (time.perf_counter() - start), answer.exit_layer


def time_imports(processes: int) -> Import:
    found = []
    for _ in range(processes):
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    heavy = {name for _, names in found for name in names}
    return Import(tuple(seconds for seconds, _ in found), tuple(sorted(heavy)))


def _kept(deadline: str, milliseconds: float, calls: Sequence[tuple[float, int]], promised: bool) -> Kept:
    taken, layers = (np.array(column) for column in zip(*calls, strict=True))
    met = float((taken <= milliseconds).mean())
    p50, p99 = np.percentile(taken, [50, 99])
    holds = met >= MET if promised else None
    return Kept(deadline, milliseconds, met, float(layers.mean()), float(p50), float(p99), holds)


def _table(kept: Sequence[Kept]) -> str:
    holds = {True: "yes", False: "no", None: ""}
    return markdown_table(
        ["deadline", "ms", "met", "average exit layer", "p50 ms", "p99 ms", f"{MET:.0%} met"],
        [
            [
                each.deadline,
                f"{each.deadline_ms:.2f}",
                f"{each.met:.1%}",
                f"{each.average_exit_layer:.2f}",
                f"{each.p50_ms:.2f}",
                f"{each.p99_ms:.2f}",
                holds[each.holds],
            ]
            for each in kept
        ],
    )


if __name__ == "__main__":
    run(command)
