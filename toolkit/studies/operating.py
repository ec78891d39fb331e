"""Operating points of a study: thresholds that are chosen on other rows than those on which they are reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from berxit.toolkit.studies.claims import LEVEL, Interval, interval
from berxit.toolkit.studies.reference import Reference, floor_resampled
from berxit.toolkit.studies.runs import Group, StudyRun
from berxit.train.curves import SAVED
from berxit.train.families import FOLDS, PolicySpec
from berxit.train.resampling import RowBootstrap
from berxit.train.sweeps import Sweep, held_out, reaching, within

KEPT = (99.0, 97.0, 94.0)
"""Percent of the gain that a threshold has to keep. The paper's table 2 keeps such shares of the score."""

DEFINITION = (
    f"thresholds (for patience on regression the tolerance, too) are chosen on other rows than those that are reported:"
    f" {FOLDS} folds, the threshold of each is chosen on the others"
)
GAIN = (
    "gain: score above the constant prediction, in percent of that of 100%; saved at 99%: layers saved by the cheapest"
    f" threshold that keeps 99% of the gain on the other rows; kept: the gain that it keeps on the reported rows, with"
    f" its {LEVEL:.0%} interval (rows by a paired bootstrap, and seeds if there are several)"
)


@dataclass(frozen=True)
class AtCost:
    """The threshold for a cost, chosen on other rows: means over the seeds."""

    saved: float
    """Saved layers that were required on the other rows, as a share."""
    average_exit_layer: float | None
    """On the reported rows. None, as for the next two, if no threshold saves so many layers."""
    score: float | None
    relative: float | None
    """Percent of 100%."""


@dataclass(frozen=True)
class AtGain:
    """The cheapest threshold that keeps a share of the gain, chosen on other rows: means over the seeds."""

    gain: float
    """Percent of the gain that was required on the other rows."""
    saved: Interval
    """Saved layers in percent on the reported rows."""
    saved_by_seed: list[float]
    kept: Interval
    """Percent of the gain on the reported rows."""


@dataclass(frozen=True)
class Operating:
    """Operating points of a group under one criterion."""

    at_cost: list[AtCost]
    at_gain: list[AtGain]
    """Empty if 100% is not above the constant prediction."""

    def entry(self) -> dict[str, Any]:
        return asdict(self)

    def gain_cells(self) -> list[list[str]]:
        """For each share of the gain: the share, saved layers, and gain kept with its interval."""
        return [
            [f"{each.gain:g}%", f"{each.saved.value:.0f}%", _seeds(each.saved_by_seed), percent_interval(each.kept)]
            for each in self.at_gain
        ]


GAIN_HEADER = ("of the gain", "saved layers", "by seed", "kept")


def operating(
    group: Group,
    criterion: str,
    reference: Reference,
    bootstrap: RowBootstrap,
    lowest: float,
    *,
    costs: Sequence[float] = SAVED,
    gains: Sequence[float] = KEPT,
) -> Operating:
    """The operating points of a group at shares of saved layers ``costs`` and at percentages of the gain ``gains``.

    ``lowest``: the lowest average exit layer that the criterion can reach.
    """
    gains = gains if reference.above_floor else ()
    sweeps = [_chosen(run, criterion, reference, costs, gains) for run in group.runs]
    depth = sweeps[0].depth
    layers, scores = (np.array([getattr(each, what) for each in sweeps]) for what in ("costs", "scores"))
    at_cost = [
        AtCost(share, float(layer), float(score), float(reference.relative(score)))
        if lowest <= depth * (1 - share) + 1e-9
        else AtCost(share, None, None, None)
        for share, layer, score in zip(costs, layers.mean(axis=0), scores.mean(axis=0), strict=False)
    ]
    gained = _gain(scores, reference.floor, reference.score) if gains else scores
    sampled = [_resampled(run, each, reference, bootstrap) for run, each in zip(group.runs, sweeps, strict=True)]
    at_gain = []
    for i, gain in enumerate(gains, start=len(costs)):
        saved = 100 * (1 - layers[:, i] / depth)
        rows = np.mean([each[0][:, i] for each in sampled], axis=0)
        kept = interval(float(gained[:, i].mean()), rows, [gained[:, i]])
        cheap = np.mean([100 * (1 - each[1][:, i] / depth) for each in sampled], axis=0)
        at_gain.append(AtGain(gain, interval(float(saved.mean()), cheap, [saved]), saved.tolist(), kept))
    return Operating(at_cost, at_gain)


def _chosen(
    run: StudyRun, criterion: str, reference: Reference, costs: Sequence[float], gains: Sequence[float]
) -> Sweep:
    """(T, N) outcomes of the policies for ``costs``, then for ``gains``."""
    depth = int(run.predictions.exit_layers[-1])
    by_cost = within([depth * (1 - share) for share in costs])

    def targets(rows: npt.NDArray[np.intp]) -> list[float]:
        floor = run.predictions.select_rows(rows).constant.score
        return [floor + gain / 100 * (reference.on_rows(rows) - floor) for gain in gains]

    by_gain = reaching(targets)
    return held_out(
        run.predictions,
        PolicySpec(criterion),
        lambda rows, candidates: [*by_cost(rows, candidates), *by_gain(rows, candidates)],
    )


def _resampled(
    run: StudyRun, sweep: Sweep, reference: Reference, bootstrap: RowBootstrap
) -> tuple[npt.NDArray, npt.NDArray]:
    """(B, T) gain and (B, T) average exit layer of each bootstrap sample."""
    floor, hundred = floor_resampled(run, bootstrap)[:, None], reference.resampled(bootstrap)[:, None]
    scores = bootstrap.scores(sweep.predicted, run.predictions.labels)
    return _gain(scores, floor, np.maximum(hundred, floor + 1e-3)), bootstrap.means(sweep.layers)


def _gain(scores: npt.NDArray, floor: npt.ArrayLike, hundred: npt.ArrayLike) -> npt.NDArray:
    """Percent of the gain: 0 for the constant prediction, 100 for the score that is 100%."""
    return np.asarray(100 * (scores - floor) / (np.asarray(hundred) - floor))


def _seeds(saved: Sequence[float]) -> str:
    return ", ".join(f"{value:.0f}%" for value in saved) if len(saved) > 1 else "one seed"


def percent_interval(found: Interval) -> str:
    return f"{found.value:.1f}% [{found.low:.1f}, {found.high:.1f}]"
