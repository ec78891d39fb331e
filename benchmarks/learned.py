"""Does the criterion ``learned`` save more layers than the other criteria, on rows that its fit has not seen?

    python benchmarks/learned.py NAME=predictions.npz ... [--rows 400 --rows 800] [--splits 40] --output learned

``predictions.npz`` is the pass that ``berxit-eval`` wrote for rows that training did not use. Each split draws
``--rows`` rows, fits the policies on them, and computes the trade-off curve on all other rows. Two numbers are
compared:

- area: the mean relative score, in percent of full depth, at 30 to 70% saved layers. Where a criterion cannot save so
  many layers, its score at its lowest cost counts, which favours it.
- saved layers at 99%: the largest share of saved layers on the curve whose score is at least 99% of full depth's.

``learned`` is compared with the best fixed exit, and with confidence, entropy, LTE or patience, whichever is best on
average over the splits. Intervals are the 5th to the 95th percentile over the splits; the splits of one task share
their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import InputError
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.train.curves import Curve
from berxit.train.evaluation import Predictions, layer_scores
from berxit.train.families import PolicyFamily, PolicySpec, applicable_criteria, families

Floats = npt.NDArray[np.float64]

SHARES = np.arange(0.30, 0.701, 0.05)
"""Shares of saved layers over which the area is the mean."""
KEPT = 99.0
LEARNED, FIXED = "learned", "fixed exit"


@dataclass(frozen=True)
class Measured:
    """One criterion on one task, with one value per split."""

    area: tuple[float, ...]
    """Mean relative score in percent."""
    saved: tuple[float, ...]
    """Share of saved layers at 99% of the score."""


@dataclass(frozen=True)
class TaskResult:
    """All criteria on one task."""

    name: str
    metric: str
    layers: int
    population: int
    rows: int
    criteria: dict[str, Measured]

    def summary(self) -> dict[str, Any]:
        """The means of all criteria, and the differences of ``learned`` as ``difference`` returns them."""
        others = {"best other": self.best_other, FIXED: FIXED}
        return {
            "name": self.name,
            "best other": self.best_other,
            "means": {name: [float(np.mean(v.area)), float(np.mean(v.saved))] for name, v in self.criteria.items()},
            "minus": {
                name: {quantity: list(self.difference(quantity, other)) for quantity in ("area", "saved")}
                for name, other in others.items()
            },
        }

    @property
    def best_other(self) -> str:
        """The criterion with the largest mean area besides ``learned`` and the fixed exit."""
        others = [name for name in self.criteria if name not in (LEARNED, FIXED)]
        return max(others, key=lambda name: np.mean(self.criteria[name].area))

    def difference(self, quantity: str, other: str) -> tuple[float, float, float]:
        """Mean, 5th and 95th percentile over the splits of ``learned`` minus another criterion."""
        ours, theirs = (np.array(getattr(self.criteria[name], quantity)) for name in (LEARNED, other))
        low, high = np.quantile(ours - theirs, [0.05, 0.95])
        return float((ours - theirs).mean()), float(low), float(high)


def judged(curve: Curve) -> tuple[float, float]:
    """Area and saved layers at 99% of a curve of relative scores."""
    layers = np.clip(curve.depth * (1 - SHARES), curve.layers[0], curve.layers[-1])
    cheapest = curve.cheapest(KEPT)
    saved = 0.0 if cheapest is None else 1 - cheapest / curve.depth
    return float(np.interp(layers, curve.layers, curve.scores).mean()), saved


def held_out_curve(fitted_on: Predictions, judged_on: Predictions, criterion: str) -> Curve:
    """The trade-off curve on other rows than those of the fit, in percent of full depth's score."""
    curves = []
    for each in families(fitted_on, PolicySpec(criterion), fixed=True):
        policies = PolicyFamily(judged_on, each.fitted, each.fitted.certainty(judged_on))
        curves += policies.points(policies.candidates())
    return Curve.of(curves, judged_on.layers).relative_to(judged_on.full_depth_score)


def measure(name: str, predictions: Predictions, rows: int, splits: int) -> TaskResult:
    """All criteria on the same splits."""
    rng = np.random.default_rng(0)
    names = [each for each in applicable_criteria(predictions) if each != "agreement"]
    found: dict[str, list[tuple[float, float]]] = {each: [] for each in (*names, FIXED)}
    for _ in range(splits):
        order = rng.permutation(len(predictions.labels))
        fitted_on, judged_on = predictions.select_rows(order[:rows]), predictions.select_rows(order[rows:])
        for each in names:
            found[each].append(judged(held_out_curve(fitted_on, judged_on, each)))
        fixed = Curve.layer_wise(layer_scores(judged_on)).relative_to(judged_on.full_depth_score)
        found[FIXED].append(judged(fixed))
    criteria = {each: Measured(*map(tuple, zip(*values, strict=True))) for each, values in found.items()}
    return TaskResult(name, predictions.metric, predictions.layers, len(predictions.labels), rows, criteria)


def report(results: Sequence[TaskResult]) -> str:
    """Two Markdown tables: the means of all criteria, and the differences with intervals."""
    names = list(dict.fromkeys(name for result in results for name in result.criteria))
    means = [
        [
            f"{result.name}, {result.rows} rows",
            *(
                f"{np.mean(found.area):.2f} / {np.mean(found.saved):.0%}"
                if (found := result.criteria.get(name))
                else "-"
                for name in names
            ),
        ]
        for result in results
    ]
    differences = []
    for result in results:
        for other in (result.best_other, FIXED):
            area, saved = result.difference("area", other), result.difference("saved", other)
            differences.append(
                [
                    f"{result.name}, {result.rows} rows",
                    other,
                    f"{area[0]:+.2f} ({area[1]:+.2f} to {area[2]:+.2f})",
                    f"{100 * saved[0]:+.1f} ({100 * saved[1]:+.1f} to {100 * saved[2]:+.1f})",
                ]
            )
    header = ["task, rows of the fit", "learned minus", "area, points", "saved layers at 99%, points"]
    return "\n\n".join(
        [
            "area in percent / saved layers at 99%, means over the splits",
            markdown_table(["task, rows of the fit", *names], means),
            "differences, with the 5th to the 95th percentile over the splits",
            markdown_table(header, differences),
        ]
    )


@click.command(help=__doc__)
@click.argument("passes", nargs=-1, required=True, metavar="NAME=PREDICTIONS.npz ...")
@click.option("--rows", multiple=True, type=click.IntRange(min=50), default=(400,), show_default=True)
@click.option("--splits", default=40, show_default=True, type=click.IntRange(min=2))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(passes: Sequence[str], rows: Sequence[int], splits: int, output: Path) -> None:
    loaded = {}
    for given in passes:
        name, _, path = given.partition("=")
        if not Path(path).is_file():
            raise InputError(f"'{given}': give NAME=FILE with the predictions.npz that berxit-eval wrote")
        loaded[name] = Predictions.load(Path(path))
    if small := [name for name, stored in loaded.items() if len(stored.labels) < 1.5 * max(rows)]:
        raise InputError(f"{small[0]} has {len(loaded[small[0]].labels)} rows, too few for --rows {max(rows)}")
    results = []
    with progress_bar("splitting")(len(loaded) * len(rows)) as bar:
        for name, predictions in loaded.items():
            for count in rows:
                results.append(measure(name, predictions, count, splits))
                bar.update(1)
    text = report(results)
    numbers = {
        "splits": splits,
        "summary": [each.summary() for each in results],
        "tasks": [asdict(each) for each in results],
    }
    write_results(output, "learned", numbers, text)
    click.echo(text)


if __name__ == "__main__":
    run(command)
