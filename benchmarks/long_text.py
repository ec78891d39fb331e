"""Latency and peak resident memory of predictions for long texts, and overrun of their deadlines.

    python benchmarks/long_text.py BUNDLE [--deadline-ms 50]

Every text is predicted in a new process: once without a deadline, five times with one, and five more times while
another thread predicts a short text with the same deadline. If the bundle is for pairs, both texts of a pair are equal.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import click

from berxit.runtime import EarlyExitRunner
from berxit.runtime.console import debug_option, run
from berxit.runtime.tables import markdown_table

SIZES = (100, 10_000, 100_000, 1_000_000)
UNITS = {
    "words": "the quick brown fox jumps over the lazy dog ",
    "one word": "ab",
    "no spaces": "日本語と中文",
    "blanks": " ",
}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--deadline-ms", default=50.0, show_default=True, type=float)
@click.option("--size", type=int, hidden=True)
@click.option("--unit", hidden=True)
@debug_option
def command(bundle: Path, deadline_ms: float, size: int | None, unit: str | None) -> None:
    """Measure long texts on BUNDLE."""
    if size is not None and unit is not None:
        click.echo(json.dumps(measure(bundle, deadline_ms, size, unit)))
        return
    rows = []
    for name in UNITS:
        for characters in SIZES:
            arguments = [str(bundle), "--deadline-ms", str(deadline_ms), "--size", str(characters), "--unit", name]
            done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
            cells = json.loads(done.stdout) if done.returncode == 0 else [f"failed ({done.returncode})"] + [""] * 3
            rows.append([name, f"{characters:,}", *cells])
            click.echo(f"{name}, {characters:,} characters", err=True)
    columns = ["text", "characters", "ms", "peak MiB", "largest overrun, ms", "largest overrun of another thread, ms"]
    click.echo(markdown_table(columns, rows))


def measure(bundle: Path, deadline_ms: float, size: int, unit: str) -> list[str]:
    """Latency in milliseconds and peak resident memory in MiB without a deadline; largest overrun of the deadline in
    milliseconds, for the long text and for a short text in another thread."""
    runner = EarlyExitRunner.load(bundle)
    pair = len(runner.manifest.model.text_columns) == 2

    def predict(text: str, deadline_ms: float | None = None) -> float:
        start = time.perf_counter()
        runner.predict(text, text if pair else None, deadline_ms=deadline_ms)
        return 1e3 * (time.perf_counter() - start)

    text = "x " + (UNITS[unit] * (size // len(UNITS[unit])))[: size - 4] + " x"
    for _ in range(3):
        predict("a short text")
    milliseconds = predict(text)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    overrun = max(predict(text, deadline_ms) for _ in range(5)) - deadline_ms
    done = threading.Event()

    def long_texts() -> None:
        for _ in range(5):
            predict(text, deadline_ms)
        done.set()

    thread = threading.Thread(target=long_texts)
    thread.start()
    others = [0.0]
    while not done.is_set():
        others.append(predict("a short text", deadline_ms) - deadline_ms)
    thread.join()
    return [f"{milliseconds:.1f}", f"{peak:.0f}", f"{max(0.0, overrun):.1f}", f"{max(0.0, *others):.1f}"]


if __name__ == "__main__":
    run(command)
