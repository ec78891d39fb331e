"""Claims of a study, such as "A is above B": areas between curves, their interval, and the verdict.

Scores below the constant prediction count as the constant prediction. The verdict follows from a 95% interval of the
difference, which covers two sources of chance:

- the rows: a paired bootstrap, in which both sides, the score that is 100% and the constant prediction are computed on
  the same samples;
- the seeds: the variance between runs that differ in the seed only (Welch's t interval; paired if both sides come from
  the same runs).

With one seed the variance between seeds is unknown, so the claim is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

from berxit.runtime.tables import Table
from berxit.toolkit.studies.reference import Reference, floor_resampled
from berxit.toolkit.studies.runs import Group, StudyRun, differing
from berxit.train.curves import Curve, area_above, mean_curve
from berxit.train.resampling import Floats, RowBootstrap
from berxit.train.sweeps import Sweep

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
LEVEL = 0.95
POINTS_PER_LAYER = 20
"""Points per layer at which the curves of bootstrap samples are compared."""

DEFINITION = (
    "A above B, B above A: area between the curves, in percent x layers, over the average exit layers that both cover;"
    " scores below the constant prediction count as the constant prediction; difference: (A above B - B above A) /"
    f" range of layers, in percentage points, with its {LEVEL:.0%} interval from a paired bootstrap over rows and the"
    " variance between seeds; with one seed the interval covers the rows only, and the claim is undecided; the claim"
    ' "A is above B" holds if the interval is above 0, does not hold if it is below 0, and is undecided if it contains'
    " 0; intervals are per claim, without a correction for several claims; differ in: the choices that differ between A"
    " and B, of which more than one is a confound"
)


@dataclass(frozen=True)
class Interval:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Claim:
    """The claim that curve A is above curve B, for one model."""

    first: str
    second: str
    model: str
    constant: float
    """Relative score of the constant prediction, in percent."""
    above: float
    """Area of A above B, in percent x layers."""
    below: float
    """Area of B above A."""
    difference: Interval
    """In percentage points, with B's area counted negative."""
    seeds: tuple[int, int]
    """Number of seeds of A and of B, without runs at the constant prediction."""
    differ_in: tuple[str, ...]
    """Choices in which the trainings of A and B differ, besides the seed; more than one is a confound."""
    verdict: str

    def row(self) -> list[str]:
        """The cells of a table."""
        seeds = " and ".join(map(str, self.seeds))
        areas = [f"{self.above:.2f}", f"{self.below:.2f}"]
        start = [self.first, self.second, self.model, f"{self.constant:.1f}%", *areas, str(self.difference), seeds]
        return [*start, ", ".join(self.differ_in) or "-", self.verdict]


def claims_table(claims: Sequence[Claim]) -> Table:
    header = ["A", "B", "model", "constant", "A above B", "B above A", "difference", "seeds"]
    return Table([*header, "differ in", "A is above B"], [claim.row() for claim in claims])


def entries(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The claims for the JSON file."""
    return [asdict(claim) for claim in claims]


@dataclass(frozen=True)
class Side:
    """One side of a claim: a curve per run, whose mean over the seeds is compared."""

    name: str
    runs: tuple[StudyRun, ...]
    """The runs of the sweeps, all of them above the constant prediction."""
    sweeps: tuple[Sweep, ...]
    reference: Reference
    bootstrap: RowBootstrap

    @cached_property
    def curves(self) -> list[Curve]:
        """Relative curve of each run, clipped at the constant prediction."""
        floor = self.reference.relative_floor
        return [sweep.curve().relative_to(self.reference.score).clipped(floor) for sweep in self.sweeps]

    @cached_property
    def grid(self) -> Floats:
        """(G,) average exit layers, from 1 to n."""
        depth = self.sweeps[0].depth
        return np.linspace(1, depth, POINTS_PER_LAYER * (depth - 1) + 1)

    @cached_property
    def resampled(self) -> Floats:
        """(B, G) mean over the runs of the relative score of each bootstrap sample, clipped at the constant
        prediction of the sample."""
        hundred = np.maximum(self.reference.resampled(self.bootstrap), 1e-9)[:, None]
        parts = [
            np.maximum(self.bootstrap.curves(sweep, self.grid), floor_resampled(run, self.bootstrap)[:, None])
            for run, sweep in zip(self.runs, self.sweeps, strict=True)
        ]
        return np.asarray(100 * np.mean(parts, axis=0) / hundred)


def judge(
    first: Side,
    second: Side,
    model: str,
    until: float = np.inf,
    *,
    paired: bool = False,
    differ_in: tuple[str, ...] = (),
) -> Claim:
    """The verdict on "first is above second", for average exit layers up to ``until``.

    ``paired``: both sides come from the same runs, in the same order. ``differ_in``: see Claim.
    """
    seeds = len(first.runs), len(second.runs)
    start = (first.name, second.name, model, first.reference.relative_floor)
    nothing = Claim(*start, 0.0, 0.0, Interval(0.0, 0.0, 0.0), seeds, differ_in, UNDECIDED)
    if not min(seeds):  # no run of a side is better than the constant prediction
        return nothing
    a, b = mean_curve(first.curves), mean_curve(second.curves)
    low, high = max(a.layers[0], b.layers[0]), min(a.layers[-1], b.layers[-1], until)
    inside = (first.grid >= low) & (first.grid <= high)
    if not inside.any():
        return nothing
    above, below = area_above(a, b, until), area_above(b, a, until)
    rows = (first.resampled - second.resampled)[:, inside].mean(axis=1)
    means = [
        np.array([np.interp(first.grid[inside], curve.layers, curve.scores).mean() for curve in side.curves])
        for side in (first, second)
    ]
    found = interval(above.mean - below.mean, rows, [means[0] - means[1]] if paired else means)
    return Claim(*start, above.area, below.area, found, seeds, differ_in, verdict_on(found, min(seeds)))


def choices_that_differ(first: Group, second: Group) -> tuple[str, ...]:
    """Names of the choices that differ between the trainings of two groups of a model."""
    strategy = ["strategy"] if first.strategy != second.strategy else []
    names = differing(first.model, [first.runs[0], second.runs[0]])
    return (*strategy, *(name.replace("_", " ") for name in names))


def interval(value: float, rows: Floats, seeds: Sequence[Floats]) -> Interval:
    """The interval of a mean over seeds. ``rows`` (B,): the value on bootstrap samples of the rows. ``seeds``: for each
    group that enters the value, one number per seed; groups with one seed add no variance.

    A t interval whose degrees of freedom combine those of the variances (Welch and Satterthwaite).
    """
    parts = [(float(np.var(rows, ddof=1)), len(rows) - 1)]
    parts += [(float(np.var(each, ddof=1)) / len(each), len(each) - 1) for each in seeds if len(each) > 1]
    variance = sum(part for part, _ in parts)
    if variance <= 0:
        return Interval(value, value, value)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * variance**0.5
    return Interval(value, value - half, value + half)


def verdict_on(difference: Interval, seeds: int) -> str:
    """``seeds``: the smaller number of seeds of the two sides."""
    if seeds < 2 or difference.low <= 0 <= difference.high:
        return UNDECIDED
    return HOLDS if difference.low > 0 else FAILS
