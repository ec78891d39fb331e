"""Dynamic batching: one thread runs the texts of all requests, in batches of similar length.

- A batch starts as soon as the previous one ends. The service never waits for more requests, so batches form only under
  load.
- The waiting text that is due first is always in the next batch. Texts of similar length join it, in the order in which
  they are due, up to ``batch_tokens``.
- A text is due at the end of its deadline, or UNHURRIED_S after its arrival if it has none. Therefore requests with a
  deadline overtake a large one without, and no request waits forever.
- Every text keeps its own deadline in its batch, and a request is answered as soon as its last text exits.
- A request whose deadline is expected to pass before its batch starts is refused at once, so that an overloaded service
  meets the deadlines of the requests that it accepts.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from bisect import insort
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

import numpy as np

from berxit.runtime import BerxitError, EarlyExitRunner, ExitPolicy, Prediction
from berxit.runtime.errors import failure
from berxit.runtime.tokenization import Text, TokenBatch
from berxit.toolkit.serving.wire import RequestError

_LOG = logging.getLogger(__name__)
BATCH_TOKENS = 256
"""Default of ``batch_tokens``."""
UNHURRIED_S = 1.0
"""Seconds after which a text without a deadline is due."""
PACE_RATE = 0.2
"""Weight of the last batch in the average time per token."""
LARGEST_PADDING = 0.25
"""Largest share of padding in a batch."""


class BatchObserver(Protocol):
    """Receiver of what the batches do, for metrics. Called in the batcher's thread."""

    def batch(self, texts: int, tokens: int, waited: Sequence[float]) -> None:
        """A batch starts. ``tokens``: padding included; ``waited``: seconds of each text since its arrival."""

    def predicted(self, texts: Sequence[Text], predictions: Sequence[Prediction], policy: ExitPolicy) -> None:
        """Texts of a batch exited."""


@dataclass(eq=False)
class _Call:
    """One request, and the predictions of its texts so far."""

    policy: ExitPolicy
    start: float
    deadline_ms: float
    predictions: list[Prediction | None]
    left: int
    done: asyncio.Future[list[Prediction]]

    def add(self, place: int, prediction: Prediction) -> None:
        """Stores the prediction of one text. The last one answers the request."""
        self.predictions[place] = prediction
        self.left -= 1
        if not self.left:
            self.finish([each for each in self.predictions if each is not None])

    def finish(self, result: list[Prediction] | BerxitError) -> None:
        """Sets the result of the future, in its event loop."""
        with suppress(RuntimeError):  # the event loop was closed: nobody waits for the result
            self.done.get_loop().call_soon_threadsafe(_set, self.done, result)


def _set(future: asyncio.Future[list[Prediction]], result: list[Prediction] | BerxitError) -> None:
    if future.done():
        return
    if isinstance(result, BerxitError):
        future.set_exception(result)
    else:
        future.set_result(result)


@dataclass(eq=False)
class _Row:
    """One waiting text."""

    call: _Call
    place: int
    """Number of the text in its request."""
    text: Text
    input_ids: list[int]
    token_type_ids: list[int]
    truncated: bool
    due: float

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


