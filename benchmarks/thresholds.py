"""Do the thresholds that a rule chooses keep their promise on rows that the choice has not seen, and what do they save?

    python benchmarks/thresholds.py CHECKPOINT [--keep 0.99] [--rows 200 --rows 400] [--splits 200] --output thresholds

The population is the pass that ``berxit-calibrate`` stored in CHECKPOINT: calibrate it on as many rows as there are,
none of which training used. Each split draws ``--rows`` rows, chooses a threshold on them, and judges it on all others.
Compared are ``--keep``, ``--keep --optimistic``, and the oracle, which chooses on the rows on which it is judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import InputError
from berxit.runtime.storage import write_text
from berxit.runtime.tables import markdown_table
from berxit.train.calibration import read_policy, stored_pass
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec, operating_point
from berxit.train.rules import DELTA, Keep

ALMOST = 0.005
"""A split that misses the share by no more than this is counted separately."""


@dataclass(frozen=True)
class Outcome:
    """Results of one rule over all splits."""

    rule: str
    rows: int
    splits: int
    kept: float
    """Share of the splits that keep at least ``--keep`` of full depth on the other rows."""
    almost_kept: float
    """The same with ``--keep`` - ALMOST."""
    mean_share: float
    """Mean share of full depth's score that is kept on the other rows."""
    saved_layers: float
    """Mean over the splits, on the other rows."""


def outcome(
    predictions: Predictions, spec: PolicySpec, rule: Keep, rows: int, splits: int, *, oracle: bool = False
) -> Outcome:
    """Draws the splits, the same ones for every rule. ``oracle``: chooses on the rows on which it is judged."""
    rng, shares, saved = np.random.default_rng(0), [], []
    for _ in range(splits):
        order = rng.permutation(len(predictions.labels))
        chosen_on, judged_on = predictions.select_rows(order[:rows]), predictions.select_rows(order[rows:])
        policy = rule.choose(judged_on if oracle else chosen_on, spec).policy
        point = operating_point(judged_on, policy)
        shares.append(point.score / judged_on.full_depth_score)
        saved.append(point.saved_layers)
    kept = np.array(shares)
    return Outcome(
        "oracle" if oracle else "optimistic" if rule.optimistic else f"keep, delta {rule.delta:g}",
        rows,
        splits,
        float((kept >= rule.keep).mean()),
        float((kept >= rule.keep - ALMOST).mean()),
        float(kept.mean()),
        float(np.mean(saved)),
    )


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--keep", default=0.99, show_default=True, type=float)
@click.option("--delta", default=DELTA, show_default=True, type=float)
@click.option("--criterion", help="[default: the task's]")
@click.option("--rows", multiple=True, type=click.IntRange(min=1), default=(200, 400, 1000), show_default=True)
@click.option("--splits", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(
    checkpoint: Path,
    keep: float,
    delta: float,
    criterion: str | None,
    rows: Sequence[int],
    splits: int,
    output: Path,
) -> None:
    """Judge the thresholds that --keep chooses on rows that the choice has not seen."""
    calibrated = read_policy(checkpoint)
    if calibrated is None:
        raise InputError(f"{checkpoint} is not calibrated: run berxit-calibrate on as many rows as there are")
    predictions = stored_pass(checkpoint, calibrated)
    population = len(predictions.labels)
    if max(rows) * 1.5 > population:
        raise InputError(f"{population} rows are stored, and --rows {max(rows)} leaves too few to judge: give fewer")
    spec = PolicySpec(criterion or predictions.default_criterion)
    guaranteed, optimistic = Keep(keep, delta), Keep(keep, optimistic=True)
    outcomes: list[Outcome] = []
    with progress_bar("splitting")(3 * len(rows)) as bar:
        for count in rows:
            outcomes.append(outcome(predictions, spec, guaranteed, count, splits))
            bar.update(1)
            outcomes.append(outcome(predictions, spec, optimistic, count, splits))
            bar.update(1)
            outcomes.append(outcome(predictions, spec, optimistic, count, min(splits, 20), oracle=True))
            bar.update(1)
    table = report(outcomes, keep)
    record = {"criterion": spec.criterion, "metric": predictions.metric, "population": population, "keep": keep}
    output.mkdir(parents=True, exist_ok=True)
    stored = json.dumps(record | {"outcomes": [asdict(each) for each in outcomes]}, indent=1)
    write_text(output / "result.json", stored)
    write_text(output / "result.md", table + "\n")
    click.echo(table)


def report(outcomes: Sequence[Outcome], keep: float) -> str:
    """The outcomes as a Markdown table."""
    header = [
        "calibration rows",
        "rule",
        f"splits that keep {keep:g}",
        f"{keep - ALMOST:g}",
        "mean share",
        "saved layers",
    ]
    rows = [
        [
            str(each.rows),
            each.rule,
            f"{each.kept:.0%}",
            f"{each.almost_kept:.0%}",
            f"{each.mean_share:.1%}",
            f"{each.saved_layers:.0%}",
        ]
        for each in outcomes
    ]
    return markdown_table(header, rows)


if __name__ == "__main__":
    run(command)
