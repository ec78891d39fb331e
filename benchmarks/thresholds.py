"""Do the policies that a rule chooses keep their promise on rows that the choice has not seen, and what do they save?

    python benchmarks/thresholds.py NAME=CHECKPOINT ... [--rows 200 --rows 400] [--splits 500] --output thresholds

The population of each name is the pass that ``berxit-calibrate`` stored in CHECKPOINT: calibrate it on as many rows as
there are, none of which training used. ``synthetic`` adds a population of which 20,000 rows are known. Each split draws
``--rows`` rows, chooses a policy on them, and judges it on all others. The rules are --keep and --risk with their
options, and for comparison ``--keep --optimistic`` and the oracle, which chooses on the rows on which it is judged.
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
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.train.calibration import read_policy, stored_pass
from berxit.train.evaluation import Predictions
from berxit.train.families import PolicySpec, exits_under, operating_point, predicted_at
from berxit.train.risks import LABEL_ERROR, MISSES, Loss, classes_of
from berxit.train.rules import DELTA, Keep, Risk

ALMOST = 0.005
"""A split that misses its bound by no more than this is counted separately."""
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Outcome:
    """Results of one rule over all splits of one population."""

    name: str
    rule: str
    rows: int
    splits: int
    kept: float
    """Share of the splits whose promise holds on the other rows."""
    almost_kept: float
    """The same with a bound that is ALMOST weaker."""
    mean: float
    """Mean over the splits, on the other rows: the share of full depth's score; for a risk the largest of the groups'
    losses."""
    saved_layers: float
    """Mean over the splits, on the other rows."""


def rules(predictions: Predictions, delta: float) -> list[tuple[str, Keep | Risk]]:
    """The rules that are judged, by name."""
    found: list[tuple[str, Keep | Risk]] = [
        ("--keep 0.99", Keep(0.99, delta)),
        ("--keep 0.97", Keep(0.97, delta)),
        ("--keep 0.99 --optimistic", Keep(0.99, optimistic=True)),
        ("--risk 0.05", Risk(0.05, delta)),
        ("--risk 0.05 --risk-of label-error", Risk(0.05, delta, of=LABEL_ERROR)),
    ]
    if not predictions.regression:
        name = predictions.names[-1]
        missed = float(Loss(predictions, MISSES + name)(predictions.full_depth).mean())
        bound = round(missed + 0.08, 2)
        found += [
            ("--risk 0.1 --per class", Risk(0.1, delta, per="class")),
            ("--risk 0.1 --per exit", Risk(0.1, delta, per="exit")),
            (f"--risk {bound:g} --risk-of {MISSES}{name}", Risk(bound, delta, of=MISSES + name)),
        ]
    return found


def margin(rule: Keep | Risk, judged: Predictions, taken: npt.NDArray[np.integer]) -> tuple[float, float]:
    """The quantity that the rule bounds, on the judged rows, and by how much the promise holds (negative: it fails).

    ``taken`` (N,): the exit numbers of the judged rows.
    """
    predicted = predicted_at(judged, taken[None])[0]
    if isinstance(rule, Keep):
        share = judged.score(predicted) / judged.full_depth_score
        return share, share - rule.keep
    loss = Loss(judged, rule.of)
    losses = np.full(len(taken), np.nan)
    losses[loss.rows] = loss(predicted)
    groups = classes_of(loss) if rule.per == "class" else [loss.rows]
    if rule.per == "exit":
        groups = [np.flatnonzero(taken <= number) for number in np.unique(taken) if number < judged.layers]
    risk = max((float(losses[rows].mean()) for rows in groups if len(rows)), default=0.0)
    return risk, rule.risk - risk


def outcome(
    name: str,
    population: Predictions,
    spec: PolicySpec,
    rule: Keep | Risk,
    rows: int,
    splits: int,
    *,
    rule_name: str = "",
    oracle: bool = False,
) -> Outcome:
    """Draws the splits, the same ones for every rule. ``oracle``: chooses on the rows on which it is judged."""
    rng, found, margins, saved = np.random.default_rng(0), [], [], []
    for _ in range(splits):
        order = rng.permutation(len(population.labels))
        chosen_on, judged_on = population.select_rows(order[:rows]), population.select_rows(order[rows:])
        try:
            policy = rule.choose(judged_on if oracle else chosen_on, spec).policy
        except InputError:  # too few rows of a class: the command ends without a policy, so nothing is promised
            continue
        value, by = margin(rule, judged_on, exits_under(judged_on, policy))
        found.append(value)
        margins.append(by)
        saved.append(operating_point(judged_on, policy).saved_layers)
    by = np.array(margins)
    return Outcome(
        name,
        rule_name or str(rule),
        rows,
        len(found),
        float((by >= 0).mean()) if found else float("nan"),
        float((by >= -ALMOST).mean()) if found else float("nan"),
        float(np.mean(found)) if found else float("nan"),
        float(np.mean(saved)) if found else float("nan"),
    )


def synthetic(rows: int = 20_000) -> Predictions:
    """Six exits and two classes. Deeper exits are right more often, and early exits favour the common class."""
    rng = np.random.default_rng(0)
    labels = (rng.random(rows) < 1 / 3).astype(np.int64)
    easiness = rng.normal(1.2, 1.0, rows)
    logits = np.empty((rows, 6, 2), dtype=np.float32)
    for layer in range(6):
        toward = np.where(labels == 1, 1, -1) * ((0.6 + 0.35 * layer) * easiness + rng.normal(0, 0.8, rows))
        toward -= 0.8 - 0.16 * layer
        logits[:, layer] = np.stack([-toward, toward], axis=-1)
    return Predictions(logits, None, labels, "accuracy", names=("common", "rare"))


def population_of(argument: str) -> tuple[str, Predictions]:
    """Name and pass of an argument NAME=CHECKPOINT, or of ``synthetic``."""
    if argument == SYNTHETIC:
        return SYNTHETIC, synthetic()
    name, _, checkpoint = argument.partition("=")
    if not checkpoint:
        raise InputError(f"'{argument}': give NAME=CHECKPOINT, or {SYNTHETIC}")
    calibrated = read_policy(Path(checkpoint))
    if calibrated is None:
        raise InputError(f"{checkpoint} is not calibrated: run berxit-calibrate on as many rows as there are")
    return name, stored_pass(Path(checkpoint), calibrated)


@click.command()
@click.argument("populations", nargs=-1, required=True)
@click.option("--delta", default=DELTA, show_default=True, type=float)
@click.option("--criterion", help="[default: the task's]")
@click.option("--rows", multiple=True, type=click.IntRange(min=1), default=(400, 800), show_default=True)
@click.option("--splits", default=500, show_default=True, type=click.IntRange(min=1))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(
    populations: Sequence[str],
    delta: float,
    criterion: str | None,
    rows: Sequence[int],
    splits: int,
    output: Path,
) -> None:
    """Judge the policies that the rules choose on rows that the choice has not seen."""
    outcomes: list[Outcome] = []
    loaded = [population_of(each) for each in populations]
    total = sum(len(rules(p, delta)) + 1 for _, p in loaded) * len(rows)
    with progress_bar("splitting")(total) as bar:
        for name, population in loaded:
            spec = PolicySpec(criterion or population.default_criterion)
            for count in rows:
                if count * 1.3 > len(population.labels):
                    bar.update(len(rules(population, delta)) + 1)
                    continue  # too few rows are left to judge
                for rule_name, rule in rules(population, delta):
                    outcomes.append(outcome(name, population, spec, rule, count, splits, rule_name=rule_name))
                    bar.update(1)
                best = Keep(0.99, optimistic=True)
                few = min(splits, 20)
                outcomes.append(outcome(name, population, spec, best, count, few, rule_name="oracle 0.99", oracle=True))
                bar.update(1)
    table = report(outcomes)
    record = {
        "command": {"delta": delta, "criterion": criterion, "rows": list(rows), "splits": splits},
        "populations": {name: len(p.labels) for name, p in loaded},
    }
    numbers = [{name: _number(value) for name, value in asdict(each).items()} for each in outcomes]
    write_results(output, "result", record | {"outcomes": numbers}, table)
    click.echo(table)


def _number(value: float) -> float | None:
    """The value; None instead of NaN, which JSON does not have: a rule that chose no policy in any split."""
    return None if isinstance(value, float) and np.isnan(value) else value


def report(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    header = [
        "population",
        "calibration rows",
        "rule",
        "splits",
        "promise holds",
        f"within {ALMOST:g}",
        "mean",
        "saved layers",
    ]
    rows = [
        [
            each.name,
            str(each.rows),
            each.rule,
            str(each.splits),
            f"{each.kept:.1%}",
            f"{each.almost_kept:.1%}",
            f"{each.mean:.4f}",
            f"{each.saved_layers:.0%}",
        ]
        for each in outcomes
    ]
    return markdown_table(header, rows)


if __name__ == "__main__":
    run(command)
