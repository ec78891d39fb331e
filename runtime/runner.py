"""EarlyExitRunner: what an app embeds."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from berxit.devices import Device
from berxit.runtime import tuning
from berxit.runtime.arguments import as_number, as_texts, load_arguments
from berxit.runtime.backend_options import as_options
from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import Manifest, open_bundle
from berxit.runtime.deadline import MISS_PROBABILITY, RESERVE_S, Deadline, StepEstimator, end_of
from berxit.runtime.errors import BerxitError, InputError, NoisyError
from berxit.runtime.loop import Backend, LayerResult, Policy, exit_loop
from berxit.runtime.placement import choose_device
from berxit.runtime.policies import Bools, ExitPolicy, Ints, softmax
from berxit.runtime.progress import Progress, silent
from berxit.runtime.tokenization import Text, TextTokenizer, TokenBatch

_LOG = logging.getLogger(__name__)
StoppedBy = Literal["certainty", "deadline", "last_layer"]


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one text, with its latency and the reason why it exited."""

    label: str | float
    """The class name; for regression the value."""
    scores: dict[str, float]
    """Class name -> probability, in the model's order; for regression {"value": ...}."""
    exit_layer: int
    """Layers that were run, from 1."""
    certainty: float
    """What the exit criterion measured at that layer."""
    latency_ms: float
    """Milliseconds from the call to this prediction, tokenization included; in a batch, until this row exited."""
    truncated: bool = False
    """True if the text had more tokens than the model accepts, or than could be read before the deadline."""
    stopped_by: StoppedBy | None = None
    """Why the row exited: its certainty passed the threshold ("certainty"), the next exit was not expected before the
    deadline ("deadline"), or no deeper layer follows ("last_layer"). None in ``stream`` before the last layer."""
    late: bool | None = None
    """True if ``latency_ms`` exceeded the deadline; None without a deadline."""
    model: str = ""
    """Identity of the bundle: the first 12 hexadecimal digits of the sha256 of its manifest.json."""


