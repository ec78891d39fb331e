"""Latency of bundles at full depth, relative to the first, by number of tokens.

    python benchmarks/full_depth.py BUNDLE OTHER... --tokens 16 --tokens 512 --output full-depth

One input of random token ids, without padding, passes all segments and exits of every bundle. Every bundle is opened
twice, in the given order and in reverse, because the position of the weights in memory changes the latency by several
percent. The passes alternate, and the ratio is the median over the rounds. Use it to compare precisions, or two
versions of the exporters (export the same checkpoint with each).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click
import numpy as np

from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import read_manifest
from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import InputError
from berxit.runtime.loop import exit_loop
from berxit.runtime.policies import ExitPolicy
from berxit.runtime.progress import Bar
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import TokenBatch
from berxit.toolkit.commands.options import PATH

WARM_UP = 10


@click.command(help=__doc__)
@click.argument("bundles", type=PATH, nargs=-1, required=True)
@click.option("--tokens", "lengths", type=click.IntRange(1), multiple=True, default=(16, 128, 512), show_default=True)
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="Duration for each number of tokens.")
@click.option("--output", type=PATH, required=True)
@debug_option
def main(
    bundles: Sequence[Path], lengths: Sequence[int], backend: str, threads: int, seconds: float, output: Path
) -> None:
    loaded = [FullDepth(bundle, backend, threads) for bundle in (*bundles, *reversed(bundles))]
    records, rows = [], []
    with progress_bar(f"{len(bundles)} bundles", False)(len(lengths)) as bar:
        for tokens in lengths:
            records.append({"tokens": tokens, **compare(loaded, tokens, seconds, bar)})
    for record in records:
        cells = (f"{ms:.2f} ({ratio:.3f})" for ms, ratio in zip(record["ms"], record["ratios"], strict=True))
        rows.append([str(record["tokens"]), *cells])
    text = markdown_table(["tokens", *(f"{bundle.name}, ms (ratio)" for bundle in bundles)], rows)
    click.echo(text)
    write_results(output, "full-depth", {"bundles": [bundle.name for bundle in bundles], "records": records}, text)


class FullDepth:
    """A bundle whose inputs pass all layers."""

    def __init__(self, bundle: Path, backend: str, threads: int) -> None:
        manifest = read_manifest(bundle)
        self.name, self.max_length = bundle.name, manifest.model.max_length
        self.backend = open_backend(bundle, manifest, threads, backend=backend)
        self.policy = ExitPolicy.full_depth(self.backend.layers).at_depth(self.backend.layers)

    def run(self, batch: TokenBatch) -> None:
        for _ in exit_loop(self.backend, batch, self.policy):
            pass


def compare(loaded: Sequence[FullDepth], tokens: int, seconds: float, bar: Bar) -> dict[str, list[float]]:
    """Milliseconds of every bundle, which occurs a second time in the mirrored place, and the ratios to the first
    bundle. Raises InputError for more tokens than a bundle accepts."""
    for each in loaded:
        if tokens > each.max_length:
            raise InputError(f"{each.name} accepts {each.max_length} tokens: choose --tokens {each.max_length} or less")
    ids = np.random.default_rng(0).integers(1000, 20000, (1, tokens)).tolist()
    batch = TokenBatch.pad(ids, [[0] * tokens], 0)
    for each in [*loaded] * WARM_UP:
        each.run(batch)
    times: list[list[float]] = [[] for _ in loaded]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for place in range(len(loaded))[:: 1 if len(times[0]) % 2 else -1]:
            start = time.perf_counter()
            loaded[place].run(batch)
            times[place].append(time.perf_counter() - start)
    bar.update(1)
    both = [
        [(one + other) / 2 for one, other in zip(*pair, strict=True)]
        for pair in zip(times, reversed(times), strict=True)
    ]
    times = both[: len(loaded) // 2]
    return {
        "ms": [1e3 * median(each) for each in times],
        "ratios": [median(own / first for own, first in zip(each, times[0], strict=True)) for each in times],
        "rounds": [len(each) for each in times],
    }


if __name__ == "__main__":
    run(main)
