"""The pass over the data, which stores the output of every exit. Scores, curves and thresholds are computed from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from berxit.runtime.chance import Constant, at_chance, check_labels, check_outputs, constant_prediction
from berxit.runtime.errors import BerxitError
from berxit.runtime.examples import Examples
from berxit.runtime.metrics import METRICS, positive_class
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, criterion_named, exit_layers, exit_layers_at
from berxit.runtime.progress import Progress, silent
from berxit.runtime.storage import replacing
from berxit.runtime.tokenization import TextTokenizer
from berxit.train.encoding import EncodedExamples
from berxit.train.modeling import MultiExitModel

TOLERANCE = 0.5
"""Tolerance of patience on regression if none was searched for; the policy's default, in label units."""


@dataclass(frozen=True)
class Predictions:
    """Outputs of n exits for N examples, in the order of the file."""

    logits: npt.NDArray[np.float32]
    """(N, n, C)"""
    lte: npt.NDArray[np.float32] | None
    """(N, n) learned certainties; None without LTE."""
    labels: npt.NDArray
    """(N,)"""
    metric: str
    ids: npt.NDArray | None = None
    """(N,) row number of each example in its file, from 0, without skipped rows. None if the pass has no file."""
    exits: tuple[int, ...] = ()
    """(n,) layers of the model that have an exit, ascending, including the last layer. Empty: all layers."""
    names: tuple[str, ...] = ()
    """(C,) class names; empty for regression and in passes that older versions stored."""
    reference: npt.NDArray | None = None
    """(N,) predictions at full depth that rules compare with, if they are not the last exit's. For a bundle in another
    precision these are the checkpoint's."""

    @property
    def layers(self) -> int:
        """n, the number of exits in the pass."""
        return self.logits.shape[1]

    @property
    def exit_layers(self) -> npt.NDArray[np.int64]:
        """(n,) the model's layer of each exit."""
        return np.array(self.exits or range(1, self.layers + 1))

    def select_exits(self, exits: Sequence[int]) -> Predictions:
        """The pass restricted to exits at these layers: ascending, including the last layer."""
        columns = np.array(exits) - 1
        lte = None if self.lte is None else self.lte[:, columns]
        return replace(self, logits=self.logits[:, columns], lte=lte, exits=tuple(exits))

    def select_rows(self, rows: npt.NDArray[np.integer]) -> Predictions:
        """The pass over some of the rows."""

        def part(array: npt.NDArray | None) -> npt.NDArray | None:
            return None if array is None else array[rows]

        return replace(
            self,
            logits=self.logits[rows],
            labels=self.labels[rows],
            lte=part(self.lte),
            ids=part(self.ids),
            reference=part(self.reference),
        )

    @property
    def regression(self) -> bool:
        return self.logits.shape[2] == 1

    def predicted(self) -> npt.NDArray:
        """(N, n) predictions of every exit: class numbers, or values for regression."""
        return self.logits[..., 0] if self.regression else self.logits.argmax(axis=-1)

    @property
    def full_depth(self) -> npt.NDArray:
        """(N,) the checkpoint's predictions at full depth, with which rules compare."""
        return self.predicted()[:, -1] if self.reference is None else self.reference

    @property
    def full_depth_score(self) -> float:
        """The score of ``full_depth``, by the same function as the points of a curve, so that rounding cannot make
        equal scores differ."""
        return METRICS[self.metric](self.full_depth, self.labels)

    @property
    def positive(self) -> str | None:
        """The positive class of F1; None for another metric."""
        return positive_class(self.metric, self.names)

    @property
    def constant(self) -> Constant:
        """The best constant prediction (the same for every example), and its score."""
        return constant_prediction(self.metric, self.labels, self.logits.shape[2])

    def at_chance(self, predicted: npt.NDArray) -> bool:
        """True if predictions (N,) score no better than ``constant``, within sampling error."""
        return at_chance(self.metric, predicted, self.labels, self.logits.shape[2])

    def check(self, where: str = "the stored pass") -> None:
        """Raises InputError for labels on which the metric is not defined, BerxitError for outputs without a score,
        such as NaN."""
        check_labels(self.metric, self.labels, where)
        check_outputs(self.metric, self.logits, self.exit_layers.tolist(), where)

    def score(self, predicted: npt.NDArray, metric: str | None = None) -> float:
        """The score of predictions (N,) by the task's metric, or by another one."""
        return METRICS[metric or self.metric](predicted, self.labels)

    def save(self, path: Path) -> None:
        """Writes the pass to an .npz file. The file is replaced as a whole, so an interruption keeps the old one."""
        arrays: dict[str, Any] = {"logits": self.logits, "labels": self.labels, "metric": np.array(self.metric)}
        arrays["names"] = np.array(self.names, dtype=np.str_)
        for name in ("lte", "ids", "reference"):
            if (array := getattr(self, name)) is not None:
                arrays[name] = array
        with replacing(path) as scratch:
            np.savez_compressed(scratch, **arrays)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        with np.load(path, allow_pickle=False) as file:
            lte, ids, reference = (file[name] if name in file.files else None for name in ("lte", "ids", "reference"))
            names = tuple(file["names"].tolist()) if "names" in file.files else ()
            return cls(file["logits"], lte, file["labels"], str(file["metric"]), ids, names=names, reference=reference)


