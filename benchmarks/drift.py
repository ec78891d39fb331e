"""Delay until a monitor reports a changed class mix, and rate of its false alarms.

    python benchmarks/drift.py CHECKPOINT [--runs 100] [--inputs 1000] --output drift

CHECKPOINT is calibrated; its stored pass is the population. The reference rows and the live inputs are independent
draws from it, with replacement. Live inputs have the same class mix, or the inverted one, in which the most frequent
class becomes the rarest. For balanced data, the mix of the reference falls linearly over the classes.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.drift import DriftDetector, Reference
from berxit.runtime.errors import InputError
from berxit.runtime.policies import ExitPolicy, certainties, exit_layers
from berxit.runtime.results import write_results
from berxit.train.calibration import read_policy, reference_of, stored_pass
from berxit.train.evaluation import Predictions

FALSE_ALARMS = 0.01
BALANCED = 1.5
"""Data is balanced if the most frequent class has at most this many times the rows of the rarest."""


def alarm(reference: Reference, policy: ExitPolicy, p: Predictions, rows: npt.NDArray[np.integer]) -> int | None:
    """Number of inputs until the alarm, for live inputs ``rows`` of a pass; None without an alarm."""
    of_exits = policy.at_exits(p.exit_layers.tolist())
    certainty = certainties(of_exits, p.logits, p.lte)
    taken = exit_layers(of_exits, certainty, p.logits)
    everything = np.arange(len(taken))
    layers = p.exit_layers[taken - 1].tolist()
    reached = certainty[everything, taken - 1].tolist()
    predicted = p.predicted()[everything, taken - 1].tolist()
    detector = DriftDetector(reference, FALSE_ALARMS)
    for row in rows.tolist():
        if detector.add(layers[row], reached[row], predicted[row]):
            break
    return detector.alarm


def class_mix(labels: npt.NDArray, classes: int) -> npt.NDArray[np.float64]:
    """(C,) the mix of the reference: that of the data, or one that falls linearly if the data is balanced."""
    counts = np.bincount(labels, minlength=classes)
    mix = counts if counts.max() > BALANCED * counts.min() else np.arange(classes, 0, -1)
    return mix / mix.sum()


def inverted(mix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(C,) the mix in which the k-th most frequent class has the share of the k-th rarest."""
    order = np.argsort(mix)
    found = np.empty_like(mix)
    found[order] = mix[order[::-1]]
    return found


def draw(p: Predictions, mix: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(count,) rows of a pass, drawn with replacement so that the labels follow ``mix``."""
    weights = (mix / np.maximum(np.bincount(p.labels, minlength=len(mix)), 1))[p.labels]
    return rng.choice(len(p.labels), count, p=weights / weights.sum())


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--runs", default=100, show_default=True, type=click.IntRange(min=1))
@click.option("--inputs", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(checkpoint: Path, runs: int, inputs: int, output: Path) -> None:
    calibrated = read_policy(checkpoint)
    if calibrated is None:
        raise InputError(f"{checkpoint} is not calibrated: run berxit-calibrate")
    predictions = stored_pass(checkpoint, calibrated)
    if predictions.regression:
        raise InputError(f"{checkpoint} is a regression model, which has no class mix")
    mix = class_mix(predictions.labels, predictions.logits.shape[2])
    delays: list[int | None] = []
    false_alarms = 0
    with progress_bar("drawing")(runs) as bar:
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            known = predictions.select_rows(draw(predictions, mix, len(predictions.labels), rng))
            reference, policy = reference_of(known, calibrated.policy), calibrated.policy
            same, other = (draw(predictions, each, inputs, rng) for each in (mix, inverted(mix)))
            false_alarms += alarm(reference, policy, predictions, same) is not None
            delays.append(alarm(reference, policy, predictions, other))
            bar.update(1)
    found = [delay for delay in delays if delay is not None]
    result = {
        "data": calibrated.calibration.data,
        "reference_rows": len(predictions.labels),
        "class_mix": mix.round(4).tolist(),
        "runs": runs,
        "inputs": inputs,
        "false_alarm_runs": false_alarms,
        "reported": len(found),
        "reported_within_200": sum(delay <= 200 for delay in found),
        "median_inputs_until_report": float(np.median(found)) if found else None,
        "largest_inputs_until_report": max(found, default=None),
    }
    text = "\n".join(f"{name:30} {value}" for name, value in result.items())
    write_results(output, "drift", result, text)
    click.echo(text)


if __name__ == "__main__":
    run(command)
