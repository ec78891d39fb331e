"""Score and saved layers of ``berxit-calibrate --keep`` on rows that neither training nor calibration has seen.

    python benchmarks/new_rows.py mrpc-12=CKPT=800 ... --output new-rows

Each argument is NAME=CHECKPOINT=ROWS. The checkpoint is calibrated on a file in which ROWS held-out rows come before
the dev rows (``berxit-calibrate`` stores the pass). The rule chooses a policy on the held-out rows. It is scored on the
dev rows, beside full depth, the best constant prediction, and the fixed exit that the rule chooses on the same rows.
Intervals are the 5th to the 95th percentile of a paired bootstrap over the dev rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import InputError
from berxit.runtime.metrics import metric_named
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.train.calibration import read_policy, stored_pass
from berxit.train.checkpoint import read_record
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec, operating_point, predicted_under
from berxit.train.rules import Keep

RESAMPLES = 2000


@dataclass(frozen=True)
class Measured:
    """One policy on the dev rows."""

    score: float
    kept: float
    """Share of full depth's score."""
    kept_interval: tuple[float, float]
    saved_layers: float


@dataclass(frozen=True)
class Outcome:
    """One checkpoint: its policy, chosen on held-out rows and scored on the dev rows."""

    name: str
    seed: int | None
    layers: int
    metric: str
    criterion: str
    keep: float
    calibration_rows: int
    dev_rows: int
    full_depth: float
    constant: float
    """Score of the best constant prediction on the dev rows."""
    adaptive: Measured
    fixed: Measured


def measured(new: Predictions, chosen: Predictions, spec: PolicySpec, keep: float) -> Measured:
    """The policy that ``Keep`` chooses on the rows ``chosen``, scored on the rows ``new``."""
    policy = Keep(keep).choose(chosen, spec).policy
    predicted = predicted_under(new, policy)
    score, saved = new.score(predicted), operating_point(new, policy).saved_layers
    return Measured(score, score / new.full_depth_score, kept_interval(new, predicted), saved)


def kept_interval(new: Predictions, predicted: npt.NDArray) -> tuple[float, float]:
    """5th and 95th percentile of score(predicted) / score(full depth) over paired bootstrap samples."""
    rng, score = np.random.default_rng(0), metric_named(new.metric)
    shares = []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(new.labels), len(new.labels))
        full = score(new.full_depth[rows], new.labels[rows])
        shares.append(score(predicted[rows], new.labels[rows]) / full if full > 0 else np.nan)
    low, high = np.nanquantile(shares, [0.05, 0.95])
    return float(low), float(high)


def outcome(argument: str, keep: float, criterion: str | None) -> Outcome:
    """The outcome for NAME=CHECKPOINT=ROWS."""
    parts = argument.split("=")
    if len(parts) != 3 or not parts[2].isdigit():
        raise InputError(f"'{argument}': give NAME=CHECKPOINT=ROWS, ROWS being the number of held-out rows")
    name, checkpoint, known = parts[0], Path(parts[1]), int(parts[2])
    calibrated = read_policy(checkpoint)
    if calibrated is None:
        raise InputError(f"{checkpoint} is not calibrated: run berxit-calibrate on the held-out and dev rows")
    everything = stored_pass(checkpoint, calibrated)
    rows = len(everything.labels)
    if not 0 < known < rows:
        raise InputError(f"'{argument}': the pass has {rows} rows, give fewer held-out rows")
    held_out, new = (everything.select_rows(np.arange(*bounds)) for bounds in ((0, known), (known, rows)))
    criterion = criterion or everything.default_criterion
    return Outcome(
        name,
        read_record(checkpoint).get("options", {}).get("seed"),
        everything.layers,
        new.metric,
        criterion,
        keep,
        known,
        rows - known,
        new.full_depth_score,
        new.constant.score,
        measured(new, held_out, PolicySpec(criterion), keep),
        measured(new, held_out, PolicySpec("fixed"), keep),
    )


@click.command(help=__doc__)
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--keep", default=0.99, show_default=True, type=float)
@click.option("--criterion", help="[default: the task's]")
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(checkpoints: Sequence[str], keep: float, criterion: str | None, output: Path) -> None:
    outcomes = []
    with progress_bar("choosing")(len(checkpoints)) as bar:
        for each in checkpoints:
            outcomes.append(outcome(each, keep, criterion))
            bar.update(1)
    text = report(outcomes)
    write_results(output, "new-rows", {"outcomes": [asdict(each) for each in outcomes]}, text)
    click.echo(text)


def report(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    header = [
        "task, layers",
        "criterion",
        "rows",
        "constant",
        "full depth",
        "early exit",
        "kept",
        "saved",
        "fixed exit",
    ]
    rows = [
        [
            each.name,
            each.criterion,
            f"{each.calibration_rows}, {each.dev_rows}",
            f"{each.constant:.4f}",
            f"{each.full_depth:.4f}",
            f"{each.adaptive.score:.4f}",
            f"{each.adaptive.kept:.1%} ({each.adaptive.kept_interval[0]:.1%} to {each.adaptive.kept_interval[1]:.1%})",
            f"{each.adaptive.saved_layers:.0%}",
            f"{each.fixed.kept:.1%}, {each.fixed.saved_layers:.0%}",
        ]
        for each in outcomes
    ]
    return markdown_table(header, rows)


if __name__ == "__main__":
    run(command)
