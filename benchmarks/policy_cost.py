"""The duration of an exit decision in the loop at batch size 1, for each criterion and policy.

    python benchmarks/policy_cost.py [--layers 12] --output policy-cost

A decision is ``certainty`` and ``exits`` of the policy for one row. The policies are measured interleaved, and the
fastest of many rounds counts, because other processes only add time. The weights and outputs are random.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from berxit.runtime.console import debug_option, run
from berxit.runtime.policies import CRITERIA, ExitPolicy
from berxit.runtime.policies.learned import feature_names
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table

OUTPUTS = (1, 2, 3, 10, 77)
"""Numbers of logits; 1 is regression."""
ROUNDS, REPEATS = 60, 50


def policies_for(layers: int, outputs: int) -> dict[str, ExitPolicy]:
    """Policies without early exits, so that every layer is decided."""
    found = {}
    for name, criterion in CRITERIA.items():
        if outputs == 1 and not criterion.for_regression:
            continue
        weights = ((0.1,) * (len(feature_names(outputs)) + 1),) * (layers - 1) if criterion.fitted else ()
        never = (criterion.never(layers, max(outputs, 2)),) * (layers - 1)
        found[name] = ExitPolicy(name, never, (1.0,) * layers, weights=weights)
    if outputs > 1:
        confidence = found["confidence"]
        found["confidence, patience 2"] = replace(confidence, patience=2)
        found["confidence per class"] = replace(confidence, thresholds=((1.0,) * outputs,) * (layers - 1))
        found["confidence, temperatures"] = replace(confidence, temperatures=(1.5,) * layers)
    return found


def microseconds(policies: Mapping[str, ExitPolicy], outputs: int) -> dict[str, float]:
    """Policy -> microseconds per decision."""
    rng = np.random.default_rng(0)
    layers = next(iter(policies.values())).layers
    logits = [(3 * rng.normal(size=(1, outputs))).astype(np.float32) for _ in range(layers)]
    lte = [rng.uniform(size=1).astype(np.float32) for _ in range(layers)]
    best = dict.fromkeys(policies, np.inf)
    for _ in range(ROUNDS):
        for name, policy in policies.items():
            start = time.perf_counter()
            for _ in range(REPEATS):
                memory = None
                for layer, (row, certainty) in enumerate(zip(logits, lte, strict=True), 1):
                    found, memory = policy.certainty(layer, row, certainty, memory)
                    policy.exits(layer, found, row)
            best[name] = min(best[name], (time.perf_counter() - start) / REPEATS / layers)
    return {name: 1e6 * seconds for name, seconds in best.items()}


def report(measured: Mapping[int, Mapping[str, float]]) -> str:
    """Microseconds per decision as a Markdown table."""
    names = list(dict.fromkeys(name for costs in measured.values() for name in costs))
    header = ["policy", *("regression" if outputs == 1 else f"{outputs} classes" for outputs in measured)]
    rows = [[name, *(f"{costs[name]:.2f}" if name in costs else "-" for costs in measured.values())] for name in names]
    return "microseconds per exit decision, batch size 1\n\n" + markdown_table(header, rows)


@click.command(help=__doc__)
@click.option("--layers", default=12, show_default=True, type=click.IntRange(min=2))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(layers: int, output: Path) -> None:
    measured = {outputs: microseconds(policies_for(layers, outputs), outputs) for outputs in OUTPUTS}
    text = report(measured)
    write_results(output, "policy-cost", {"layers": layers, "microseconds": measured}, text)
    click.echo(text)


if __name__ == "__main__":
    run(command)
