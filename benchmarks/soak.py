"""Long runs of one runner: is its memory flat over 100,000 predictions, and do 8 threads predict the same?

    python benchmarks/soak.py BUNDLE --data FILE [--backend onnxruntime] [--predictions 100000] --output soak

Texts of all lengths are predicted one by one and in batches, and every tenth is streamed and abandoned half-way. Then 8
threads predict all texts at once; each prediction must equal the first one in label, scores and exit layer.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.examples import read_examples_for
from berxit.runtime.results import write_results
from berxit.runtime.runner import EarlyExitRunner

THREADS = 8
READINGS = 100
"""Number of memory readings."""
FLAT_MB = 4.0
"""Growth from the first quarter of the run to its end, in MB, that counts as flat."""


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option("--predictions", default=100_000, show_default=True, type=click.IntRange(min=READINGS))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(bundle: Path, data: Path, backend: str, predictions: int, output: Path) -> None:
    runner = EarlyExitRunner.load(bundle, backend=backend, threads=1)
    texts = read_examples_for(runner.manifest.model, data).texts
    expected = [(p.label, p.exit_layer, p.scores) for text in texts for p in runner.answer([text], runner.policy)]
    memory, files = [resident_mb()], [descriptors()]
    done, row = 0, 0
    with progress_bar("predicting")(predictions) as bar:
        for number in range(1, READINGS + 1):
            while done < number * predictions // READINGS:
                batch = [texts[(row + place) % len(texts)] for place in range(1 if row % 3 else 8)]
                runner.answer(batch, runner.policy)
                if row % 10 == 0:
                    stream = runner.stream(*([batch[0]] if isinstance(batch[0], str) else batch[0]))
                    next(stream)
                    del stream
                row += 1
                done += len(batch)
                bar.update(len(batch))
            memory.append(resident_mb())
            files.append(descriptors())

    def ask(_: int) -> int:
        found = [(p.label, p.exit_layer, p.scores) for text in texts for p in runner.answer([text], runner.policy)]
        return sum(a != b for a, b in zip(found, expected, strict=True))

    with ThreadPoolExecutor(THREADS) as pool:
        differing = sum(pool.map(ask, range(THREADS)))
    growth = float(np.mean(memory[-10:]) - np.mean(memory[READINGS // 4 : READINGS // 4 + 10]))
    result = {
        "backend": backend,
        "predictions": done,
        "memory_mb": memory,
        "descriptors": files,
        "growth_mb": growth,
        "threads": THREADS,
        "threaded_predictions": THREADS * len(texts),
        "differing": differing,
    }
    text = (
        f"{backend}: {done:,} predictions; memory {memory[READINGS // 4]:.1f} MB after a quarter, {memory[-1]:.1f} MB"
        f" at the end (growth {growth:+.2f} MB); {files[1]} to {files[-1]} descriptors; {THREADS} threads:"
        f" {differing} of {THREADS * len(texts):,} predictions differ"
    )

    def draw(path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot(np.linspace(0, done, len(memory)), memory)
        axes.set(xlabel="predictions", ylabel="resident memory, MB", ylim=(0, 1.2 * max(memory)))
        axes.set_title(f"Memory of one runner, {backend}")
        figure.savefig(path, dpi=120)

    write_results(output, "soak", result, text, figure=draw)
    click.echo(text)
    if growth > FLAT_MB or files[-1] > files[1] or differing:
        raise BerxitError(f"memory, descriptors or predictions changed: see {output}")


if __name__ == "__main__":
    run(command)