def best_device() -> torch.device:
    """The device of training and passes: a GPU if there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@torch.no_grad()
def predict(
    model: MultiExitModel,
    tokenizer: TextTokenizer,
    examples: Examples,
    batch_size: int = 32,
    progress: Progress = silent,
    source: str = "the data",
) -> Predictions:
    """Runs all layers on all examples once, on the model's device.

    ``source``: origin of the examples, for error messages. Raises InputError before the pass for labels on which the
    metric is not defined, and BerxitError for outputs without a score, such as NaN.
    """
    check_labels(model.config.metric, examples.labels, source)
    encoded = EncodedExamples(examples, tokenizer, progress)
    model.eval()
    logits = np.empty((len(examples), model.layers, model.config.num_labels), dtype=np.float32)
    lte = np.empty((len(examples), model.layers), dtype=np.float32) if model.config.lte else None
    by_length = np.argsort(encoded.lengths, kind="stable")  # Rows of similar length need little padding.
    with progress(len(examples)) as bar:
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            batch = encoded.collate([encoded[i] for i in rows])
            del batch["labels"]
            outputs = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
            logits[rows] = outputs.exit_logits.float().cpu().numpy()
            if lte is not None:
                lte[rows] = outputs.certainties.float().cpu().numpy()
            bar.update(len(rows))
    rows = np.arange(len(examples))
    found = Predictions(logits, lte, examples.labels, model.config.metric, rows, names=model.config.labels)
    found.check(source)
    return found


def layer_scores(predictions: Predictions, metric: str | None = None) -> list[float]:
    """(n,) the score of each exit if all examples exit there, by the task's metric or another one."""
    predicted = predictions.predicted()
    return [predictions.score(predicted[:, layer], metric) for layer in range(predictions.layers)]


def default_criterion(predictions: Predictions) -> str:
    """Confidence for classification. For regression, LTE if the model has it, else patience."""
    if not predictions.regression:
        return "confidence"
    return "lte" if predictions.lte is not None else "patience"


@dataclass(frozen=True)
class OperatingPoint:
    """Score and cost of one threshold: a point of the trade-off curve."""

    threshold: float
    average_exit_layer: float
    score: float
    histogram: tuple[int, ...]
    """(n,) number of examples that exit at each layer of the model."""
    tolerance: float = TOLERANCE
    """Patience on regression: largest difference that counts as agreement, in label units."""

    @property
    def saved_layers(self) -> float:
        """1 - average exit layer / n."""
        return 1 - self.average_exit_layer / len(self.histogram)


def operating_point(
    predictions: Predictions, policy: ExitPolicy, certainty: npt.NDArray | None = None
) -> OperatingPoint:
    """Score and cost of the policy on the stored pass. ``certainty`` (N, n): its certainties, if already computed."""
    if certainty is None:
        certainty = certainties(policy, predictions.logits, predictions.lte)
    taken = exit_layers(policy, certainty)
    chosen = np.take_along_axis(predictions.predicted(), taken[:, None] - 1, axis=1)[:, 0]
    layers = predictions.exit_layers[taken - 1]
    histogram = np.bincount(layers - 1, minlength=predictions.exit_layers[-1])
    return OperatingPoint(
        policy.thresholds[0] if policy.thresholds else 0.0,
        float(layers.mean()),
        predictions.score(chosen),
        tuple(int(n) for n in histogram),
        policy.tolerance,
    )


def trade_off(
    predictions: Predictions, criterion: str, thresholds: npt.NDArray | Sequence[float], tolerance: float = TOLERANCE
) -> list[OperatingPoint]:
    """The operating points of a criterion, one per threshold, computed together from the stored pass.

    ``tolerance``: of patience on regression. Raises InputError for a criterion that does not fit the model, and for a
    threshold out of range.
    """
    taken = exits_taken(predictions, criterion, thresholds, tolerance)
    chosen = predicted_at(predictions, taken)
    layers = predictions.exit_layers
    histograms = np.zeros((len(taken), layers[-1]), dtype=np.int64)
    counts = [(taken == number).sum(axis=1) for number in range(1, predictions.layers + 1)]
    histograms[:, layers - 1] = np.stack(counts, axis=1)
    averages = (histograms @ np.arange(1, layers[-1] + 1)) / taken.shape[1]
    found = zip(
        thresholds, averages, METRICS[predictions.metric].scores(chosen, predictions.labels), histograms, strict=True
    )
    return [OperatingPoint(float(t), float(a), float(s), tuple(int(c) for c in h), tolerance) for t, a, s, h in found]


