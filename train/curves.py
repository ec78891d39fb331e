"""Trade-off curves: score over average exit layer, and the paper's numbers from them (section 5.3, figures 4 to 6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import BerxitError
from berxit.train.families import OperatingPoint

SAVED = (0.3, 0.5, 0.7)
"""Shares of saved layers at which reports show the score of a curve."""


@dataclass(frozen=True)
class Curve:
    """Score over average exit layer, interpolated linearly between P points. Not defined outside their range."""

    layers: npt.NDArray[np.float64]
    """(P,) average exit layers, strictly ascending."""
    scores: npt.NDArray[np.float64]
    """(P,) scores of the metric, or percentages of a reference score."""
    depth: int
    """n, the number of layers of the model."""

    @classmethod
    def of(cls, points: Iterable[OperatingPoint], depth: int) -> Curve:
        """The curve through operating points, in any order. Of points with equal average exit layer, the best is
        used."""
        best: dict[float, float] = {}
        for point in points:
            layer = point.average_exit_layer
            best[layer] = max(point.score, best.get(layer, point.score))
        layers = sorted(best)
        return cls(np.array(layers), np.array([best[layer] for layer in layers]), depth)

    @classmethod
    def layer_wise(cls, scores: Sequence[float]) -> Curve:
        """The curve of a policy under which all examples exit at the same layer: scores (n,)."""
        return cls(np.arange(1, len(scores) + 1, dtype=np.float64), np.array(scores, dtype=np.float64), len(scores))

    def relative_to(self, reference: float) -> Curve:
        """The curve of relative scores, in percent of ``reference``."""
        return Curve(self.layers, relative_score(self.scores, reference), self.depth)

    def at(self, average_exit_layer: float) -> float | None:
        """The interpolated score; None outside the curve's range."""
        if not self.layers[0] <= average_exit_layer <= self.layers[-1]:
            return None
        return float(np.interp(average_exit_layer, self.layers, self.scores))

    def at_saved(self, share: float) -> float | None:
        """The interpolated score at a share (0 to 1) of saved layers; None outside the curve's range."""
        return self.at(self.depth * (1 - share))

    def cheapest(self, score: float) -> float | None:
        """The smallest average exit layer of a point with at least this score; None if there is no such point."""
        good = self.layers[self.scores >= score]
        return float(good[0]) if len(good) else None

    def clipped(self, floor: float) -> Curve:
        """The curve with scores below ``floor`` raised to it, for areas: below the constant prediction, no score is
        better than another. Has a knot wherever the curve crosses the floor."""
        left, right = self.scores[:-1] - floor, self.scores[1:] - floor
        crossed = left * right < 0
        share = left[crossed] / (left[crossed] - right[crossed])
        knots = self.layers[:-1][crossed] + share * np.diff(self.layers)[crossed]
        layers = np.union1d(self.layers, knots)
        return Curve(layers, np.maximum(np.interp(layers, self.layers, self.scores), floor), self.depth)

    def envelope(self) -> Curve:
        """The highest score at each average exit layer or below it."""
        return Curve(self.layers, np.maximum.accumulate(self.scores), self.depth)


def curve_of(points: Sequence[OperatingPoint], depth: int) -> Curve:
    """The trade-off curve through the given operating points of one criterion."""
    curve = Curve.of(points, depth)
    return curve if len({point.tolerance for point in points}) == 1 else curve.envelope()


def relative_score(score: npt.ArrayLike, reference: float) -> npt.NDArray:
    """The score in percent of the reference. Raises BerxitError if the reference is not above zero."""
    if not reference > 0:
        raise BerxitError(
            f"the reference score is {reference:.3f}: relative scores need one above 0. Train the reference longer"
        )
    return 100 * np.asarray(score) / reference


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over runs (seeds) at equal average exit layer, on the range that all curves cover."""
    low, high = max(c.layers[0] for c in curves), min(c.layers[-1] for c in curves)
    knots = np.unique(np.concatenate([c.layers for c in curves]))
    knots = np.unique(np.clip(knots, low, high))
    return Curve(knots, np.mean([np.interp(knots, c.layers, c.scores) for c in curves], axis=0), curves[0].depth)


@dataclass(frozen=True)
class Area:
    """Area of one curve above another."""

    area: float
    """Area between the curves where the first is above, in percent x layers, the units of the paper's figure 4."""
    layers: float
    """The range of average exit layers that both curves cover."""

    @property
    def mean(self) -> float:
        """Mean difference over the range in percentage points, comparable between models of different depth."""
        return self.area / self.layers if self.layers else 0.0


def area_above(first: Curve, second: Curve, until: float = np.inf) -> Area:
    """The area of ``first`` above ``second``: the integral of max(0, first - second) over the average exit layer.

    The range is the average exit layers that both curves cover, up to ``until``. The integral is exact: both curves are
    piecewise linear, so every piece is a trapezoid, or a triangle if they cross.

    The paper reports such areas for its figure 4 without a definition: 13.5 for Alternating above Joint on RTE, and 0.4
    for Joint above Alternating. With the axes of that figure (relative score in percent over average exit layer) the
    unit is percent x layers, as here. Over saved layers in percent, the integral would be 100 / n times as large.
    """
    low = max(first.layers[0], second.layers[0])
    high = min(first.layers[-1], second.layers[-1], until)
    if high <= low:
        return Area(0.0, 0.0)
    knots = np.concatenate([first.layers, second.layers, [low, high]])
    knots = np.unique(knots[(knots >= low) & (knots <= high)])
    difference = np.interp(knots, first.layers, first.scores) - np.interp(knots, second.layers, second.scores)
    left, right, width = difference[:-1], difference[1:], np.diff(knots)
    above_left, above_right = np.maximum(left, 0), np.maximum(right, 0)
    cross = left * right < 0
    triangles = (above_left + above_right) ** 2 / (2 * np.where(cross, np.abs(right - left), 1))
    pieces = np.where(cross, triangles, (above_left + above_right) / 2)
    return Area(float(pieces @ width), float(high - low))
