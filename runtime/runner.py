"""EarlyExitRunner: the Python API for an app that runs a bundle."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from berxit.devices import Device
from berxit.runtime import signing, tuning
from berxit.runtime.arguments import as_choice, as_number, as_texts, load_arguments
from berxit.runtime.backend_options import as_options
from berxit.runtime.backends import open_backend
from berxit.runtime.bundle import Manifest, open_bundle
from berxit.runtime.deadline import MISS_PROBABILITY, RESERVE_S, Deadline, StepEstimator, end_of
from berxit.runtime.drift import Reference
from berxit.runtime.errors import BerxitError, InputError, NoisyError
from berxit.runtime.hub import pretrained_folder
from berxit.runtime.kinds import Kind
from berxit.runtime.loop import Backend, LayerResult, Policy, exit_loop
from berxit.runtime.monitoring import FALSE_ALARMS, Monitor, MonitorReport
from berxit.runtime.placement import choose_device
from berxit.runtime.policies import Bools, ExitPolicy, Ints
from berxit.runtime.prediction import Prediction, StoppedBy
from berxit.runtime.progress import Progress, silent
from berxit.runtime.recalibration import Recalibration, recalibrate
from berxit.runtime.tokenization import Text, TextTokenizer, TokenBatch

_LOG = logging.getLogger(__name__)
Doubles = npt.NDArray[np.float64]
OnFailure = Literal["raise", "last_exit"]
CLOSED = "this runner is closed: load the bundle again"


class EarlyExitRunner:
    """Runs a bundle layer by layer until the exit policy is satisfied. Safe to call from several threads.

    >>> with EarlyExitRunner.load("bundle/") as runner:
    ...     runner.predict("turn the kitchen lights off").label
    'lights'
    """

    manifest: Manifest
    """The bundle's manifest.json: model, labels, thresholds, versions."""
    policy: ExitPolicy
    """The exit policy of every call without ``threshold``: the bundle's, unless the app assigns another."""
    device: Device | None
    """Profile of this device."""

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
        self.device = device
        self._backend: Backend | None = backend
        """None after ``close``."""
        self._estimator = StepEstimator(miss_probability)
        self._arguments: dict[str, Any] | None = None
        """Arguments of ``load``."""
        self._reference: tuple[ExitPolicy, Reference] | None = None
        """The calibrated policy, and the histograms of the calibration data under it."""
        if manifest.calibration is not None and manifest.calibration.reference is not None:
            self._reference = manifest.policy, manifest.calibration.reference
        self.on_failure: OnFailure = "raise"
        """Behaviour if the backend fails after the first exit: raise BerxitError, or return the prediction of
        the last exit that was computed."""
        self._monitor: tuple[ExitPolicy, Monitor] | None = None
        """The monitor, and the policy whose predictions it counts."""

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
        public_key: Path | str | None = None,
        tune: bool = False,
        lazy: bool = False,
        on_failure: OnFailure = "raise",
        miss_probability: float = MISS_PROBABILITY,
        progress: Progress = silent,
    ) -> EarlyExitRunner:
        """Loads a bundle on this device.

        - ``device``: a name from ``berxit devices``; "auto" detects this device.
        - ``backend``: the backend by name; by default the first installed one that runs the bundle's target.
        - ``backend_options``: options of that backend (docs/commands.md#backends).
        - ``threads``: number of threads of a CPU backend; by default the bundle's, else the device profile's, else the
          number of cores, at most four.
        - ``verify``: check the sha256 of every file first (1 s per GB).
        - ``public_key``: PEM file of an ed25519 key. The bundle must be signed with its private key (``berxit-export
          --sign``); its manifest and the checksums of all files are checked.
        - ``tune``: measure the installed backends, their options and thread counts on the golden inputs, and use the
          fastest. The measurement takes seconds and is stored for the next call. ``backend``, ``backend_options`` and
          ``threads`` restrict the choice.
          On a busy machine a warning is logged and the default is used.
        - ``lazy``: load a layer when the first input reaches it (CPU backends).
        - ``on_failure``: with "last_exit", a text gets the prediction of its last computed exit if the backend fails at
          a deeper layer (``stopped_by`` is "failure"), and a warning is logged. By default the call raises BerxitError.
        - ``progress``: receives the steps of ``tune`` and of a build of TensorRT engines.
        - ``miss_probability``: largest share of calls with a deadline that may end late although their first exit was
          in time (docs/runtime.md).

        A runner can be pickled, and used in a child process that was forked after loading: both load the bundle again
        from the same path. A backend that cannot run after a fork raises BerxitError in the child.

        Raises InputError for an argument of a wrong type or value, and BerxitError for a damaged bundle or one that
        this device cannot run.
        """
        arguments = load_arguments(bundle, device, backend, threads, verify=verify, tune=tune, lazy=lazy)
        arguments["on_failure"] = as_choice("on_failure", on_failure, get_args(OnFailure))
        arguments["backend_options"] = backend_options = as_options(backend_options)
        threads, miss_probability = arguments["threads"], as_number("miss_probability", miss_probability)
        if public_key is not None and not verify:
            raise InputError("a signature covers the checksums: load with public_key and without verify=False")
        arguments["public_key"] = None if public_key is None else Path(public_key).absolute()
        key = None if public_key is None else signing.public_key(Path(public_key))
        folder, manifest = open_bundle(arguments["bundle"], verify=verify, key=key)
        profile = choose_device(device, manifest.target)
        model = manifest.model
        tokenizer = TextTokenizer(
            folder.file(manifest.tokenizer),
            model.max_length,
            model.pad_token_id,
            manifest.table_rows,
            words=model.task_kind.words,
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
        segments = open_backend(
            folder,
            manifest,
            threads,
            backend=backend,
            backend_options=backend_options,
            lazy=lazy,
            progress=progress,
        )
        runner = cls(manifest, tokenizer, segments, profile, miss_probability=miss_probability)
        runner.on_failure = on_failure
        runner._arguments = {**arguments, "miss_probability": miss_probability}
        return runner

    @classmethod
    def from_pretrained(cls, model: Path | str, *, revision: str | None = None, **options: Any) -> EarlyExitRunner:
        """Loads a bundle from a folder, or from a repository "owner/name" on the Hugging Face hub.

        A repository is downloaded once to the hub's cache; with ``HF_HUB_OFFLINE=1`` only the cache is used.
        ``revision``: branch, tag or commit. ``options``: as in ``load``.

        Raises InputError for a name that is neither a folder nor a repository, BerxitError if huggingface_hub is not
        installed or the download fails, and as ``load`` does.
        """
        return cls.load(pretrained_folder(model, revision), **options)

    @property
    def backend(self) -> Backend:
        """The loaded segments. Raises BerxitError after ``close``."""
        if self._backend is None:
            raise BerxitError(CLOSED)
        return self._backend

    @backend.setter
    def backend(self, backend: Backend) -> None:
        self._backend = backend

    def close(self) -> None:
        """Frees the loaded segments. Later calls raise BerxitError; ``manifest`` and ``policy`` stay readable.

        Segments that another runner of the same bundle shares stay loaded for that runner. A call that is running in
        another thread finishes or raises BerxitError. A second ``close`` does nothing.
        """
        self._backend = None

    def __enter__(self) -> EarlyExitRunner:
        """Raises BerxitError for a closed runner."""
        if self._backend is None:
            raise BerxitError(CLOSED)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the arguments of ``load`` and the policy: the other process loads the bundle from the same path."""
        if self._backend is None:
            raise BerxitError(CLOSED)
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
        heads: Sequence[str] | None = None,
    ) -> Prediction:
        """Predicts one text, or one pair of texts.

        ``threshold`` replaces the calibrated thresholds at every layer. ``deadline_ms`` counts from the call: the
        deepest exit that is expected in time makes the prediction, the first exit in any case. ``heads``: of a model
        with named heads, those that are needed. The text exits when they are certain, and only they make a prediction;
        None: all heads.

        Raises InputError for an empty text, a threshold or deadline out of range or an unknown head, BerxitError after
        ``close`` or for a failure in the backend.
        """
        texts: list[Text] = [text if text_pair is None else (text, text_pair)]
        return self.predict_batch(texts, threshold=threshold, deadline_ms=deadline_ms, heads=heads)[0]

    def predict_batch(
        self,
        texts: Iterable[Text],
        *,
        threshold: float | None = None,
        deadline_ms: float | None = None,
        heads: Sequence[str] | None = None,
    ) -> list[Prediction]:
        """Predicts any number of texts, or of pairs as tuples, and returns the predictions in input order. ``texts``:
        a list, tuple, generator, array of str, or column of a data frame.

        A large batch is split into parts of similar length, the shortest first. Rows that exit are removed from the
        batch. The deadline applies to all texts together: each part gets a share of the remaining time in proportion
        to its share of the remaining tokens. Raises as ``predict`` does.
        """
        policy = self.policy if threshold is None else self.policy.with_threshold(as_number("threshold", threshold))
        if (monitored := self._monitor) is None:
            return self.answer(texts, policy, deadline_ms, heads)
        texts, (monitored_policy, monitor) = as_texts(texts), monitored
        predictions = self.answer(texts, policy, deadline_ms, heads)
        if policy is monitored_policy and heads is None:
            monitor.record(texts, predictions, shadow=deadline_ms is None)
        else:
            monitor.skip(len(predictions))
        return predictions

    def answer(
        self,
        texts: Iterable[Text],
        policy: ExitPolicy,
        deadline_ms: float | None = None,
        heads: Sequence[str] | None = None,
    ) -> list[Prediction]:
        """``predict_batch`` with another policy than the bundle's."""
        start = time.perf_counter()
        backend, kind = self.backend, self.manifest.model.task_kind
        kind = kind if heads is None else kind.requesting(heads)
        end = None if deadline_ms is None else end_of(as_number("deadline_ms", deadline_ms), start)
        texts = as_texts(texts)
        self.check_texts(texts)
        batch = self.tokenizer(texts, math.inf if end is None else end)
        predictions: dict[int, Prediction] = {}
        lengths = batch.lengths
        left = int(lengths.sum())
        starts = np.full(len(batch), start)
        deadlines = None if deadline_ms is None else np.full(len(batch), float(deadline_ms))
        for rows in parts(lengths, backend.tokens_at_once):
            part = batch if len(rows) == len(batch) else batch.take(rows)
            until: Policy = policy
            if end is not None:
                now, tokens = time.perf_counter(), int(lengths[rows].sum())
                until = self._deadline(policy, now + tokens / left * (end - now))
                left -= tokens
            of_part = None if deadlines is None else deadlines[rows]
            for places, found in self._exiting(part, policy, until, starts[rows], of_part, kind):
                predictions.update(zip(rows[places].tolist(), found, strict=True))
        return [predictions[row] for row in range(len(batch))]

    def answer_tokens(
        self, batch: TokenBatch, policy: ExitPolicy, starts: Doubles, deadlines_ms: Doubles
    ) -> Iterator[tuple[Ints, list[Prediction]]]:
        """Predictions of a batch of B tokenized rows with their own deadlines, for a service that forms batches.

        ``starts`` (B,): when each row arrived, as values of ``time.perf_counter()`` in seconds; its latency counts from
        then. ``deadlines_ms`` (B,): milliseconds from there; infinite without a deadline. Yields row numbers and their
        predictions as soon as these rows exit. The batch is not split. Calls are not monitored.

        Raises BerxitError after ``close`` or for a failure in the backend.
        """
        limited = bool(np.isfinite(deadlines_ms).any())
        until = self._deadline(policy, starts + deadlines_ms / 1e3) if limited else policy
        return self._exiting(batch, policy, until, starts, deadlines_ms, self.manifest.model.task_kind)

    def _exiting(
        self,
        batch: TokenBatch,
        policy: ExitPolicy,
        until: Policy,
        starts: Doubles,
        deadlines_ms: Doubles | None,
        kind: Kind,
    ) -> Iterator[tuple[Ints, list[Prediction]]]:
        """Row numbers and predictions of the rows that exit, layer by layer. ``until``: ``policy``, or a deadline
        around it. ``kind``: the model's, or its kind with the requested heads."""
        last: LayerResult | None = None
        try:
            for result in exit_loop(self.backend, batch, until, kind):
                last = result
                if result.exits.any():
                    found = self._predictions(policy, result, result.exits, batch, starts, kind, deadlines_ms)
                    yield result.rows[result.exits], found
        except BerxitError as error:
            if self.on_failure == "raise" or last is None:
                raise
            _LOG.warning("%d texts have the prediction of layer %d: %s", (~last.exits).sum(), last.layer, error)
            found = self._predictions(policy, last, ~last.exits, batch, starts, kind, deadlines_ms)
            yield last.rows[~last.exits], [replace(prediction, stopped_by="failure") for prediction in found]

    def monitor(
        self,
        *,
        shadow: float = 0.0,
        false_alarms: float = FALSE_ALARMS,
        on_drift: Callable[[MonitorReport], None] | None = None,
    ) -> Monitor:
        """Compares every following prediction with the calibration data, without labels, and returns the monitor.

        - ``shadow``: share of inputs, drawn at random, that also run to full depth, to estimate how often predictions
          differ from full depth's. Calls with a deadline have no shadow runs.
        - ``false_alarms``: largest probability of an alarm in 1,000 inputs that follow the calibration data.
        - ``on_drift``: called once per alarm, with the report, in the thread whose prediction caused it.

        An alarm is also logged as a warning. The new monitor replaces an earlier one. ``predict`` and ``predict_batch``
        are monitored; calls with ``threshold``, or after another policy was assigned, are counted as not compared.

        Raises InputError for a share or probability out of range, if the bundle has no histograms of its calibration
        data, and if the runner's policy is not the calibrated one.
        """
        if self._reference is None:
            raise InputError(
                "this bundle has no histograms of its calibration data: calibrate the checkpoint and export it with"
                " this version, or call recalibrate(texts)"
            )
        policy, reference = self._reference
        if self.policy != policy:
            raise InputError(
                "the runner's policy is not the calibrated one, so there is nothing to compare with: call"
                " recalibrate(texts), or assign runner.manifest.policy again"
            )

        def full_depth(texts: list[Text]) -> list[Prediction]:
            return self.answer(texts, self.policy.at_depth(self.backend.layers))

        model = self.manifest.model
        monitor = Monitor(
            reference, model.labels, full_depth, shadow=shadow, false_alarms=false_alarms, on_drift=on_drift
        )
        self._monitor = self.policy, monitor
        return monitor

    def recalibrate(
        self, texts: Iterable[Text], *, risk: float, delta: float = 0.1, progress: Progress = silent
    ) -> Recalibration:
        """Chooses a new threshold from texts without labels, and uses it from now on.

        It is the cheapest threshold whose predictions differ from full depth's with an expected loss of at most
        ``risk``, with probability 1 - ``delta`` (``runtime.recalibration``). The texts run to full depth. The manifest
        and its files do not change. A monitor stops; call ``monitor`` again.

        Raises InputError for too few texts, or ``risk`` or ``delta`` out of range, and otherwise as ``predict`` does.
        """
        texts = as_texts(texts)
        self.check_texts(texts)
        found = recalibrate(
            self.backend,
            self.tokenizer,
            self.policy,
            texts,
            self.manifest.model,
            risk=as_number("risk", risk),
            delta=as_number("delta", delta),
            progress=progress,
        )
        self.policy, self._reference, self._monitor = found.policy, (found.policy, found.reference), None
        return found

    def stream(self, text: str, text_pair: str | None = None) -> Iterator[Prediction]:
        """Returns an iterator over the predictions of all exits, the shallowest first. Stop iterating at any time.

        Raises InputError for an empty text at the call, not at the first iteration, and BerxitError after ``close``.
        """
        start = time.perf_counter()
        backend = self.backend
        texts = as_texts([text if text_pair is None else (text, text_pair)])
        self.check_texts(texts)
        batch = self.tokenizer(texts)
        return self._stream(backend, batch, time.perf_counter() - start)

    def _stream(self, backend: Backend, batch: TokenBatch, seconds: float) -> Iterator[Prediction]:
        """``seconds``: time that the call has used so far. The time between two iterations is not added."""
        policy = self.policy.at_depth(backend.layers)
        start = np.array([time.perf_counter() - seconds])
        kind = self.manifest.model.task_kind
        for result in exit_loop(backend, batch, policy, kind):
            prediction = self._predictions(policy, result, np.array([True]), batch, start, kind)[0]
            paused = time.perf_counter()
            yield prediction
            start += time.perf_counter() - paused

    def _deadline(self, policy: ExitPolicy, end: float | Doubles) -> Deadline:
        """``policy`` with a deadline that ends at ``end`` seconds, of all rows or (B,) of each."""
        backend = self.backend
        return Deadline(policy, backend.exits, end - RESERVE_S, self._estimator, backend.opening_seconds)

    def check_texts(self, texts: Sequence[Text]) -> None:
        """Raises InputError for a single text if the model was trained on pairs, and for a pair if it was not."""
        pairs = len(self.manifest.model.text_columns) == 2
        for text in texts:
            if isinstance(text, tuple) != pairs and isinstance(text, str | tuple):
                takes, given, give = (
                    ("pairs of texts", "one text", "two texts") if pairs else ("single texts", "a pair", "one text")
                )
                raise InputError(
                    f"this model takes {takes} ({self.manifest.model.task}), and was given {given}: give {give}"
                )

    def _predictions(
        self,
        policy: ExitPolicy,
        result: LayerResult,
        which: Bools,
        batch: TokenBatch,
        starts: Doubles,
        kind: Kind,
        deadlines_ms: Doubles | None = None,
    ) -> list[Prediction]:
        """Predictions of the rows of a layer's result that ``which`` (B,) selects, in their order.

        ``starts``, ``deadlines_ms``: of all rows of ``batch``, as in ``answer_tokens``."""
        model = self.manifest.model
        places = result.rows[which]
        milliseconds = (1e3 * (time.perf_counter() - starts[places])).tolist()
        limits = [math.inf] * len(places) if deadlines_ms is None else deadlines_ms[places].tolist()
        decisions = result.logits[which]
        temperature = policy.temperatures[result.layer - 1]
        if temperature != 1.0 and not model.regression:
            decisions = decisions / np.float32(temperature)
        words = [batch.words[row] for row in places.tolist()] if batch.words else ()
        described = kind.describe(decisions, model.labels, words)
        reasons = self._reasons(policy, result, which)
        found = []
        for row, each, certainty, reason, elapsed, limit in zip(
            places.tolist(), described, result.certainty[which].tolist(), reasons, milliseconds, limits, strict=True
        ):
            found.append(
                Prediction(
                    each.label,
                    each.scores,
                    result.layer,
                    float(certainty),
                    elapsed,
                    batch.truncated[row],
                    reason,
                    elapsed > limit if limit < math.inf else None,
                    self.manifest.digest,
                    each.labels,
                    each.spans,
                    each.heads,
                )
            )
        return found

    def _reasons(self, policy: ExitPolicy, result: LayerResult, which: Bools) -> list[StoppedBy | None]:
        """``stopped_by`` of the selected rows. The deadline stopped a row that exits although its certainty did not
        pass the threshold."""
        rows = np.count_nonzero(which)
        if result.layer >= policy.deepest or result.layer == self.backend.exits[-1]:
            return ["last_layer" for _ in range(rows)]
        certain = policy.exits(result.layer, result.certainty[which], result.logits[which]).tolist()
        exited = result.exits[which].tolist()
        names: tuple[StoppedBy, StoppedBy] = ("deadline", "certainty")
        return [names[int(sure)] if out else None for sure, out in zip(certain, exited, strict=True)]


def _load_again(cls: type[EarlyExitRunner], arguments: dict[str, Any], policy: ExitPolicy) -> EarlyExitRunner:
    """Loads a pickled runner in its new process."""
    runner = cls.load(**arguments)
    runner.policy = policy
    return runner


def parts(lengths: Ints, tokens: int) -> list[Ints]:
    """Splits a batch into parts of at most ``tokens`` tokens, padding included, the shortest rows first.

    ``lengths`` (B,) -> the row numbers of each part. A batch that fits into one part keeps its order."""
    if len(lengths) * lengths.max() <= tokens:
        return [np.arange(len(lengths))]
    order = np.argsort(lengths, kind="stable")
    cuts = [0]
    for place, length in enumerate(lengths[order].tolist()):
        if place > cuts[-1] and (place + 1 - cuts[-1]) * length > tokens:
            cuts.append(place)
    return np.split(order, cuts[1:])