class Batcher:
    """Runs the texts of concurrent requests in batches, in a thread of its own."""

    def __init__(
        self,
        runner: EarlyExitRunner,
        observer: BatchObserver,
        *,
        batch_tokens: int = BATCH_TOKENS,
        queued_tokens: int = 65536,
    ) -> None:
        """``batch_tokens``: largest batch in tokens, padding included; a longer text is a batch of its own.
        ``queued_tokens``: largest number of tokens that wait."""
        self.failing = False
        """True if the last batch failed."""
        self._runner, self._observer = runner, observer
        self._batch_tokens, self._limit = batch_tokens, queued_tokens
        self._rows: list[_Row] = []
        """The waiting texts, in the order in which they are due."""
        self._queued_tokens = 0
        self._pace = 0.0
        """Seconds per token of the last batches; 0 before the first one."""
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def queued_tokens(self) -> int:
        """Number of tokens that wait."""
        return self._queued_tokens

    def close(self) -> None:
        """Runs all waiting texts, then ends the thread. Later submissions are refused."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def submit(
        self,
        texts: Sequence[Text],
        batch: TokenBatch,
        policy: ExitPolicy,
        start: float,
        deadline_ms: float | None,
    ) -> asyncio.Future[list[Prediction]]:
        """Queues a request of B texts and returns the future of its B predictions. Call it in an event loop.

        ``batch``: the tokens of ``texts``. ``start``: its arrival, as a value of ``time.perf_counter()`` in seconds.
        The future raises BerxitError if its batch fails. Raises RequestError if too many tokens wait, if the deadline
        is expected to pass in the queue, or if the batcher is closed.
        """
        limit = math.inf if deadline_ms is None else deadline_ms
        call = _Call(policy, start, limit, [None] * len(batch), len(batch), asyncio.get_running_loop().create_future())
        due = start + (limit / 1e3 if deadline_ms is not None else UNHURRIED_S)
        lengths = batch.lengths.tolist()
        ids, types = batch.input_ids.tolist(), batch.token_type_ids.tolist()
        rows = [
            _Row(call, place, text, ids[place][:n], types[place][:n], batch.truncated[place], due)
            for place, (text, n) in enumerate(zip(texts, lengths, strict=True))
        ]
        tokens = sum(lengths)
        with self._changed:
            if self._closing:
                raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "the service is shutting down")
            if self._rows and self._queued_tokens + tokens > self._limit:
                raise RequestError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"the service is busy: {self._queued_tokens} tokens wait, the limit is {self._limit}. Retry later",
                )
            self._check_wait(due, deadline_ms)
            self._queued_tokens += tokens
            for row in rows:
                insort(self._rows, row, key=lambda waiting: waiting.due)
            self._changed.notify()
        return call.done

    def _check_wait(self, due: float, deadline_ms: float | None) -> None:
        """Raises RequestError if the texts that are due before a deadline are expected to take longer than that.

        Without such texts, the request is accepted: its first exit makes the prediction, however late it is."""
        if deadline_ms is None:
            return
        wait = self._pace * sum(row.tokens for row in self._rows if row.due <= due)
        if wait > 0 and time.perf_counter() + wait > due:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the service is busy: expected to start after {1e3 * wait:.0f} ms, but deadline_ms is"
                f" {deadline_ms:g}. Retry later",
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._rows and not self._closing:
                    self._changed.wait()
                if not self._rows:
                    return
                rows = self._take()
            self._run(rows)

    def _take(self) -> list[_Row]:
        """Removes the texts of the next batch from the queue. Texts of a request that was cancelled are dropped."""
        self._rows = [row for row in self._rows if not row.call.done.done()]
        taken: list[_Row] = []
        total = longest = 0
        for row in self._rows:
            size = max(longest, row.tokens) * (len(taken) + 1)
            if taken and (
                row.call.policy != taken[0].call.policy
                or size > self._batch_tokens
                or total + row.tokens < (1 - LARGEST_PADDING) * size
            ):
                continue
            taken.append(row)
            total, longest = total + row.tokens, max(longest, row.tokens)
            if (len(taken) + 1) * longest > self._batch_tokens:
                break
        chosen = set(map(id, taken))
        self._rows = [row for row in self._rows if id(row) not in chosen]
        self._queued_tokens = sum(row.tokens for row in self._rows)
        return taken

    def _run(self, rows: list[_Row]) -> None:
        """Runs one batch and answers every request whose last text exits."""
        if not rows:
            return
        start = time.perf_counter()
        try:
            self._predict(rows)
            pace = (time.perf_counter() - start) / sum(row.tokens for row in rows)
            self._pace += (PACE_RATE if self._pace else 1.0) * (pace - self._pace)
        except Exception as error:
            self.failing = True
            found = failure("the batch failed", error, "The log of the service shows where")
            _LOG.error("%s", found, exc_info=None if isinstance(error, BerxitError) else error)
            for row in rows:
                row.call.finish(found)

    def _predict(self, rows: list[_Row]) -> None:
        policy = rows[0].call.policy
        batch = TokenBatch.pad(
            [row.input_ids for row in rows],
            [row.token_type_ids for row in rows],
            self._runner.tokenizer.pad_token_id,
            tuple(row.truncated for row in rows),
        )
        starts = np.array([row.call.start for row in rows])
        deadlines = np.array([row.call.deadline_ms for row in rows])
        self._observer.batch(len(rows), batch.input_ids.size, (time.perf_counter() - starts).tolist())
        for places, predictions in self._runner.answer_tokens(batch, policy, starts, deadlines):
            self.failing = False
            exited = [rows[place] for place in places.tolist()]
            for row, prediction in zip(exited, predictions, strict=True):
                row.call.add(row.place, prediction)
            self._observer.predicted([row.text for row in exited], predictions, policy)