class EarlyExitRunner:
    """Runs a bundle: layer after layer, until the exit policy is satisfied. Safe to call from several threads.

    >>> runner = EarlyExitRunner.load("bundle/")
    >>> runner.predict("turn the kitchen lights off").label
    'lights'
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: TextTokenizer,
        backend: Backend,
        device: Device | None = None,
        *,
        miss_probability: float = MISS_PROBABILITY,
    ) -> None:
        self.manifest = manifest
        self.policy = manifest.policy
        self.tokenizer = tokenizer
        self.backend = backend
        self.device = device
        self._estimator = StepEstimator(miss_probability)
        self._arguments: dict[str, Any] | None = None
        """What it was loaded with."""

    @classmethod
    def load(
        cls,
        bundle: Path | str,
        device: str = "auto",
        *,
        backend: str | None = None,
        backend_options: Mapping[str, bool | str] | None = None,
        threads: int | None = None,
        verify: bool = True,
        tune: bool = False,
        lazy: bool = False,
        miss_probability: float = MISS_PROBABILITY,
        progress: Progress = silent,
    ) -> EarlyExitRunner:
        """Opens a bundle on this machine.

        ``device``: a name that ``berxit devices`` lists; "auto" takes this machine. ``backend``: what runs the
        segments, where several can; by default the first that is installed. ``backend_options``: options of that
        backend (docs/commands.md#backends). ``threads``: for CPU back ends; by default
        what the bundle asks for, else the device's profile, else the cores of this machine, at most four. ``verify``:
        check every file against its sha256 first (1 s per GB). ``tune``: take the fastest of the installed back ends
        of the bundle's precision and thread counts, measured on the golden inputs when the bundle is first opened so,
        which takes seconds (a log message states how many, ``progress`` shows them); ``backend`` and ``threads`` fix
        one of them. On a busy machine the defaults are taken and a warning is logged. ``lazy``: open a layer when an
        input first gets there, so that layers which none needs take no memory; that input waits for it (CPU back ends).
        ``miss_probability``: largest share of calls with a deadline that may end late although their first exit was in
        time (docs/runtime.md).

        A runner can be pickled, and used in a child process that is forked after it was loaded: both load the bundle
        anew from the same path. Backends that cannot do so after a fork raise BerxitError there.

        Raises InputError for a miss probability out of range, BerxitError where the bundle is damaged or this machine
        cannot run it.
        """
        arguments = load_arguments(bundle, device, backend, threads, verify=verify, tune=tune, lazy=lazy)
        arguments["backend_options"] = backend_options = as_options(backend_options)
        threads, miss_probability = arguments["threads"], as_number("miss_probability", miss_probability)
        folder, manifest = open_bundle(arguments["bundle"], verify=verify)
        profile = choose_device(device, manifest.target)
        tokenizer = TextTokenizer(
            folder.file(manifest.tokenizer), manifest.model.max_length, manifest.model.pad_token_id
        )
        if tune:
            try:
                fastest = tuning.fastest(
                    folder,
                    manifest,
                    backend=backend,
                    backend_options=backend_options,
                    threads=threads,
                    progress=progress,
                )
                backend, backend_options, threads = fastest.backend, fastest.backend_options, fastest.threads
            except NoisyError as error:  # an app must start on a busy machine, too
                _LOG.warning("loaded without tuning: %s", error)
        threads = next((n for n in (threads, manifest.threads, profile.threads) if n is not None), None)
        segments = open_backend(folder, manifest, threads, backend=backend, backend_options=backend_options, lazy=lazy)
        runner = cls(manifest, tokenizer, segments, profile, miss_probability=miss_probability)
        runner._arguments = {**arguments, "miss_probability": miss_probability}
        return runner

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles how the runner was loaded, and its policy: the other process loads the bundle from the same path."""
        if self._arguments is None:
            raise BerxitError("only a runner from EarlyExitRunner.load can be pickled: load it in the other process")
        return _load_again, (type(self), self._arguments, self.policy)

    def predict(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        threshold: float | None = None,
        deadline_ms: float | None = None,
    ) -> Prediction:
        """Answers one text, or one pair.

        ``threshold`` replaces the calibrated ones, at every layer. ``deadline_ms``: counted from the call; where it
        comes before the model is sure, the deepest exit that fits answers, the first in any case.

        Raises InputError for an empty text or a threshold or deadline out of range.
        """
        texts: list[Text] = [text if text_pair is None else (text, text_pair)]
        return self.predict_batch(texts, threshold=threshold, deadline_ms=deadline_ms)[0]

    def predict_batch(
        self, texts: Iterable[Text], *, threshold: float | None = None, deadline_ms: float | None = None
    ) -> list[Prediction]:
        """Answers texts (or pairs, as tuples) in their order, however many. ``texts``: a list, tuple, generator, array,
        or a column of a data frame.

        They go through the layers in parts of similar length, the shortest first. Rows that exit leave; the rest go on.
        A deadline is one for all: what is left of it is shared by the tokens that are left.
        """
        policy = self.policy if threshold is None else self.policy.with_threshold(as_number("threshold", threshold))
        return self.answer(texts, policy, deadline_ms)

    def answer(self, texts: Iterable[Text], policy: ExitPolicy, deadline_ms: float | None = None) -> list[Prediction]:
        """``predict_batch`` under another policy than the bundle's."""
        start = time.perf_counter()
        end = None if deadline_ms is None else end_of(as_number("deadline_ms", deadline_ms), start)
        texts = as_texts(texts)
        self._check_texts(texts)
        batch = self.tokenizer(texts, math.inf if end is None else end)
        answers: dict[int, Prediction] = {}
        lengths = batch.lengths
        left = int(lengths.sum())
        for rows in parts(lengths, self.backend.tokens_at_once):
            part = batch if len(rows) == len(batch) else batch.take(rows)
            until: Policy = policy
            if end is not None:
                tokens = int(lengths[rows].sum())
                until = self._deadline(policy, end, tokens / left)
                left -= tokens
            for result in exit_loop(self.backend, part, until):
                if result.exits.any():
                    places = rows[result.rows[result.exits]].tolist()
                    found = self._predictions(policy, result, result.exits, part, start, deadline_ms)
                    answers.update(zip(places, found, strict=True))
        return [answers[row] for row in range(len(batch))]

    def stream(self, text: str, text_pair: str | None = None) -> Iterator[Prediction]:
        """Answers at every exit, the shallowest first, to the last. Stop iterating whenever you have enough.

        Raises InputError for an empty text, here and not at the first iteration.
        """
        start = time.perf_counter()
        texts = as_texts([text if text_pair is None else (text, text_pair)])
        self._check_texts(texts)
        batch = self.tokenizer(texts)
        policy = self.policy.at_depth(self.backend.layers)
        return (
            self._predictions(policy, result, np.array([True]), batch, start)[0]
            for result in exit_loop(self.backend, batch, policy)
        )

    def _deadline(self, policy: ExitPolicy, end: float, share: float) -> Deadline:
        """For a part of a call that must be done at ``end``: ``share`` of what is left."""
        now = time.perf_counter()
        opening = self.backend.opening_seconds
        return Deadline(policy, self.backend.exits, now + share * (end - now) - RESERVE_S, self._estimator, opening)

    def _check_texts(self, texts: Sequence[Text]) -> None:
        """A model of pairs answers pairs, a model of single texts single texts; the other way round it would guess."""
        pairs = len(self.manifest.model.text_columns) == 2
        for text in texts:
            if isinstance(text, tuple) != pairs and isinstance(text, str | tuple):
                takes, given = ("pairs of texts", "one text") if pairs else ("single texts", "a pair")
                raise InputError(f"this model takes {takes} ({self.manifest.model.task}), and was given {given}")

    def _predictions(
        self,
        policy: ExitPolicy,
        result: LayerResult,
        which: Bools,
        batch: TokenBatch,
        start: float,
        deadline_ms: float | None = None,
    ) -> list[Prediction]:
        """For the rows of a layer's result that ``which`` (B,) marks, in their order."""
        model = self.manifest.model
        milliseconds = 1e3 * (time.perf_counter() - start)
        logits = result.logits[which]
        names = ("value",) if model.regression else model.labels
        rows = result.rows[which].tolist()
        values = logits if model.regression else softmax(logits / np.float32(policy.temperatures[result.layer - 1]))
        late = None if deadline_ms is None else milliseconds > deadline_ms
        reasons = self._reasons(policy, result, which)
        found = []
        for row, scores, certainty, reason in zip(
            rows, values.tolist(), result.certainty[which].tolist(), reasons, strict=True
        ):
            found.append(
                Prediction(
                    scores[0] if model.regression else names[scores.index(max(scores))],
                    dict(zip(names, scores, strict=True)),
                    result.layer,
                    float(certainty),
                    milliseconds,
                    batch.truncated[row],
                    reason,
                    late,
                    self.manifest.digest,
                )
            )
        return found

    def _reasons(self, policy: ExitPolicy, result: LayerResult, which: Bools) -> list[StoppedBy | None]:
        """``stopped_by`` of the marked rows. A row that exits before the policy lets it was stopped by the deadline."""
        rows = np.count_nonzero(which)
        if result.layer >= policy.deepest or result.layer == self.backend.exits[-1]:
            return ["last_layer" for _ in range(rows)]
        certain = policy.exits(result.layer, result.certainty[which]).tolist()
        exited = result.exits[which].tolist()
        names: tuple[StoppedBy, StoppedBy] = ("deadline", "certainty")
        return [names[int(sure)] if out else None for sure, out in zip(certain, exited, strict=True)]


def _load_again(cls: type[EarlyExitRunner], arguments: dict[str, Any], policy: ExitPolicy) -> EarlyExitRunner:
    """A pickled runner in its new process."""
    runner = cls.load(**arguments)
    runner.policy = policy
    return runner


def parts(lengths: Ints, tokens: int) -> list[Ints]:
    """The rows of a batch in parts of at most so many ``tokens`` when padded, the shortest first: lengths (B,) ->
    places in the batch. One part keeps the order; a row is never cut."""
    if len(lengths) * lengths.max() <= tokens:
        return [np.arange(len(lengths))]
    order = np.argsort(lengths, kind="stable")
    cuts = [0]
    for place, length in enumerate(lengths[order].tolist()):
        if place > cuts[-1] and (place + 1 - cuts[-1]) * length > tokens:
            cuts.append(place)
    return np.split(order, cuts[1:])