def exits_taken(
    predictions: Predictions, criterion: str, thresholds: npt.NDArray | Sequence[float], tolerance: float = TOLERANCE
) -> npt.NDArray[np.integer]:
    """(T, N) number of the exit (1 to n) of each example under each of T thresholds. Raises as ``trade_off`` does."""
    policy = ExitPolicy.uniform(criterion, thresholds[0], predictions.layers, tolerance)
    policy.check(regression=predictions.regression, lte=predictions.lte is not None)
    certainty = certainties(policy, predictions.logits, predictions.lte)
    return exit_layers_at(policy, certainty, [float(t) for t in thresholds])


def predicted_at(predictions: Predictions, taken: npt.NDArray) -> npt.NDArray:
    """The predictions at the exits taken: exit numbers (T, N) -> class numbers or values (T, N)."""
    return predictions.predicted()[np.arange(taken.shape[1]), taken - 1]


def operating_points(predictions: Predictions, criterion: str) -> list[OperatingPoint]:
    """The operating points of all candidate thresholds of a criterion. Patience on regression: with each candidate
    tolerance.

    Raises InputError for a criterion that does not fit the model.
    """
    thresholds = candidate_thresholds(predictions, criterion)
    counts = CRITERIA[criterion].counts
    tried = candidate_tolerances(predictions) if counts and predictions.regression else [TOLERANCE]
    found = [trade_off(predictions, criterion, thresholds, tolerance) for tolerance in tried]
    for points in found:
        check_never(points[-1], predictions, criterion)
    return [point for points in found for point in points]


def check_never(point: OperatingPoint, predictions: Predictions, criterion: str) -> None:
    """Raises BerxitError unless every row exits at the last layer. ``point``: at the criterion's ``never`` threshold.

    Every rule falls back to full depth, so wrong bounds of a criterion would break the guarantee.
    """
    early = sum(point.histogram[: int(predictions.exit_layers[-1]) - 1])
    if early:
        raise BerxitError(
            f"criterion '{criterion}': {early} rows exit early at its threshold 'never', {point.threshold:g}:"
            " fix never() or bounds() of its class"
        )


def applicable_criteria(predictions: Predictions) -> list[str]:
    """The criteria that fit the model, in the order of CRITERIA."""
    return [
        name
        for name, criterion in CRITERIA.items()
        if (criterion.for_regression or not predictions.regression)
        and not (criterion.needs_lte and predictions.lte is None)
    ]


def candidate_tolerances(predictions: Predictions) -> list[float]:
    """Tolerances of patience on regression: the 10th to 90th percentile of the differences between the predictions of
    consecutive exits. They adapt to the scale of the labels. A model with a single exit gets the default.
    """
    differences = np.abs(np.diff(predictions.predicted(), axis=1))
    spread = np.unique(np.quantile(differences, np.arange(0.1, 0.95, 0.1))) if differences.size else np.array([])
    return [float(tolerance) for tolerance in spread if tolerance > 0] or [TOLERANCE]


def candidate_thresholds(predictions: Predictions, criterion: str, count: int = 200) -> list[float]:
    """Thresholds from "always exit" to "never exit", spread evenly over the certainties in the data.

    Each one is the midpoint of two certainties, so that rounding on a device changes no row's exit.
    """
    layers, outputs = predictions.layers, predictions.logits.shape[2]
    chosen = criterion_named(criterion)
    never, always = chosen.never(layers, outputs), chosen.always(layers, outputs)
    if chosen.counts:
        return chosen.grid(layers, outputs)[::-1]
    policy = ExitPolicy.uniform(criterion, never, layers)
    policy.check(regression=predictions.regression, lte=predictions.lte is not None)
    values = np.unique(certainties(policy, predictions.logits, predictions.lte)[:, :-1])
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(values.dtype)
    middles = middles[(middles > values[:-1]) & (middles < values[1:])]  # Adjacent floats have no midpoint.
    spread = middles[np.linspace(0, len(middles) - 1, min(count - 2, len(middles))).astype(int)]
    return [always, *(spread if chosen.higher_is_more_certain else spread[::-1]).tolist(), never]
