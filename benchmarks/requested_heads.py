"""Exits of a model with named heads, by the heads that a caller requests.

    python benchmarks/requested_heads.py CHECKPOINT --data DATA [--split test] --output FOLDER

Runs the calibrated checkpoint over a split once. Then computes from the outputs of all exits where each text exits if
all heads are requested, and if one is; with the accuracy of the requested heads there and at full depth. Writes
requested.json and requested.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from berxit.runtime.console import run
from berxit.runtime.errors import InputError
from berxit.runtime.heads import classes_in, heads_of
from berxit.runtime.policies import ExitPolicy, certainties, exit_layers
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH, silence_library_logs


@click.command(help=__doc__)
@click.argument("checkpoint", type=PATH)
@click.option("--data", type=PATH, required=True)
@click.option("--split", default="test", show_default=True)
@click.option("--output", type=PATH, required=True)
def command(checkpoint: Path, data: Path, split: str, output: Path) -> None:
    silence_library_logs()
    from berxit.train.calibration import read_policy
    from berxit.train.checkpoint import load_checkpoint
    from berxit.train.evaluation import best_device, predict
    from berxit.train.tasks import task_of

    model, tokenizer = load_checkpoint(checkpoint, best_device())
    calibrated = read_policy(checkpoint)
    if calibrated is None or model.config.kind != "heads":
        raise InputError(f"{checkpoint} has no named heads or no policy: train with --head, and run berxit-calibrate")
    stored = predict(model, tokenizer, task_of(model.config).read(data, split))
    names = [head.name for head in heads_of(model.config.labels)]
    every = list(range(len(names)))
    found = {
        "+".join(names[head] for head in chosen): outcome(stored, calibrated.policy, chosen, names)
        for chosen in ([every] if len(every) > 1 else []) + [[head] for head in every]
    }
    rows = [
        [name, f"{each['average_exit_layer']:.2f}", f"{each['saved_layers']:.1%}", f"{score:.4f}", f"{full:.4f}", head]
        for name, each in found.items()
        for head, (score, full) in each["accuracy"].items()
    ]
    columns = ["requested", "average exit layer", "saved layers", "accuracy", "at full depth", "of head"]
    text = markdown_table(columns, rows)
    click.echo(text)
    write_results(output, "requested", {"rows": len(stored.labels), "requested": found}, text)


def outcome(stored: Any, policy: ExitPolicy, chosen: list[int], names: list[str]) -> dict[str, Any]:
    """Exits and accuracies if the heads with the numbers ``chosen`` are requested, from a stored pass."""
    part = replace(stored, logits=stored.logits[:, :, chosen])
    taken = exit_layers(policy, certainties(policy, part.logits, part.lte), part.logits)
    classes, labels = stored.logits.argmax(axis=-1), classes_in(stored.labels, len(names))
    accuracy = {}
    for head in chosen:
        right = classes[:, :, head] == labels[:, head, None]
        accuracy[names[head]] = [float(right[np.arange(len(right)), taken - 1].mean()), float(right[:, -1].mean())]
    average = float(taken.mean())
    scores = np.mean(list(accuracy.values()), axis=0)
    return {
        "average_exit_layer": average,
        "saved_layers": 1 - average / stored.layers,
        "accuracy": accuracy,
        "score": float(scores[0]),
        "full_depth_score": float(scores[1]),
    }


if __name__ == "__main__":
    run(command)
