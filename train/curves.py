"""Curves of score over average exit layer, and the numbers the paper reads off them (section 5.3, figures 4 to 6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import BerxitError
from berxit.train.evaluation import OperatingPoint, Predictions, operating_points

SAVED = (0.3, 0.5, 0.7)
"""Shares of saved layers at which reports read a curve."""


@dataclass(frozen=True)
class Curve:
    """Score over average exit layer: straight lines between P points. Not defined beyond the first and the last."""

    layers: npt.NDArray[np.float64]
    """(P,) average exit layers, ascending, each once."""
    scores: npt.NDArray[np.float64]
    """(P,) in the metric's own units, or in percent of a reference."""
    depth: int
    """n, the layers of the model."""

    @classmethod
    def of(cls, points: Iterable[OperatingPoint], depth: int) -> Curve:
        """Through operating points, in any order. Of several with one average exit layer the best counts."""
        best: dict[float, float] = {}
        for point in points:
            layer = point.average_exit_layer
            best[layer] = max(point.score, best.get(layer, point.score))
        layers = sorted(best)
        return cls(np.array(layers), np.array([best[layer] for layer in layers]), depth)

    @classmethod
    def layer_wise(cls, scores: Sequence[float]) -> Curve:
        """All examples exit at one layer: scores (n,)."""
        return cls(np.arange(1, len(scores) + 1, dtype=np.float64), np.array(scores, dtype=np.float64), len(scores))

    def relative_to(self, reference: float) -> Curve:
        """The same in percent of ``reference``: relative scores."""
        return Curve(self.layers, relative_score(self.scores, reference), self.depth)

    def at(self, average_exit_layer: float) -> float | None:
        """The score there, interpolated; None beyond the curve's ends."""
        if not self.layers[0] <= average_exit_layer <= self.layers[-1]:
            return None
        return float(np.interp(average_exit_layer, self.layers, self.scores))

    def at_saved(self, share: float) -> float | None:
        """The score where ``share`` (0 to 1) of the layers is saved, interpolated."""
        return self.at(self.depth * (1 - share))

    def cheapest(self, score: float) -> float | None:
        """The smallest average exit layer of a point that reaches ``score``; None where none does."""
        good = self.layers[self.scores >= score]
        return float(good[0]) if len(good) else None

    def envelope(self) -> Curve:
        """The best that any point reaches at this cost or less."""
        return Curve(self.layers, np.maximum.accumulate(self.scores), self.depth)


def criterion_curve(predictions: Predictions, criterion: str) -> Curve:
    """The trade-off curve of a criterion, from a stored pass.

    Patience on regression has two numbers to choose, patience and tolerance: its curve is the best that any pair
    reaches at this cost or less, which favours patience. Raises InputError for a criterion that cannot work here.
    """
    return curve_of(operating_points(predictions, criterion), int(predictions.exit_layers[-1]))


def curve_of(points: Sequence[OperatingPoint], depth: int) -> Curve:
    """``criterion_curve``, through points that are there already."""
    curve = Curve.of(points, depth)
    return curve if len({point.tolerance for point in points}) == 1 else curve.envelope()


def relative_score(score: npt.ArrayLike, reference: float) -> npt.NDArray:
    """Percent of the reference's score. Raises BerxitError for a reference that is not above zero."""
    if not reference > 0:
        raise BerxitError(f"the reference score is {reference:.3f}: percentages of it mean nothing. Train it longer")
    return 100 * np.asarray(score) / reference


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over runs (seeds) at equal average exit layer, on the range that all of them cover."""
    low, high = max(c.layers[0] for c in curves), min(c.layers[-1] for c in curves)
    knots = np.unique(np.concatenate([c.layers for c in curves]))
    knots = np.unique(np.clip(knots, low, high))
    return Curve(knots, np.mean([np.interp(knots, c.layers, c.scores) for c in curves], axis=0), curves[0].depth)


@dataclass(frozen=True)
class Area:
    """How far one curve lies above another."""

    area: float
    """Percent x layers: what lies between the curves where the first is above, in the units of the paper's figure 4."""
    layers: float
    """The range of average exit layers that both curves cover."""

    @property
    def mean(self) -> float:
        """Percentage points per layer of the range: comparable between models of different depth."""
        return self.area / self.layers if self.layers else 0.0


def area_above(first: Curve, second: Curve, until: float = np.inf) -> Area:
    """The area of ``first`` above ``second``: the integral of max(0, first - second) over the average exit layer.

    The paper gives such areas for its figure 4, as 13.5 of Alternating above Joint on RTE and 0.4 the other way round,
    without a definition; on the figure's axes, relative score in percent over average exit layer, the unit is
    percent x layers, and so it is here. (Over saved layers in percent, the same integral is 100 / n times as large.)
    It runs over the average exit layers that both curves cover, ``until`` some layer, and is exact: both are piecewise
    linear, so a straight line between knots gives a trapezoid, or a triangle where they cross.
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
