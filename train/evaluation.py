"""One pass over the data, every layer's output kept; every score, curve and threshold is computed from it."""

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
from berxit.runtime.metrics import positive_class
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, criterion_named, exit_layers, exit_layers_at
from berxit.runtime.progress import Progress, silent
from berxit.runtime.storage import replacing
from berxit.runtime.tokenization import TextTokenizer
from berxit.train.encoding import EncodedExamples
from berxit.train.metrics import METRICS, scores
from berxit.train.modeling import MultiExitModel

TOLERANCE = 0.5
"""Of patience on regression where nothing better was searched for: the policy's own default."""


@dataclass(frozen=True)
class Predictions:
    """What every exit said of N examples, in the order of the file."""

    logits: npt.NDArray[np.float32]
    """(N, n, C)"""
    lte: npt.NDArray[np.float32] | None
    """(N, n), or None without LTE."""
    labels: npt.NDArray
    """(N,)"""
    metric: str
    ids: npt.NDArray | None = None
    """(N,) which row of its file each example is, from 0, rows that were left out not counted; None in a pass that was
    made by hand."""
    exits: tuple[int, ...] = ()
    """(n,) the layers that were asked, ascending, the last one included; empty: all."""
    names: tuple[str, ...] = ()
    """(C,) class names; empty for regression, and in a pass that was stored before names were."""
    reference: npt.NDArray | None = None
    """(N,) what counts as full depth, where that is not the last exit: for a bundle in another precision the
    checkpoint's last exit."""

    @property
    def layers(self) -> int:
        return self.logits.shape[1]

    @property
    def exit_layers(self) -> npt.NDArray[np.int64]:
        """(n,) which layer of the model each of ours is."""
        return np.array(self.exits or range(1, self.layers + 1))

    def at_exits(self, exits: Sequence[int]) -> Predictions:
        """The pass of a model that has no other exits than these layers: ascending, the last layer among them."""
        columns = np.array(exits) - 1
        lte = None if self.lte is None else self.lte[:, columns]
        return replace(self, logits=self.logits[:, columns], lte=lte, exits=tuple(exits))

    @property
    def regression(self) -> bool:
        return self.logits.shape[2] == 1

    def answers(self) -> npt.NDArray:
        """(N, n) class numbers, or values for regression."""
        return self.logits[..., 0] if self.regression else self.logits.argmax(axis=-1)

    @property
    def full_depth(self) -> npt.NDArray:
        """(N,) the predictions that rules compare with: the checkpoint's at full depth."""
        return self.answers()[:, -1] if self.reference is None else self.reference

    @property
    def full_depth_score(self) -> float:
        """The score of ``full_depth``, computed as the points of a curve are, so that rounding separates no equals."""
        return float(scores(self.metric, self.full_depth[None], self.labels)[0])

    @property
    def positive(self) -> str | None:
        """The class that F1 scores; None for another metric."""
        return positive_class(self.metric, self.names)

    @property
    def constant(self) -> Constant:
        """The best prediction that is the same for every example, and its score."""
        return constant_prediction(self.metric, self.labels, self.logits.shape[2])

    def at_chance(self, answers: npt.NDArray) -> bool:
        """True where predictions (N,) score no better than ``constant``, within sampling error."""
        return at_chance(self.metric, answers, self.labels, self.logits.shape[2])

    def check(self, where: str = "the stored pass") -> None:
        """Raises InputError for labels, BerxitError for outputs, whose score cannot be measured."""
        check_labels(self.metric, self.labels, where)
        check_outputs(self.metric, self.logits, self.exit_layers.tolist(), where)

    def score(self, answers: npt.NDArray, metric: str | None = None) -> float:
        """The task's metric, or another, of answers (N,)."""
        return METRICS[metric or self.metric](answers, self.labels)

    def save(self, path: Path) -> None:
        """Replaces a file as a whole: an interruption leaves what was there before."""
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
    """Where training and passes run: a GPU where there is one."""
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
    """Runs all layers on all examples once, on the device where the model is.

    ``source``: where the examples are from, for errors. Raises InputError for labels on which the metric measures
    nothing, before the pass; BerxitError for outputs that have no score.
    """
    check_labels(model.config.metric, examples.labels, source)
    encoded = EncodedExamples(examples, tokenizer, progress)
    model.eval()
    logits = np.empty((len(examples), model.layers, model.config.num_labels), dtype=np.float32)
    lte = np.empty((len(examples), model.layers), dtype=np.float32) if model.config.lte else None
    by_length = np.argsort(encoded.lengths, kind="stable")  # so that short rows are not padded to long ones
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
    """The score of each layer when all examples exit there, by the task's metric or another: (n,)."""
    answers = predictions.answers()
    return [predictions.score(answers[:, layer], metric) for layer in range(predictions.layers)]


def default_criterion(predictions: Predictions) -> str:
    """Confidence for classes; for regression LTE where the model has it, else patience."""
    if not predictions.regression:
        return "confidence"
    return "lte" if predictions.lte is not None else "patience"


