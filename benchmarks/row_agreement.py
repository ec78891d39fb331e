"""Does the device answer as the evaluation said? Row by row: same exit layer, same answer.

    python benchmarks/row_agreement.py CHECKPOINT BUNDLE --data DATA [--split dev]

Runs the checkpoint's one pass in PyTorch and the bundle's exit loop on the same rows, under the bundle's policy. A row
whose certainty lies within 1e-5 of a threshold may differ; it is named. Any other difference ends with status 1.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from berxit.runtime import BerxitError, EarlyExitRunner
from berxit.runtime.console import progress_bar, run
from berxit.runtime.policies import certainties, exit_layers
from berxit.toolkit.commands.options import PATH, hush_libraries

NEAR = 1e-5


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument("bundle", type=PATH)
@click.option("--data", type=PATH, required=True)
@click.option("--split", default="dev", show_default=True)
def command(checkpoint: Path, bundle: Path, data: Path, split: str) -> None:
    hush_libraries()
    from berxit.train.checkpoint import load_checkpoint
    from berxit.train.evaluation import predict
    from berxit.train.tasks import task_of

    model, tokenizer = load_checkpoint(checkpoint)
    examples = task_of(model.config).read(data, split)
    stored = predict(model, tokenizer, examples, progress=progress_bar("evaluating"))
    runner = EarlyExitRunner.load(bundle)
    policy, labels = runner.policy, runner.manifest.model.labels
    certainty = certainties(policy, stored.logits, stored.lte)
    layers = exit_layers(policy, certainty)
    answers = stored.answers()
    margins = np.abs(certainty[:, :-1] - np.array(policy.thresholds)).min(axis=1)
    near, different = [], []
    with progress_bar("running the bundle")(len(examples)) as bar:
        for row, text in enumerate(examples.texts):
            device = runner.answer([text], policy)[0]
            value = answers[row, layers[row] - 1]
            same_answer = abs(device.label - value) < 1e-4 if stored.regression else labels[value] == device.label
            if device.exit_layer != layers[row] or not same_answer:
                (near if margins[row] < NEAR else different).append(row)
            bar.update(1)
    agree = len(examples) - len(near) - len(different)
    click.echo(
        f"{agree} of {len(examples)} rows agree: same exit layer, same answer ({policy.criterion},"
        f" thresholds {min(policy.thresholds):.6g} to {max(policy.thresholds):.6g});"
        f" smallest distance of a certainty to its threshold {margins.min():.1e}"
    )
    if near:
        click.echo(f"rows that differ within {NEAR} of the threshold: {near}")
    if different:
        raise BerxitError(f"rows that differ: {different}. Export again; if it stays, the runtime is wrong")


if __name__ == "__main__":
    run(command)
