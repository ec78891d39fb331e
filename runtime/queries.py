"""Single queries of a measurement, and the outputs of every exit for its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.kinds import Kind
from berxit.runtime.policies import CRITERIA, Criterion, ExitPolicy, certainties
from berxit.runtime.prediction import Prediction
from berxit.runtime.tokenization import Text

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Queries:
    """The queries of one operating point: R rounds over N inputs, in the order of the inputs."""

    latency_ms: Doubles
    """(R, N)"""
    exit_layers: npt.NDArray[np.int64]
    """(R, N)"""

    @classmethod
    def of(cls, answers: Sequence[Prediction], inputs: int) -> Queries:
        """``answers``: of R rounds, one after another."""
        shape = (-1, inputs)
        return cls(
            np.array([answer.latency_ms for answer in answers]).reshape(shape),
            np.array([answer.exit_layer for answer in answers]).reshape(shape),
        )


@dataclass(frozen=True)
class ExitOutputs:
    """Outputs of all E exits for N inputs, under the criterion and the settings of a policy."""

    exits: tuple[int, ...]
    """(E,) layers with an exit."""
    policy: ExitPolicy
    certainty: npt.NDArray
    """(N, E)"""
    predictions: npt.NDArray
    """(N, E) predictions as numbers (``runtime.kinds``)."""
    labels: npt.NDArray | None
    """(N,) labels as such numbers; None without labels."""
    texts: tuple[Text, ...]
    """(N,)"""
    kind: str = "classification"
    """Name in runtime.kinds.KINDS."""

    @classmethod
    def of(
        cls,
        policy: ExitPolicy,
        exits: Sequence[int],
        logits: npt.NDArray,
        lte: npt.NDArray | None,
        labels: npt.NDArray | None,
        texts: Sequence[Text],
        kind: Kind,
        numbers: npt.NDArray | None = None,
    ) -> ExitOutputs:
        """From a stored pass: logits (N, E, K) or (N, E, D, K), lte (N, E) or None. ``numbers`` (N, E): the
        predictions, if logits do not determine them."""
        certainty = certainties(policy.at_exits(exits), logits, lte)
        return cls(
            tuple(exits),
            policy,
            certainty,
            kind.numbers(logits) if numbers is None else numbers,
            labels,
            tuple(texts),
            kind.name,
        )

    @property
    def criterion(self) -> Criterion:
        return CRITERIA[self.policy.criterion]
