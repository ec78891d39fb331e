"""Task kinds: what a text's prediction is, and which decisions an exit policy reads from the logits.

A text of a classification or regression model has one decision, one of a multilabel model has one per label, one of a
tokens model has one per word, and one of a heads model has one per requested head. A policy reads decisions: logits
(B, K) of one decision per text, or (B, D, K) of D decisions per text. With several decisions, the certainty of a text
is that of its least certain decision.

A prediction of one text is one number, so that predictions are compared, scored and counted in arrays: the class
number, the value of a regression, the set of labels as bits (label j is bit j), the number of its spans
(``spans.span_number``), or the classes of its heads (``heads.pack``). B rows, S tokens, C outputs, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError
from berxit.runtime.heads import (
    SEPARATOR,
    chosen_heads,
    classes_in,
    heads_of,
    heads_problems,
    label_columns,
    label_of,
    labels_in,
    pack,
)
from berxit.runtime.policies import Floats, softmax
from berxit.runtime.prediction import HeadPrediction, Prediction
from berxit.runtime.spans import Span, Words, count_spans, right_spans, span_number, spans_of
from berxit.runtime.tables import plural

NO_LABEL = "no label"
"""Name of an empty set of labels, in reports."""

CERTAIN = -30000.0
"""Logit of all classes but the first in a decision that only fills an array. Its certainty is the highest possible."""
MOST_LABELS = 62
"""Largest number of labels of a multilabel model: a set of labels is stored as bits of an int64."""


class Described(NamedTuple):
    """A prediction of one text in the terms of the user."""

    label: str | float
    """Class name; for regression the value; for multilabel the labels, joined by SEPARATOR."""
    scores: dict[str, float]
    """Class or label -> probability; for regression {"value": ...}."""
    labels: tuple[str, ...] | None = None
    """Multilabel: the set of labels."""
    spans: tuple[Span, ...] | None = None
    """Tokens: the spans."""
    heads: dict[str, HeadPrediction] | None = None
    """Heads: the predictions of the requested heads."""


class TextWords(NamedTuple):
    """Words of one text, and its true spans. Only tokens models need them."""

    words: Words
    truth: tuple[Span, ...] = ()


class ClassCount(NamedTuple):
    """Rows of one class or label."""

    name: str
    right: int
    predicted: int
    rows: int


class Kind:
    """A task kind, the manifest's ``model.kind``."""

    name: str
    description: str
    default_metric = "accuracy"
    label_counts: tuple[int, float] = (2, math.inf)
    """Smallest and largest number of labels of a model."""
    label_column = "label"
    """Default column of the labels in data files."""
    words = False
    """True if the decisions are those of the words of a text."""
    several = False
    """True if a text has several decisions."""
    since = 1
    """The first schema version of bundles whose readers know the kind."""

    def of(self, labels: Sequence[str]) -> Kind:
        """The kind of a model with these labels."""
        return self

    def requesting(self, heads: Sequence[str] | str) -> Kind:
        """The kind whose decisions are those of some heads. Raises InputError for a model without named heads, and for
        an unknown one."""
        raise InputError(f"heads={heads!r}: a {self.name} model has no named heads. Omit the argument")

    def label_columns(self, label_column: str) -> tuple[str, ...]:
        """The columns of data files with the labels."""
        return (label_column,)

    def problems(self, labels: Sequence[str], label_column: str) -> Iterator[str]:
        """Problems of the labels and columns in a manifest, besides the number of labels."""
        yield from ()

    def outputs(self, labels: Sequence[str]) -> int:
        """C, the number of logits of an exit."""
        return len(labels)

    def classes(self, labels: Sequence[str]) -> int:
        """K, the number of classes of a decision; 1 for a value."""
        return self.outputs(labels)

    def decisions(self, logits: Floats, places: npt.NDArray | None = None) -> Floats:
        """Logits (..., C) of exits -> logits of the decisions, (..., K) or (..., D, K).

        ``places`` (B, W): positions of the words (``TokenBatch.places``), only for tokens.
        """
        return logits

    def numbers(self, decisions: Floats, labels: Sequence[str] = (), texts: Sequence[TextWords] = ()) -> npt.NDArray:
        """Predictions of decisions (N, ..., K) or (N, ..., D, K): one number per text (N, ...). ``texts`` (N,): only
        for tokens."""
        return decisions.argmax(axis=-1)

    def number(self, prediction: Prediction, labels: Sequence[str], truth: Sequence[Span] = ()) -> float:
        """The number of a runner's prediction. ``truth``: the true spans, only for tokens."""
        return labels.index(str(prediction.label))

    def text(self, number: float, labels: Sequence[str]) -> str | float:
        """A prediction as text: a class name. For regression the value."""
        return labels[int(number)]

    def shown(self, number: float, labels: Sequence[str]) -> str | float:
        """``text`` for readers: an empty set of labels has a name."""
        text = self.text(number, labels)
        return NO_LABEL if text == "" else text

    def describe(self, decisions: Floats, labels: Sequence[str], words: Sequence[Words] = ()) -> list[Described]:
        """The predictions of B texts from the logits of their decisions, divided by the temperature. ``words`` (B,):
        only for tokens. The largest logit decides: different logits may have the same probability."""
        rows = zip(decisions.argmax(axis=-1).tolist(), softmax(decisions).tolist(), strict=True)
        return [Described(labels[number], dict(zip(labels, row, strict=True))) for number, row in rows]

    def has(self, numbers: npt.NDArray, place: int, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
        """True for each prediction, or label of data, that is or contains the label with the number ``place``: numbers
        (...,) -> (...,)."""
        return np.asarray(numbers == place)

    def counts(self, predicted: npt.NDArray, truth: npt.NDArray, labels: Sequence[str]) -> list[ClassCount]:
        """Per class: right predictions, predictions, and true rows, for numbers (N,) of predictions and labels."""
        found = []
        for place, name in enumerate(labels):
            named, true = (self.has(numbers, place, labels) for numbers in (predicted, truth))
            found.append(ClassCount(name, *(int(np.count_nonzero(each)) for each in (named & true, named, true))))
        return found

    def bins(self, numbers: npt.NDArray, labels: Sequence[str]) -> tuple[npt.NDArray, int]:
        """The bin of each prediction in the histograms of drift, and the number of bins; 1 for values."""
        return numbers, len(labels)


class Classification(Kind):
    """One class per text, by softmax."""

    name = "classification"
    description = "one class per text"


class Regression(Kind):
    """One value per text."""

    name = "regression"
    description = "one number per text"
    default_metric = "spearman"
    label_counts = (0, 0)

    def outputs(self, labels: Sequence[str]) -> int:
        return 1

    def numbers(self, decisions: Floats, labels: Sequence[str] = (), texts: Sequence[TextWords] = ()) -> npt.NDArray:
        return decisions[..., 0]

    def number(self, prediction: Prediction, labels: Sequence[str], truth: Sequence[Span] = ()) -> float:
        return float(prediction.label)

    def text(self, number: float, labels: Sequence[str]) -> str | float:
        return float(number)

    def describe(self, decisions: Floats, labels: Sequence[str], words: Sequence[Words] = ()) -> list[Described]:
        return [Described(value, {"value": value}) for value in decisions[:, 0].tolist()]

    def bins(self, numbers: npt.NDArray, labels: Sequence[str]) -> tuple[npt.NDArray, int]:
        return numbers, 1


class Multilabel(Kind):
    """A set of labels per text, by one sigmoid per label. A label is predicted if its logit is above 0."""

    name = "multilabel"
    description = "any number of labels per text, also none"
    default_metric = "micro-f1"
    label_counts = (1, MOST_LABELS)
    several = True
    since = 3

    def classes(self, labels: Sequence[str]) -> int:
        return 2

    def decisions(self, logits: Floats, places: npt.NDArray | None = None) -> Floats:
        """(..., C) -> (..., C, 2): the softmax of (0, logit) is (1 - p, p) with p = sigmoid(logit)."""
        return np.stack([np.zeros_like(logits), logits], axis=-1)

    def numbers(self, decisions: Floats, labels: Sequence[str] = (), texts: Sequence[TextWords] = ()) -> npt.NDArray:
        return to_bits(decisions.argmax(axis=-1))

    def number(self, prediction: Prediction, labels: Sequence[str], truth: Sequence[Span] = ()) -> float:
        return sum(1 << labels.index(name) for name in prediction.labels or ())

    def text(self, number: float, labels: Sequence[str]) -> str | float:
        return SEPARATOR.join(label_set(int(number), labels))

    def describe(self, decisions: Floats, labels: Sequence[str], words: Sequence[Words] = ()) -> list[Described]:
        found = []
        for number, row in zip(self.numbers(decisions).tolist(), softmax(decisions)[..., 1].tolist(), strict=True):
            names = label_set(number, labels)
            found.append(Described(SEPARATOR.join(names), dict(zip(labels, row, strict=True)), names))
        return found

    def has(self, numbers: npt.NDArray, place: int, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
        return (numbers >> place & 1).astype(bool)

    def bins(self, numbers: npt.NDArray, labels: Sequence[str]) -> tuple[npt.NDArray, int]:
        """Bins are numbers of labels."""
        return from_bits(numbers, len(labels)).sum(axis=-1), len(labels) + 1


class Tokens(Kind):
    """A tag per word (IOB2), which mark spans of the text: slots, entities."""

    name = "tokens"
    description = "labelled spans of the text, by a tag per word"
    default_metric = "span-f1"
    label_counts = (3, math.inf)
    label_column = "spans"
    several = True
    words = True
    since = 3

    def decisions(self, logits: Floats, places: npt.NDArray | None = None) -> Floats:
        """(B, S, C) -> (B, W, C): the logits at the first token of each word. A word that only fills the array has the
        highest certainty."""
        assert places is not None, "the tokenizer of a tokens model finds words"
        found = np.take_along_axis(logits, np.maximum(places, 0)[..., None], axis=1)
        found[places < 0] = filler(logits.shape[-1])
        return found

    def numbers(self, decisions: Floats, labels: Sequence[str] = (), texts: Sequence[TextWords] = ()) -> npt.NDArray:
        tags = decisions.argmax(axis=-1)
        found = np.empty(tags.shape[:-1], dtype=np.int64)
        for row, text in enumerate(texts):
            known: dict[bytes, int] = {}  # most exits agree
            for place in np.ndindex(found.shape[1:]):
                of_words = tags[(row, *place)][: len(text.words.tokens)]
                key = of_words.tobytes()
                if key not in known:
                    spans = spans_of([labels[number] for number in of_words], text.words)
                    known[key] = span_number(spans, text.truth)
                found[(row, *place)] = known[key]
        return found

    def number(self, prediction: Prediction, labels: Sequence[str], truth: Sequence[Span] = ()) -> float:
        return span_number(prediction.spans or (), truth)

    def text(self, number: float, labels: Sequence[str]) -> str | float:
        """Numbers of spans: a number does not contain the spans themselves."""
        return f"{plural(int(count_spans(np.array(number))), 'span')}, {int(right_spans(np.array(number)))} right"

    def describe(self, decisions: Floats, labels: Sequence[str], words: Sequence[Words] = ()) -> list[Described]:
        found = []
        for numbers, row, each in zip(decisions.argmax(axis=-1), softmax(decisions).max(axis=-1), words, strict=True):
            tags = [labels[number] for number in numbers[: len(each.tokens)].tolist()]
            found.append(Described(" ".join(tags), {}, spans=spans_of(tags, each, row.tolist())))
        return found

    def counts(self, predicted: npt.NDArray, truth: npt.NDArray, labels: Sequence[str]) -> list[ClassCount]:
        right, named, true = right_spans(predicted).sum(), count_spans(predicted).sum(), count_spans(truth).sum()
        return [ClassCount("all spans", int(right), int(named), int(true))]

    def bins(self, numbers: npt.NDArray, labels: Sequence[str]) -> tuple[npt.NDArray, int]:
        """Bins are numbers of spans; the last one is for more."""
        return np.minimum(count_spans(numbers), SPAN_BINS - 1), SPAN_BINS


class Heads(Kind):
    """One class per named head, by a softmax over the logits of the head."""

    name = "heads"
    description = "several classes per text, one of each named head"
    default_metric = "heads-accuracy"
    several = True
    since = 3

    def __init__(self, labels: tuple[str, ...] = (), requested: tuple[int, ...] | None = None) -> None:
        """``labels``: the model's. ``requested``: numbers of the heads that decide; None: all."""
        self._labels, heads = labels, heads_of(labels)
        self._requested = tuple(range(len(heads))) if requested is None else requested
        self._heads = [heads[number] for number in self._requested]
        most = max((len(head.classes) for head in self._heads), default=0)
        self.places = np.full((len(self._heads), most), len(labels))
        """(H, K) number of the logit of each class; C for a class that only fills the array."""
        for row, head in zip(self.places, self._heads, strict=True):
            row[: len(head.classes)] = range(head.start, head.start + len(head.classes))

    def of(self, labels: Sequence[str]) -> Kind:
        return _heads(tuple(labels))

    def requesting(self, heads: Sequence[str] | str) -> Kind:
        return _heads(self._labels, chosen_heads(self._labels, heads))

    def label_columns(self, label_column: str) -> tuple[str, ...]:
        return label_columns(label_column)

    def problems(self, labels: Sequence[str], label_column: str) -> Iterator[str]:
        yield from heads_problems(labels, label_column)

    def classes(self, labels: Sequence[str]) -> int:
        return max((len(head.classes) for head in heads_of(tuple(labels))), default=0)

    def decisions(self, logits: Floats, places: npt.NDArray | None = None) -> Floats:
        """(..., C) -> (..., H, K), the logits of each head. A head with fewer classes is filled up."""
        return np.concatenate([logits, np.full_like(logits[..., :1], CERTAIN)], axis=-1)[..., self.places]

    def numbers(self, decisions: Floats, labels: Sequence[str] = (), texts: Sequence[TextWords] = ()) -> npt.NDArray:
        return pack(decisions.argmax(axis=-1), self._requested)

    def number(self, prediction: Prediction, labels: Sequence[str], truth: Sequence[Span] = ()) -> float:
        """Without the heads that were not requested."""
        found, heads = prediction.heads or {}, heads_of(tuple(labels))
        classes = [head.classes.index(found[head.name].label) if head.name in found else -1 for head in heads]
        return int(pack(np.array(classes), range(len(heads))))

    def text(self, number: float, labels: Sequence[str]) -> str | float:
        return SEPARATOR.join(labels_in(int(number), labels))

    def describe(self, decisions: Floats, labels: Sequence[str], words: Sequence[Words] = ()) -> list[Described]:
        found = []
        for numbers, rows in zip(decisions.argmax(axis=-1).tolist(), softmax(decisions).tolist(), strict=True):
            heads = {}
            for head, number, row in zip(self._heads, numbers, rows, strict=True):
                heads[head.name] = HeadPrediction(head.classes[number], dict(zip(head.classes, row, strict=False)))
            label = SEPARATOR.join(label_of(name, each.label) for name, each in heads.items())
            flat = {label_of(head, name): p for head, each in heads.items() for name, p in each.scores.items()}
            found.append(Described(label, flat, heads=heads))
        return found

    def has(self, numbers: npt.NDArray, place: int, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
        heads = heads_of(tuple(labels))
        number = sum(head.start <= place for head in heads) - 1
        return np.asarray(classes_in(numbers, len(heads))[..., number] == place - heads[number].start)

    def bins(self, numbers: npt.NDArray, labels: Sequence[str]) -> tuple[npt.NDArray, int]:
        """Bins of the numbers, as of values: there may be more combinations of classes than texts."""
        return numbers, 1


@lru_cache(maxsize=64)
def _heads(labels: tuple[str, ...], requested: tuple[int, ...] | None = None) -> Heads:
    return Heads(labels, requested)


SPAN_BINS = 9
"""Bins of the number of spans of a text, in the histograms of drift."""
KINDS: dict[str, Kind] = {kind.name: kind for kind in (Classification(), Regression(), Multilabel(), Tokens(), Heads())}


def filler(classes: int) -> npt.NDArray[np.float32]:
    """(K,) logits of a decision that only fills an array: the first class, with the highest certainty."""
    return np.array([0.0, *[CERTAIN] * (classes - 1)], dtype=np.float32)


def stack_decisions(rows: Sequence[npt.NDArray]) -> npt.NDArray[np.float32]:
    """Decisions of N texts, (E, K) or (E, D, K) each, as one array. Texts with fewer decisions are filled up."""
    if rows[0].ndim == 2:
        return np.stack(rows)
    exits, _, classes = rows[0].shape
    most = max(row.shape[1] for row in rows)
    found = np.broadcast_to(filler(classes), (len(rows), exits, most, classes)).copy()
    for place, row in enumerate(rows):
        found[place, :, : row.shape[1]] = row
    return found


def to_bits(present: npt.NDArray) -> npt.NDArray[np.int64]:
    """Sets of labels as numbers: (..., C) True or 1 for a label of the set -> (...,)."""
    return (present.astype(np.int64) << np.arange(present.shape[-1])).sum(axis=-1)


def from_bits(numbers: npt.NDArray, labels: int) -> npt.NDArray[np.int64]:
    """The opposite of ``to_bits``: (...,) -> (..., C), 1 for a label of the set."""
    return (np.asarray(numbers, dtype=np.int64)[..., None] >> np.arange(labels)) & 1


def label_set(number: int, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels of a set, in the order of the model."""
    return tuple(name for place, name in enumerate(labels) if number >> place & 1)
