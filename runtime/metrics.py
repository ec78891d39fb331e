"""Metrics of all kinds of tasks, in numpy alone. Tests compare them with scikit-learn and scipy.

A new metric is one entry in METRICS; ``register_metric`` adds a user's own. A metric of values is a correlation: 1 at
best, 0 for a constant prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError, first_line
from berxit.runtime.extensions import UnregisteredError, check_name, is_reference, load_object
from berxit.runtime.heads import classes_in, head_count, pack
from berxit.runtime.spans import count_spans, right_spans

Scores = npt.NDArray[np.float64]


def _classes(labels: npt.NDArray, classes: int) -> Sequence[float]:
    return range(classes)


@dataclass(frozen=True)
class Metric:
    """A score of predictions against labels; higher is better."""

    name: str
    description: str
    """Definition, for the documentation."""
    scores: Callable[[npt.NDArray, npt.NDArray], Scores]
    """Predictions (T, N), labels (N,) -> (T,): T sets of predictions for the same N rows. A trade-off curve needs the
    scores of hundreds of thresholds."""
    values: bool = False
    """True for a metric of regression: predictions and labels are numbers. False for class numbers."""
    needs_positive: bool = False
    """True if it scores one class, the second of two."""
    second: str | None = None
    """The metric that GLUE reports with it; for macro-f1, accuracy."""
    since: int = 1
    """The first schema version of bundles whose readers know the metric."""
    of: str | None = None
    """The kind of task (``runtime.kinds``); None: classification, or regression for ``values``."""
    constants: Callable[[npt.NDArray, int], Sequence[float]] = _classes
    """(labels (N,), C) -> the predictions that compete as the best constant one. Not for ``values``."""

    @property
    def kind(self) -> str:
        """Name in runtime.kinds.KINDS of the tasks that it scores."""
        return self.of or ("regression" if self.values else "classification")

    def __call__(self, predictions: npt.NDArray, labels: npt.NDArray) -> float:
        """The score of predictions (N,) against labels (N,)."""
        return float(self.scores(predictions[None], labels)[0])


def accuracy(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """Share of correct predictions."""
    return np.asarray((predictions == labels).mean(axis=1), dtype=np.float64)


def f1(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """F1 of class 1, as in GLUE's MRPC and QQP; 0 if neither predictions nor labels contain it."""
    predicted, true = predictions == 1, labels == 1
    total = predicted.sum(axis=1) + true.sum()
    return np.asarray(2 * (predicted & true).sum(axis=1) / np.where(total == 0, 1, total), dtype=np.float64)


