"""Noise of a bench on a quiet and on a busy machine. The limits in berxit.runtime.noise are based on this table.

    python benchmarks/noise.py BUNDLE [--threads 1] [--busy 0,1,2,4] [--runs 20] [--seconds 4] --output noise

Every run is one bench of BUNDLE on its golden inputs while N other processes use the CPU. Reports, for each number of
busy processes, the range of each statistic and the number of accepted runs.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path

import click
import numpy as np

from berxit.runtime.bench_result import BenchResult
from berxit.runtime.benchmark import bench
from berxit.runtime.results import write_results
from berxit.runtime.tables import Table, markdown_table


def compute() -> None:
    """Keeps one CPU and its caches busy until the process is terminated."""
    matrix = np.ones((256, 256), np.float32)
    while True:
        matrix = matrix @ matrix / 256


def runs_beside(bundle: Path, busy: int, runs: int, seconds: float, threads: int) -> list[BenchResult]:
    """Results of ``runs`` benches while ``busy`` other processes use the CPU."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=compute, daemon=True) for _ in range(busy)]
    for other in others:
        other.start()
    try:
        return [
            bench(bundle, backend="onnxruntime", threads=threads, thresholds=1, queries=1, seconds=seconds)
            for _ in range(runs)
        ]
    finally:
        for other in others:
            other.terminate()


def row(busy: int, results: list[BenchResult]) -> list[str]:
    measures = {
        "tail": [each.noise.tail for each in results if each.noise],
        "drift": [each.noise.drift for each in results if each.noise],
        "others": [each.noise.others or 0.0 for each in results if each.noise],
        "R^2": [each.line.r_squared for each in results if each.line],
        "full depth, p50 ms": [each.full_depth.latency.p50 for each in results],
    }
    ranges = [f"{min(values):.2f} to {max(values):.2f}" if values else "-" for values in measures.values()]
    accepted = sum(not each.warnings() for each in results)
    return [str(busy), *ranges, f"{accepted} of {len(results)}"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--threads", default=1, show_default=True)
@click.option("--busy", default="0,1,2,4", show_default=True, help="Numbers of busy processes.")
@click.option("--runs", default=20, show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="Duration of a run.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(bundle: Path, threads: int, busy: str, runs: int, seconds: float, output: Path) -> None:
    """Measure the noise of benches of BUNDLE while other processes are busy."""
    found = {count: runs_beside(bundle, count, runs, seconds, threads) for count in map(int, busy.split(","))}
    header = ["busy processes", "p90 / p50", "drift", "CPUs of others", "R^2", "full depth, p50 ms", "accepted"]
    text = markdown_table(*Table(header, [row(count, results) for count, results in found.items()]))
    data = {str(count): [dataclasses.asdict(each) for each in results] for count, results in found.items()}
    files = write_results(output, "noise", data, text)
    click.echo(f"{text}\n\nwritten: {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
