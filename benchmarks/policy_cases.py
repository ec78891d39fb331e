"""Random policies on random outputs: the exit loop and the functions on arrays must choose the same exits.

    python benchmarks/policy_cases.py [--cases 1000000] --output policy-cases

A case is one row under one policy. Criterion, thresholds (also per class, and some equal to a certainty), temperatures,
patience, exits that are switched off, and the scale of the logits are drawn. The exit loop decides layer by layer, as
on a device; ``exit_layers`` decides on whole arrays, as calibration does.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.loop import Backend, exit_loop
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, exit_layers
from berxit.runtime.policies.learned import feature_names
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import TokenBatch

ROWS = 500
"""Rows per policy."""


class Stored(Backend):
    """Backend that returns stored outputs: logits (B, n, C), lte (B, n)."""

    name = "stored"

    def __init__(self, logits: npt.NDArray, lte: npt.NDArray) -> None:
        self._logits, self._lte = logits, lte
        self.layers = logits.shape[1]
        self.exits = tuple(range(1, self.layers + 1))

    def embed(self, batch: TokenBatch) -> npt.NDArray:
        return np.arange(len(batch))

    def layer(self, layer: int, state: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
        return state, self._logits[state, layer - 1], self._lte[state, layer - 1]

    def keep(self, state: npt.NDArray, rows: npt.NDArray) -> npt.NDArray:
        return state[rows]


def draw(rng: np.random.Generator) -> tuple[ExitPolicy, npt.NDArray, npt.NDArray]:
    """A policy, logits (ROWS, n, C) and LTE certainties (ROWS, n)."""
    criterion = CRITERIA[rng.choice(sorted(CRITERIA))]
    layers = int(rng.integers(1, 13))
    outputs = int(rng.integers(1 if criterion.for_regression else 2, 12))
    scale = float(rng.choice([0.1, 1.0, 5.0, 1000.0]))
    logits = (scale * rng.normal(size=(ROWS, layers, outputs))).astype(np.float32)
    lte = rng.random((ROWS, layers)).astype(np.float32)
    weights = rng.normal(size=(layers - 1, len(feature_names(outputs)) + 1)).tolist() if criterion.fitted else []
    unset = ExitPolicy(
        criterion.name,
        (1.0,) * (layers - 1),
        temperatures=tuple(rng.choice([0.5, 1.0, 1.7], size=layers).tolist()),
        tolerance=scale,
        patience=1 if criterion.counts else int(rng.integers(1, layers + 1)),
        off=tuple((np.flatnonzero(rng.random(layers - 1) < 0.25) + 1).tolist()),
        weights=tuple(map(tuple, weights)),
    )
    measured = certainties(unset, logits, lte).astype(float)

    def threshold(layer: int) -> float:
        if criterion.counts:
            return float(rng.integers(1, layers + 1))
        return float(rng.choice(measured[:, layer - 1])) if rng.random() < 0.7 else float(rng.random())

    per_class = outputs > 1 and rng.random() < 0.5
    thresholds = tuple(
        tuple(threshold(layer) for _ in range(outputs)) if per_class else threshold(layer) for layer in range(1, layers)
    )
    return (
        ExitPolicy(
            unset.criterion,
            thresholds,
            unset.temperatures,
            unset.tolerance,
            unset.patience,
            unset.off,
            unset.weights,
        ),
        logits,
        lte,
    )


def differing_rows(policy: ExitPolicy, logits: npt.NDArray, lte: npt.NDArray) -> int:
    """The number of rows whose exit or certainty differs between the loop and the arrays."""
    measured = certainties(policy, logits, lte)
    expected = exit_layers(policy, measured, logits)
    found, sure = np.zeros(len(logits), dtype=int), np.zeros(len(logits))
    batch = TokenBatch.pad([[1, 2]] * len(logits), [[0, 0]] * len(logits), 0)
    for result in exit_loop(Stored(logits, lte), batch, policy):
        found[result.rows[result.exits]] = result.layer
        sure[result.rows[result.exits]] = result.certainty[result.exits]
    return int(((found != expected) | (sure != measured[np.arange(len(logits)), expected - 1])).sum())


@click.command(help=__doc__)
@click.option("--cases", default=1_000_000, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, type=int)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(cases: int, seed: int, output: Path) -> None:
    rng = np.random.default_rng(seed)
    tried: Counter[str] = Counter()
    differing: Counter[str] = Counter()
    count = -(-cases // ROWS)
    with progress_bar("policies")(count) as bar:
        for _ in range(count):
            policy, logits, lte = draw(rng)
            tried[policy.criterion] += len(logits)
            differing[policy.criterion] += differing_rows(policy, logits, lte)
            bar.update(1)
    rows = [[name, f"{tried[name]:,}", str(differing[name])] for name in sorted(tried)]
    text = markdown_table(["criterion", "cases", "differing"], rows)
    write_results(output, "policy-cases", {"cases": tried, "differing": differing, "seed": seed}, text)
    click.echo(text)
    if any(differing.values()):
        raise BerxitError(f"{sum(differing.values())} cases differ: see {output}")


if __name__ == "__main__":
    run(command)
