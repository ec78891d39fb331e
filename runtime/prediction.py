"""The result of a runner for one text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from berxit.runtime.spans import Span

StoppedBy = Literal["certainty", "deadline", "last_layer", "failure"]


class HeadPrediction(NamedTuple):
    """The prediction of one named head."""

    label: str
    """The class name."""
    scores: dict[str, float]
    """Class -> probability, in the model's order."""


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one text, with its latency and the reason why it exited."""

    label: str | float
    """The class name; for regression the value; for multilabel the labels, joined by "|" (empty without a label);
    for tokens the IOB2 tags of the words, separated by blanks; for heads HEAD=CLASS of each head, joined by "|"."""
    scores: dict[str, float]
    """Class or label -> probability, in the model's order; for regression {"value": ...}; empty for tokens."""
    exit_layer: int
    """Number of layers that were executed, from 1."""
    certainty: float
    """The exit criterion's certainty at that layer."""
    latency_ms: float
    """Milliseconds from the call to this prediction, tokenization included; in a batch, until this row exited. In
    ``stream`` the time between two iterations, which the caller uses, is excluded."""
    truncated: bool = False
    """True if the text had more tokens than the model accepts, or than could be read before the deadline."""
    stopped_by: StoppedBy | None = None
    """Why the row exited: its certainty passed the threshold ("certainty"), the next exit was not expected before the
    deadline ("deadline"), no deeper layer follows ("last_layer"), or the next layer failed ("failure", only with
    ``on_failure="last_exit"``). None in ``stream`` before the last layer."""
    late: bool | None = None
    """True if ``latency_ms`` exceeded the deadline; None without a deadline."""
    model: str = ""
    """Identity of the bundle: the first 12 hexadecimal digits of the sha256 of its manifest.json."""
    labels: tuple[str, ...] | None = None
    """Multilabel: the labels of the text, in the model's order. None for another kind."""
    spans: tuple[Span, ...] | None = None
    """Tokens: the labelled spans of the text, with the offsets of their characters. None for another kind."""
    heads: dict[str, HeadPrediction] | None = None
    """Heads: name of each requested head -> its class and probabilities. None for another kind."""
