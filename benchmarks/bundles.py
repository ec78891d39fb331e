"""Bundles of one model side by side: every exit's score, and milliseconds at full depth, interleaved in one run.

    python benchmarks/bundles.py BUNDLE BUNDLE... --data DATA [--split dev] [--threads 1] [--rounds 3]

The first bundle is what the others are compared with (int8 with fp32, say). Inputs go in one at a time, and every input
goes to all bundles before the next one does, so that what disturbs the machine disturbs all of them. Scores are of the
exits that all of them have.

The floor of int8: a quarter of fp32's bytes; on a CPU with VNNI or dot-product instructions a quarter of its time in
the matrix products, on AVX2 alone half of it; attention and norms as before.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
import numpy as np

from berxit.runtime import EarlyExitRunner
from berxit.runtime.console import progress_bar, run
from berxit.runtime.examples import find_split, read_examples
from berxit.runtime.metrics import METRICS
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH


@click.command()
@click.argument("bundles", type=PATH, nargs=-1, required=True)
@click.option("--data", type=PATH, required=True)
@click.option("--split", default="dev", show_default=True)
@click.option("--limit", type=int, help="The first N rows only.")
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=1, show_default=True, help="Times through the data.")
def command(bundles: tuple[Path, ...], data: Path, split: str, limit: int | None, threads: int, rounds: int) -> None:
    runners = [EarlyExitRunner.load(bundle, threads=threads) for bundle in bundles]
    model = runners[0].manifest.model
    path = find_split(data, split)
    examples = read_examples(path, model.text_columns, model.label_column, model.labels or None).head(limit)
    exits = tuple(sorted(set.intersection(*({*runner.backend.exits} for runner in runners))))
    outputs = np.zeros((len(bundles), len(examples), len(exits)))
    times: list[list[float]] = [[] for _ in bundles]
    with progress_bar("running")(rounds * len(examples)) as bar:
        for _ in range(rounds):
            for row, text in enumerate(examples.texts):
                for which, runner in enumerate(runners):
                    start = time.perf_counter()
                    batch = runner.tokenizer([text])
                    state = runner.backend.embed(batch)
                    for layer in runner.backend.exits:
                        state, logits, _ = runner.backend.layer(layer, state)
                        if layer in exits:
                            answer = logits[0, 0] if model.regression else logits[0].argmax()
                            outputs[which, row, exits.index(layer)] = answer
                    times[which].append(1e3 * (time.perf_counter() - start))
                bar.update(1)
    metric = METRICS[model.metric]
    scores = [[metric(layer, examples.labels) for layer in rows.T] for rows in outputs]
    size = [sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 2**20 for bundle in bundles]
    facts = [
        [
            bundle.name,
            f"{mib:.1f}",
            f"{statistics.median(mine):.2f}",
            f"{statistics.median(a / b for a, b in zip(times[0], mine, strict=True)):.2f}x",
        ]
        for bundle, mib, mine in zip(bundles, size, times, strict=True)
    ]
    click.echo(f"\n{len(examples)} rows of {path.name}, {rounds} rounds, batch 1, {threads} threads, full depth\n")
    click.echo(markdown_table(["bundle", "MiB", "median ms", "faster than the first"], facts))
    by_layer = [[str(layer), *(f"{mine[place]:.4f}" for mine in scores)] for place, layer in enumerate(exits)]
    click.echo("\n" + markdown_table([f"{model.metric} of exit", *(bundle.name for bundle in bundles)], by_layer))


if __name__ == "__main__":
    run(command)
