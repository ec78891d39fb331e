"""Recalibration on a device: new thresholds from texts without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berxit.runtime.bundle import ModelInfo
from berxit.runtime.drift import Reference
from berxit.runtime.errors import InputError
from berxit.runtime.kinds import Kind, TextWords, stack_decisions
from berxit.runtime.loop import Backend, every_exit
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, exit_layers_at
from berxit.runtime.progress import Progress, silent
from berxit.runtime.risk import hoeffding_bentkus, rows_needed
from berxit.runtime.spans import Span
from berxit.runtime.tokenization import Text, TextTokenizer


@dataclass(frozen=True)
class Recalibration:
    """Result of a recalibration."""

    policy: ExitPolicy
    """The new exit policy."""
    texts: int
    """Number of texts."""
    average_exit_layer: float
    """Of these texts under the new policy."""
    disagreement: float
    """Mean loss of these texts under the new policy."""
    reference: Reference
    """Histograms for ``EarlyExitRunner.monitor``."""

    def __str__(self) -> str:
        threshold = self.policy.thresholds[0] if self.policy.thresholds else 0.0
        return (
            f"{self.policy.criterion} threshold {threshold:.6g}: average exit layer {self.average_exit_layer:.2f} of"
            f" {self.policy.layers}, disagreement with full depth {self.disagreement:.4f}, on {self.texts} texts"
        )


def recalibrate(
    backend: Backend,
    tokenizer: TextTokenizer,
    policy: ExitPolicy,
    texts: Sequence[Text],
    model: ModelInfo,
    *,
    risk: float,
    delta: float,
    progress: Progress = silent,
) -> Recalibration:
    """The cheapest threshold whose predictions differ from full depth's with an expected loss of at most ``risk``, with
    probability 1 - ``delta`` over the choice of ``texts``.

    The loss of a text is 1 if its prediction differs from full depth's, else 0; for regression it is the difference as
    a share of the range of full depth's values, at most 1. Criterion, temperatures and tolerance are those of
    ``policy``. The method is that of ``berxit-calibrate --risk``: Learn-then-Test with fixed sequence testing (arXiv
    2110.01052).

    Raises InputError if ``risk`` or ``delta`` is not above 0 and below 1, if there are too few texts, and for a policy
    with several thresholds.
    """
    for name, value in (("risk", risk), ("delta", delta)):
        if not 0 < value < 1:
            raise InputError(f"{name} is {value}: give a number above 0 and below 1")
    if len(set(policy.thresholds)) > 1 or any(isinstance(each, tuple) for each in policy.thresholds):
        raise InputError(
            "recalibrate chooses one threshold for all exits and classes, and this policy has several: calibrate the"
            " checkpoint again, with labels"
        )
    if len(texts) < (least := rows_needed(risk, delta)):
        raise InputError(
            f"risk {risk:g} with delta {delta:g} needs at least {least} texts, and {len(texts)} were given: give more"
            " texts, or a higher risk or delta"
        )
    kind = model.task_kind
    logits, lte = every_output(backend, tokenizer, texts, kind, progress)
    exits, criterion = np.array(backend.exits), CRITERIA[policy.criterion]
    of_exits = policy.at_exits(backend.exits)
    certainty = certainties(of_exits, logits, lte)
    thresholds = criterion.grid(policy.layers, logits.shape[-1])
    taken = exit_layers_at(criterion, certainty, thresholds, off=of_exits.off)
    predicted = kind.numbers(logits, model.labels, text_words(tokenizer, texts) if kind.words else ())
    rows = np.arange(len(texts))
    losses = [float(_losses(predicted[rows, one - 1], predicted[:, -1], model.regression).mean()) for one in taken]
    passed = 1  # full depth
    while passed < len(losses) and hoeffding_bentkus(losses[passed], len(texts), risk) <= delta:
        passed += 1
    averages = exits[taken[:passed] - 1].mean(axis=1)
    best = int(np.argmin(averages))
    chosen = taken[best]
    reference = Reference.of(
        exits[chosen - 1],
        certainty[rows, chosen - 1],
        *kind.bins(predicted[rows, chosen - 1], model.labels),
        depth=policy.layers,
    )
    return Recalibration(
        policy.with_threshold(thresholds[best]), len(texts), float(averages[best]), losses[best], reference
    )


def every_output(
    backend: Backend, tokenizer: TextTokenizer, texts: Sequence[Text], kind: Kind, progress: Progress = silent
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """Outputs of all E exits for N texts, one at a time as on a device: logits of the decisions, (N, E, K) or
    (N, E, D, K), and LTE certainties (N, E) or None."""
    logits, lte = [], []
    with progress(len(texts)) as bar:
        for text in texts:
            batch = tokenizer([text])
            outputs = list(every_exit(backend, batch))
            logits.append(np.stack([kind.decisions(output.logits, batch.places)[0] for output in outputs]))
            lte.append([output.lte[0] for output in outputs if output.lte is not None])
            bar.update(1)
    return stack_decisions(logits), np.array(lte, dtype=np.float32) if lte[0] else None


def text_words(
    tokenizer: TextTokenizer, texts: Sequence[Text], spans: Sequence[tuple[Span, ...]] = ()
) -> list[TextWords]:
    """The words of N texts, with their true spans if they are known."""
    words = tokenizer(texts).words
    return [TextWords(each, truth) for each, truth in zip(words, spans or ((),) * len(words), strict=True)]


def _losses(early: npt.NDArray, deep: npt.NDArray, regression: bool) -> npt.NDArray:
    """(N,) losses of predictions (N,) against full depth's (N,)."""
    if not regression:
        return early != deep
    spread = float(np.ptp(deep)) or 1.0
    return np.minimum(np.abs(early.astype(np.float64) - deep) / spread, 1)