@dataclass(frozen=True)
class OperatingPoint:
    """What one threshold gives: a point of the trade-off curve."""

    threshold: float
    average_exit_layer: float
    score: float
    histogram: tuple[int, ...]
    """How many examples left at each of the model's layers."""
    tolerance: float = TOLERANCE
    """Patience on regression: the largest difference that still counts as agreement, in label units."""

    @property
    def saved_layers(self) -> float:
        """1 - average exit layer / n."""
        return 1 - self.average_exit_layer / len(self.histogram)


def operating_point(
    predictions: Predictions, policy: ExitPolicy, certainty: npt.NDArray | None = None
) -> OperatingPoint:
    """What the policy does on the stored pass; ``certainty`` (N, n) spares computing it again for another threshold."""
    if certainty is None:
        certainty = certainties(policy, predictions.logits, predictions.lte)
    places = exit_layers(policy, certainty)
    chosen = np.take_along_axis(predictions.answers(), places[:, None] - 1, axis=1)[:, 0]
    layers = predictions.exit_layers[places - 1]
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
    """The curve of a criterion: one point per threshold, from the one stored pass, all of them at once.

    ``tolerance``: patience on regression. Raises InputError for a criterion or a threshold that cannot be.
    """
    places = places_at(predictions, criterion, thresholds, tolerance)
    chosen = answers_at(predictions, places)
    layers = predictions.exit_layers
    histograms = np.zeros((len(places), layers[-1]), dtype=np.int64)
    counts = [(places == place).sum(axis=1) for place in range(1, predictions.layers + 1)]
    histograms[:, layers - 1] = np.stack(counts, axis=1)
    averages = (histograms @ np.arange(1, layers[-1] + 1)) / places.shape[1]
    found = zip(thresholds, averages, scores(predictions.metric, chosen, predictions.labels), histograms, strict=True)
    return [OperatingPoint(float(t), float(a), float(s), tuple(int(c) for c in h), tolerance) for t, a, s, h in found]


def places_at(
    predictions: Predictions, criterion: str, thresholds: npt.NDArray | Sequence[float], tolerance: float = TOLERANCE
) -> npt.NDArray[np.integer]:
    """Which of the pass's exits (1 to n) each example leaves at, under each of T thresholds: (T, N).

    Raises as ``trade_off`` does.
    """
    policy = ExitPolicy.uniform(criterion, thresholds[0], predictions.layers, tolerance)
    policy.check(regression=predictions.regression, lte=predictions.lte is not None)
    certainty = certainties(policy, predictions.logits, predictions.lte)
    return exit_layers_at(policy, certainty, [float(t) for t in thresholds])


def answers_at(predictions: Predictions, places: npt.NDArray) -> npt.NDArray:
    """What is answered there: places (T, N) -> class numbers or values (T, N)."""
    return predictions.answers()[np.arange(places.shape[1]), places - 1]


def operating_points(predictions: Predictions, criterion: str) -> list[OperatingPoint]:
    """All that a criterion offers on this data: its candidate thresholds; patience on regression under each tolerance.

    Raises InputError for a criterion that cannot work here.
    """
    thresholds = candidate_thresholds(predictions, criterion)
    counts = CRITERIA[criterion].counts
    tried = candidate_tolerances(predictions) if counts and predictions.regression else [TOLERANCE]
    found = [trade_off(predictions, criterion, thresholds, tolerance) for tolerance in tried]
    for points in found:
        check_never(points[-1], predictions, criterion)
    return [point for points in found for point in points]


def check_never(point: OperatingPoint, predictions: Predictions, criterion: str) -> None:
    """Raises BerxitError unless every row exits at the last layer at the criterion's ``never``, which ``point`` is.

    Every rule falls back on full depth, so a criterion whose bounds are wrong would break its guarantee.
    """
    early = sum(point.histogram[: int(predictions.exit_layers[-1]) - 1])
    if early:
        raise BerxitError(
            f"criterion '{criterion}': {early} rows exit early at its threshold 'never', {point.threshold:g}:"
            " fix never() or bounds() of its class"
        )


def applicable_criteria(predictions: Predictions) -> list[str]:
    """The criteria that can work on this model, in the order of CRITERIA."""
    return [
        name
        for name, criterion in CRITERIA.items()
        if (criterion.for_regression or not predictions.regression)
        and not (criterion.needs_lte and predictions.lte is None)
    ]


def candidate_tolerances(predictions: Predictions) -> list[float]:
    """For patience on regression: the 10th to 90th percentile of how far neighbouring exits' answers differ.

    A fixed number would mean something else on every scale of labels. A single exit has no neighbour: the default.
    """
    differences = np.abs(np.diff(predictions.answers(), axis=1))
    spread = np.unique(np.quantile(differences, np.arange(0.1, 0.95, 0.1))) if differences.size else np.array([])
    return [float(tolerance) for tolerance in spread if tolerance > 0] or [TOLERANCE]


def candidate_thresholds(predictions: Predictions, criterion: str, count: int = 200) -> list[float]:
    """Thresholds from always to never stopping, evenly spread over the certainties that this data has.

    Each lies midway between two certainties, so that no row sits on the edge and rounding on a device moves none.
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
    middles = middles[(middles > values[:-1]) & (middles < values[1:])]  # neighbouring floats have none between them
    spread = middles[np.linspace(0, len(middles) - 1, min(count - 2, len(middles))).astype(int)]
    return [always, *(spread if chosen.higher_is_surer else spread[::-1]).tolist(), never]
