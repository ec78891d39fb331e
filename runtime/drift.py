"""Drift: do live inputs exit, and get predictions, as the calibration data did? No labels are needed.

The reference contains three histograms of the calibration data: exit layers, certainties at the exit, predictions. Live
inputs are counted in the same bins. An e-value measures the evidence that they follow another distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import BerxitError

PRIOR = 0.5
"""Pseudo-count of each bin (Jeffreys prior)."""
BINS = 8
"""Number of bins of certainties, and of the values of a regression model."""
WINDOWS = (250, 2500)
"""Numbers of inputs after which the evidence starts at zero again. The short window finds a large shift soon after many
normal inputs, the long one finds a small shift."""
PER_INPUTS = 1000
"""Number of inputs for which the false-alarm probability is stated."""


@dataclass(frozen=True)
class Histogram:
    """Counts of the calibration data."""

    counts: tuple[int, ...]
    """(K,) number of examples in each bin."""
    edges: tuple[float, ...] = ()
    """(K - 1,) ascending borders between bins of a number: value x is in bin k if edges[k - 1] < x <= edges[k]. Empty
    for bins that are numbered from 0: exits and classes."""

    @classmethod
    def of_numbers(cls, values: npt.NDArray) -> Histogram:
        """Bins with about equally many of the values (N,)."""
        values = np.asarray(values, dtype=np.float64)
        edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS, method="lower"))
        bins = np.searchsorted(edges, values, side="left")
        return cls(tuple(np.bincount(bins, minlength=len(edges) + 1).tolist()), tuple(edges.tolist()))

    @classmethod
    def of_classes(cls, numbers: npt.NDArray, classes: int) -> Histogram:
        """One bin per class: class numbers (N,) from 0 to ``classes`` - 1."""
        return cls(tuple(np.bincount(numbers, minlength=classes).tolist()))

    def bin_of(self, value: float) -> int:
        """The bin of one value, or of one class number."""
        return int(np.searchsorted(self.edges, value, side="left")) if self.edges else int(value)


@dataclass(frozen=True)
class Reference:
    """Histograms of the calibration data under the calibrated policy."""

    exits: Histogram
    """One bin per layer of the model."""
    certainties: Histogram
    """Certainties at the exit."""
    predictions: Histogram
    """One bin per class, bins of the values of a regression model, or one bin per number of labels of a set."""

    @classmethod
    def of(
        cls, layers: npt.NDArray, certainty: npt.NDArray, predicted: npt.NDArray, classes: int, *, depth: int
    ) -> Reference:
        """The reference of N examples.

        Args:
            layers: (N,) exit layers, from 1.
            certainty: (N,) certainties at these exits.
            predicted: (N,) bins of the predictions there (``Kind.bins``), or values for regression.
            classes: number of bins; 1 for values.
            depth: number of layers of the model.
        """
        named = Histogram.of_numbers(predicted) if classes == 1 else Histogram.of_classes(predicted, classes)
        return cls(Histogram.of_classes(layers - 1, depth), Histogram.of_numbers(certainty), named)

    def check(self, exits: Sequence[int], where: str) -> None:
        """Raises BerxitError unless every histogram counts the same examples, and ``exits`` (n,) at each layer."""
        for name in ("certainties", "predictions"):
            histogram: Histogram = getattr(self, name)
            counts, edges = histogram.counts, histogram.edges
            bins = len(edges) + 1 if edges or name == "certainties" else len(counts)
            rising = all(low < high for low, high in pairwise(edges))
            if (len(counts), sum(counts)) != (bins, sum(exits)) or min(counts, default=-1) < 0 or not rising:
                raise BerxitError(f"{where}: reference: {name} are damaged. Calibrate and export again")
        if self.exits.counts != tuple(exits) or self.exits.edges:
            raise BerxitError(f"{where}: reference: exits differ from histogram. Calibrate and export again")


class DriftTest:
    """Sequential test of whether live inputs follow the distribution of a histogram.

    The evidence is a Bayes factor with Dirichlet priors: "live inputs and calibration data have different
    distributions" over "both have the same". The reference is a sample, too, so few calibration rows give little
    evidence. If nothing changed, the factor is a nonnegative martingale with mean 1 under the prior, so it exceeds
    1 / a with probability at most a (Ville's inequality), however often it is read.
    """

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._reference = [PRIOR + count for count in histogram.counts]
        self._total = sum(self._reference)
        self.restart()

    def restart(self) -> None:
        """Sets the evidence and the counts to zero."""
        self.counts = [0] * len(self._reference)
        self.inputs = 0
        self.log_evidence = 0.0

    def add(self, number: int) -> None:
        """Counts one input in bin ``number``."""
        seen = self.counts[number]
        other = (PRIOR + seen) / (PRIOR * len(self.counts) + self.inputs)
        same = (self._reference[number] + seen) / (self._total + self.inputs)
        self.log_evidence += math.log(other / same)
        self.counts[number] = seen + 1
        self.inputs += 1


class DriftDetector:
    """The tests of one reference: three histograms, each over a short and a long window.

    The evidence of a window is the mean of its three factors, which is a valid factor again. An alarm stays until
    ``restart``.
    """

    def __init__(self, reference: Reference, false_alarms: float) -> None:
        """``false_alarms``: largest probability of an alarm in PER_INPUTS inputs that follow the reference."""
        histograms = (reference.exits, reference.certainties, reference.predictions)
        self._windows = [(size, [DriftTest(histogram) for histogram in histograms]) for size in WINDOWS]
        self._limits = [math.log(len(WINDOWS) * max(1, PER_INPUTS / size) / false_alarms) for size in WINDOWS]
        self._bins = [histogram.bin_of for histogram in histograms]
        self.restart()

    def restart(self) -> None:
        """Forgets all inputs and the alarm."""
        for _, tests in self._windows:
            for test in tests:
                test.restart()
        self.inputs = 0
        self.alarm: int | None = None
        """Number of inputs until the first alarm; None without an alarm."""

    def add(self, layer: int, certainty: float, predicted: float) -> bool:
        """Counts one input: exit layer from 1, certainty there, class number or value. Returns True at the first
        alarm."""
        self.inputs += 1
        bins = [bin_of(value) for bin_of, value in zip(self._bins, (layer - 1, certainty, predicted), strict=True)]
        alarm = False
        for (size, tests), limit in zip(self._windows, self._limits, strict=True):
            if tests[0].inputs == size:
                for test in tests:
                    test.restart()
            for test, number in zip(tests, bins, strict=True):
                test.add(number)
            alarm |= _log_mean([test.log_evidence for test in tests]) > limit
        if not alarm or self.alarm is not None:
            return False
        self.alarm = self.inputs
        return True


def _log_mean(logs: Sequence[float]) -> float:
    """Logarithm of the mean of exp(logs), without overflow."""
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))