def macro_f1(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """Mean F1 of the classes that occur in the labels. A class that is only predicted lowers the precision of the
    others; as a class of the mean, it would make the number of classes depend on the predictions."""
    predictions, labels = predictions.astype(np.int64), labels.astype(np.int64)
    sets, classes = len(predictions), int(max(predictions.max(), labels.max())) + 1
    first = np.arange(sets)[:, None] * classes
    predicted = np.bincount((first + predictions).ravel(), minlength=sets * classes).reshape(sets, classes)
    correct = np.bincount((first + labels)[predictions == labels], minlength=sets * classes).reshape(sets, classes)
    true = np.bincount(labels, minlength=classes)
    scores = 2 * correct[:, true > 0] / (predicted + true)[:, true > 0]
    return np.asarray(scores.mean(axis=1), dtype=np.float64)


def micro_f1(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """F1 over all labels of all texts, for sets of labels as bits (``runtime.kinds``); 0 without any label."""
    named, true = (set_sizes(numbers) for numbers in (predictions, labels))
    total = named.sum(axis=1) + true.sum()
    return np.asarray(2 * set_sizes(predictions & labels).sum(axis=1) / np.where(total == 0, 1, total), np.float64)


def multilabel_macro_f1(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """Mean F1 of the labels that occur, for sets of labels as bits (``runtime.kinds``)."""
    found = []
    for place in range(int(labels.max(initial=0)).bit_length()):
        predicted, true = predictions >> place & 1, labels >> place & 1
        if true.any():
            found.append(2 * (predicted & true).sum(axis=1) / (predicted.sum(axis=1) + true.sum()))
    return np.mean(found, axis=0) if found else np.zeros(len(predictions))


def span_f1(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """F1 over all spans of all texts, for numbers of spans (``runtime.spans``), as seqeval's f1_score: a span is right
    if its words and its label are right. 0 without any span."""
    total = count_spans(predictions).sum(axis=1) + count_spans(labels).sum()
    return np.asarray(2 * right_spans(predictions).sum(axis=1) / np.where(total == 0, 1, total), np.float64)


def _no_span(labels: npt.NDArray, classes: int) -> list[float]:
    return [0]


def heads_accuracy(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """Mean over the heads of their accuracy, for classes of heads as numbers (``runtime.heads``)."""
    return np.mean(scores_of_heads(accuracy, predictions, labels), axis=0)


def heads_macro_f1(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """Mean over the heads of their macro-f1, for classes of heads as numbers (``runtime.heads``)."""
    return np.mean(scores_of_heads(macro_f1, predictions, labels), axis=0)


def scores_of_heads(
    scores: Callable[[npt.NDArray, npt.NDArray], Scores], predictions: npt.NDArray, labels: npt.NDArray
) -> Scores:
    """The scores of each head: ``scores`` of a metric of classes, predictions (T, N), labels (N,) -> (H, T)."""
    heads = head_count(labels)
    # With 1 added, a head that is not in a prediction is class 0, which no label has.
    of_heads = zip(*(np.moveaxis(classes_in(each, heads) + 1, -1, 0) for each in (predictions, labels)), strict=True)
    return np.stack([scores(predicted, true) for predicted, true in of_heads])


def _frequent_classes(labels: npt.NDArray, classes: int) -> list[float]:
    """The most frequent class of each head."""
    heads = head_count(labels)
    most = [np.bincount(column).argmax() for column in classes_in(labels, heads).T]
    return [int(pack(np.array(most), range(heads)))]


def set_sizes(numbers: npt.NDArray) -> npt.NDArray[np.int64]:
    """Number of labels of each set: (...,) -> (...,)."""
    return sum(
        (numbers >> place & 1 for place in range(int(numbers.max(initial=0)).bit_length())), np.zeros_like(numbers)
    )


def _frequent_sets(labels: npt.NDArray, classes: int) -> list[float]:
    """The sets of the k most frequent labels, for k = 0, 1, ..., C."""
    counts = [int((labels >> place & 1).sum()) for place in range(classes)]
    order = sorted(range(classes), key=lambda place: -counts[place])
    return [sum(1 << place for place in order[:k]) for k in range(classes + 1)]


def average_precision(scores: npt.NDArray, labels: npt.NDArray) -> float:
    """Mean over the labels that occur of the area under precision over recall, as scikit-learn's macro average.

    ``scores`` (N, C), ``labels`` (N, C) 1 for a label of the text. 0 without any label.
    """
    found = []
    for score, true in zip(scores.T, labels.T, strict=True):
        if not true.any():
            continue
        order = np.argsort(-score, kind="stable")
        last = np.append(np.diff(score[order]) != 0, True)  # texts with equal scores are one step
        hits, count = np.cumsum(true[order])[last], np.flatnonzero(last) + 1
        recall_steps = np.diff(np.concatenate([[0], hits])) / true.sum()
        found.append(float((recall_steps * hits / count).sum()))
    return float(np.mean(found)) if found else 0.0


def pearson(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """Linear correlation; 0 if predictions or labels are constant."""
    x, y = centered(predictions), centered(labels)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y)
    return np.where(norms == 0, 0.0, (x * y).sum(axis=1) / np.where(norms == 0, 1.0, norms))


def centered(values: npt.NDArray) -> Scores:
    """(..., N) -> values minus their mean, multiplied by a power of two, so that the largest one is near 1.

    Equal values are zeros. A correlation does not depend on the factor. Without it, squares underflow for values of
    1e-200, and overflow for values of 1e200.
    """
    unit = _near_one(np.asarray(values, dtype=np.float64))
    constant = (unit == unit[..., :1]).all(axis=-1, keepdims=True)  # the mean of equal values can differ from them
    return _near_one(np.where(constant, 0.0, unit - unit.mean(axis=-1, keepdims=True)))


def _near_one(values: Scores) -> Scores:
    """(..., N) multiplied by the power of two with which the largest absolute value is in [0.5, 1). Exact."""
    return np.ldexp(values, -np.frexp(np.abs(values).max(axis=-1, keepdims=True))[1])


def spearman(predictions: npt.NDArray, labels: npt.NDArray) -> Scores:
    """Rank correlation; equal values have their mean rank."""
    return pearson(mean_ranks(predictions), mean_ranks(labels[None])[0])


def confusion_matrix(predictions: npt.NDArray, labels: npt.NDArray, classes: int) -> npt.NDArray[np.int64]:
    """Number of rows of each label with each prediction: class numbers (N,), (N,) -> (C, C), indexed [label,
    prediction]."""
    cells = np.bincount(labels.astype(np.int64) * classes + predictions.astype(np.int64), minlength=classes**2)
    return cells.reshape(classes, classes)


def mean_ranks(values: npt.NDArray) -> Scores:
    """(T, N) -> ranks within each row, from 0; equal values have their mean rank."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    differs = ordered[:, 1:] != ordered[:, :-1]
    edge = np.ones((len(values), 1), dtype=bool)
    places = np.arange(values.shape[1])
    first = np.maximum.accumulate(np.where(np.hstack([edge, differs]), places, 0), axis=1)
    after = np.where(np.hstack([differs, edge]), places, len(places))
    last = np.minimum.accumulate(after[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, axis=1)
    return ranks


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "share of correct predictions", accuracy),
        Metric(
            "f1",
            "F1 of the positive class; 0 if neither predictions nor labels contain it",
            f1,
            needs_positive=True,
            second="accuracy",
        ),
        Metric("macro-f1", "mean F1 of the classes that occur in the labels", macro_f1, second="accuracy", since=2),
        Metric(
            "micro-f1",
            "F1 over all labels of all texts",
            micro_f1,
            second="multilabel-macro-f1",
            since=3,
            of="multilabel",
            constants=_frequent_sets,
        ),
        Metric(
            "multilabel-macro-f1",
            "mean F1 of the labels that occur",
            multilabel_macro_f1,
            second="micro-f1",
            since=3,
            of="multilabel",
            constants=_frequent_sets,
        ),
        Metric(
            "span-f1",
            "F1 over all spans of all texts, as seqeval's f1_score",
            span_f1,
            second="accuracy",
            since=3,
            of="tokens",
            constants=_no_span,
        ),
        Metric(
            "heads-accuracy",
            "mean over the heads of their accuracy",
            heads_accuracy,
            second="accuracy",
            since=3,
            of="heads",
            constants=_frequent_classes,
        ),
        Metric(
            "heads-macro-f1",
            "mean over the heads of their macro-f1",
            heads_macro_f1,
            second="accuracy",
            since=3,
            of="heads",
            constants=_frequent_classes,
        ),
        Metric(
            "pearson",
            "linear correlation; 0 for constant predictions",
            pearson,
            values=True,
            second="spearman",
        ),
        Metric(
            "spearman",
            "rank correlation; equal values have their mean rank",
            spearman,
            values=True,
            second="pearson",
        ),
    )
}
BUILT_IN = frozenset(METRICS)


def metric_named(name: str) -> Metric:
    """Metric of METRICS. Raises UnregisteredError for an unknown name."""
    if name not in METRICS:
        raise UnregisteredError("metric", name, METRICS)
    return METRICS[name]


def register_metric(metric: Metric) -> str:
    """Adds a user's metric to METRICS and returns its name. A second one of the same name replaces the first.

    Raises InputError for a built-in name, scores of a wrong shape, a metric for which lower is better, and a metric of
    values that is no correlation.
    """
    if not isinstance(metric, Metric):
        found = getattr(metric, "__name__", type(metric).__name__)
        raise InputError(f"{found} is no metric: it must be an instance of berxit.runtime.metrics.Metric")
    name = check_name(metric.name, "the metric", BUILT_IN)
    if metric.second is not None and (metric.second not in METRICS or METRICS[metric.second].kind != metric.kind):
        raise InputError(f"metric {name}: second is '{metric.second}', which is no metric of the same kind")
    _check(metric)
    METRICS[name] = metric
    return name


def metric_from(text: str, kind: str = "") -> str:
    """Name of the metric that a user chose: a name of METRICS, or FILE.py:NAME or MODULE:NAME, which is imported and
    registered. With ``kind``, a name may omit the kind: macro-f1 is multilabel-macro-f1. Raises InputError as
    ``register_metric`` and ``load_object`` do."""
    if f"{kind}-{text}" in METRICS:
        return f"{kind}-{text}"
    return register_metric(load_object(text)) if is_reference(text) else metric_named(text).name


def _check(metric: Metric) -> None:
    """Raises InputError unless the metric scores correct, wrong and constant predictions as its kind requires."""
    labels = np.array([0, 1, 0, 1, 1, 0, 1, 1])
    sets = np.stack([labels, 1 - labels, np.zeros_like(labels)])
    if metric.values:
        labels, sets = labels.astype(np.float64), sets.astype(np.float32)
    try:
        scores = np.asarray(metric.scores(sets, labels), dtype=np.float64)
    except Exception as error:
        raise InputError(
            f"metric {metric.name} fails on predictions {sets.shape}, labels {labels.shape}: {first_line(error)}. Fix"
            " its function"
        ) from error
    if scores.shape != (len(sets),) or not np.isfinite(scores).all():
        raise InputError(
            f"metric {metric.name} returns {scores.shape} for predictions {sets.shape}: it must return one finite"
            " number per set of predictions"
        )
    if not scores[0] > scores[1]:
        raise InputError(f"metric {metric.name} scores wrong predictions at least as high as correct ones: negate it")
    if metric.values and not (abs(scores[0] - 1) < 1e-6 and abs(scores[2]) < 1e-6):
        raise InputError(
            f"metric {metric.name} scores correct values {scores[0]:.3g} and a constant {scores[2]:.3g}: a metric of"
            " regression must be a correlation, 1 at best and 0 for a constant prediction"
        )


def metric_names(kind: str) -> list[str]:
    """Names of the metrics of a kind of task."""
    return [name for name, metric in METRICS.items() if metric.kind == kind]


def positive_class(metric: str, labels: Sequence[str]) -> str | None:
    """The class that a metric scores: the second of two for F1; None for metrics that score all classes."""
    return labels[1] if metric in METRICS and METRICS[metric].needs_positive and len(labels) == 2 else None
