"""Time for computing the curves of a study, relative to the evaluation pass that they reuse. Goal: below 2%.

    python benchmarks/curve_cost.py CHECKPOINT --data DATA [--split dev] [--thresholds 200]

Runs the pass over all exits, after a warm-up. Then evaluates every criterion that the model supports at N thresholds,
seven times, interleaved. Prints the median time per criterion and its share of the pass.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click

from berxit.runtime.console import progress_bar, run
from berxit.runtime.errors import InputError
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH, silence_library_logs

ROUNDS = 7


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--data", type=PATH, required=True)
@click.option("--split", default="dev", show_default=True)
@click.option("--thresholds", default=200, show_default=True)
def command(checkpoint: Path, data: Path, split: str, thresholds: int) -> None:
    silence_library_logs()
    from berxit.runtime.policies import CRITERIA
    from berxit.train.checkpoint import load_checkpoint
    from berxit.train.evaluation import Predictions, predict
    from berxit.train.families import OperatingPoint, PolicySpec, family
    from berxit.train.tasks import task_of

    model, tokenizer = load_checkpoint(checkpoint)
    examples = task_of(model.config).read(data, split)
    predict(model, tokenizer, examples.head(32))
    start = time.perf_counter()
    stored = predict(model, tokenizer, examples, progress=progress_bar("evaluation pass"))
    whole = time.perf_counter() - start

    def curve(predictions: Predictions, criterion: str) -> list[OperatingPoint]:
        policies = family(predictions, PolicySpec(criterion))
        return policies.points(policies.candidates(thresholds))

    tried = {}
    for criterion in CRITERIA:
        try:
            tried[criterion] = curve(stored, criterion)
        except InputError:
            tried.pop(criterion, None)  # the model does not support this criterion
    seconds: dict[str, list[float]] = {criterion: [] for criterion in tried}
    for _ in range(ROUNDS):
        for criterion in tried:
            start = time.perf_counter()
            curve(stored, criterion)
            seconds[criterion].append(time.perf_counter() - start)
    rows = []
    for criterion, times in seconds.items():
        middle = statistics.median(times)
        rows.append([criterion, str(len(tried[criterion])), f"{1e3 * middle:.1f}", f"{middle / whole:.2%}"])
    click.echo(
        f"\nevaluation pass: {whole:.2f} s for {len(examples)} examples, {model.layers} layers, {stored.metric}\n"
    )
    click.echo(markdown_table(["criterion", "thresholds", "ms", "share of the pass"], rows))


if __name__ == "__main__":
    run(command)
