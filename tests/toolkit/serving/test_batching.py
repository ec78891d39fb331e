"""Batches of concurrent requests, on a backend that waits until the test continues it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from stored_backend import StoredBackend

from berxit.runtime import BerxitError, EarlyExitRunner, ExitPolicy, Prediction
from berxit.runtime.bundle import read_manifest
from berxit.runtime.tokenization import Text, TextTokenizer, TokenBatch
from berxit.toolkit.serving.batching import Batcher
from berxit.toolkit.serving.wire import RequestError

PATIENCE_S = 10.0


class GatedBackend(StoredBackend):
    """Backend whose first batch waits for ``gate``. Even token ids exit at layer 1 under a threshold of 0.9, odd ones
    at the last layer."""

    def __init__(self) -> None:
        super().__init__(np.zeros((0, 3, 2), dtype=np.float32))
        self.gate = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[int]] = []
        """Numbers of tokens of the rows of each batch."""
        self.error: Exception | None = None

    def embed(self, batch: TokenBatch) -> npt.NDArray:
        self.batches.append(batch.lengths.tolist())
        self.started.set()
        assert self.gate.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        certain = batch.input_ids[:, 1] % 2 == 0
        self.logits = np.zeros((len(batch), 3, 2), dtype=np.float32)
        self.logits[certain, :, 0] = 9.0
        return super().embed(batch)


class Observed:
    """Records what the batcher reports."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.predictions: list[Prediction] = []

    def batch(self, texts: int, tokens: int, waited: Sequence[float]) -> None:
        assert len(waited) == texts
        self.batches.append((texts, tokens))

    def predicted(self, texts: Sequence[Text], predictions: Sequence[Prediction], policy: ExitPolicy) -> None:
        assert len(texts) == len(predictions)
        self.predictions += predictions


@pytest.fixture
def backend() -> GatedBackend:
    return GatedBackend()


@pytest.fixture
def runner(bundle: Path, backend: GatedBackend) -> EarlyExitRunner:
    manifest = read_manifest(bundle)
    tokenizer = TextTokenizer(bundle / manifest.tokenizer.file, manifest.model.max_length, manifest.model.pad_token_id)
    return EarlyExitRunner(manifest, tokenizer, backend)


@pytest.fixture
def batcher(runner: EarlyExitRunner, backend: GatedBackend) -> Iterator[Batcher]:
    batcher = Batcher(runner, Observed(), batch_tokens=32, queued_tokens=100)
    yield batcher
    backend.gate.set()
    batcher.close()


POLICY = ExitPolicy.uniform("confidence", 0.9, 3)


def tokens(lengths: Sequence[int], certain: bool = True) -> TokenBatch:
    ids = [[1, 2 if certain else 3, *[4] * (length - 2)] for length in lengths]
    return TokenBatch.pad(ids, [[0] * length for length in lengths], 0, (False,) * len(lengths))


def submit(
    batcher: Batcher,
    lengths: Sequence[int],
    policy: ExitPolicy = POLICY,
    deadline_ms: float | None = None,
    certain: bool = True,
) -> asyncio.Future[list[Prediction]]:
    texts = [f"{length} tokens" for length in lengths]
    return batcher.submit(texts, tokens(lengths, certain), policy, time.perf_counter(), deadline_ms)


async def first_batch(batcher: Batcher, backend: GatedBackend) -> asyncio.Future[list[Prediction]]:
    """A request that occupies the batcher until the gate opens."""
    running = submit(batcher, [5])
    assert await asyncio.to_thread(backend.started.wait, PATIENCE_S)
    return running


def test_batcher_runs_waiting_texts_of_similar_length_together(batcher: Batcher, backend: GatedBackend) -> None:
    async def scenario() -> list[list[Prediction]]:
        calls = [await first_batch(batcher, backend), submit(batcher, [8]), submit(batcher, [30])]
        calls += [submit(batcher, [2, 7]), submit(batcher, [8])]  # a text of 2 tokens would be padding mostly
        backend.gate.set()
        return await asyncio.gather(*calls)

    answers = asyncio.run(scenario())
    assert backend.batches == [[5], [8, 7, 8], [30], [2]]
    assert [len(answer) for answer in answers] == [1, 1, 1, 2, 1]
    assert {prediction.exit_layer for answer in answers for prediction in answer} == {1}


def test_batcher_limits_the_tokens_of_a_batch(batcher: Batcher, backend: GatedBackend) -> None:
    async def scenario() -> None:
        calls = [await first_batch(batcher, backend), submit(batcher, [8] * 6), submit(batcher, [40])]
        backend.gate.set()
        await asyncio.gather(*calls)

    asyncio.run(scenario())
    assert backend.batches == [[5], [8] * 4, [8] * 2, [40]]  # a longer text is a batch of its own


def test_batcher_runs_requests_with_a_deadline_first(batcher: Batcher, backend: GatedBackend) -> None:
    async def scenario() -> list[list[Prediction]]:
        calls = [await first_batch(batcher, backend), submit(batcher, [20, 20, 20])]
        calls += [submit(batcher, [6], deadline_ms=500), submit(batcher, [30], deadline_ms=100)]
        backend.gate.set()
        return await asyncio.gather(*calls)

    answers = asyncio.run(scenario())
    assert backend.batches == [[5], [30], [6], [20], [20], [20]]
    assert [answer[0].late for answer in answers[2:]] == [False, False]


def test_batcher_separates_requests_with_other_thresholds(batcher: Batcher, backend: GatedBackend) -> None:
    never = POLICY.with_threshold(1.0)

    async def scenario() -> list[list[Prediction]]:
        calls = [await first_batch(batcher, backend), submit(batcher, [8]), submit(batcher, [8], never)]
        calls.append(submit(batcher, [8]))
        backend.gate.set()
        return await asyncio.gather(*calls)

    answers = asyncio.run(scenario())
    assert backend.batches == [[5], [8, 8], [8]]
    assert [answer[0].exit_layer for answer in answers] == [1, 1, 3, 1]


def test_batcher_answers_a_request_when_its_own_texts_exit(batcher: Batcher, backend: GatedBackend) -> None:
    """The other request of the batch waits at its second layer until the first one is answered."""
    answered = threading.Event()
    layer = backend.layer

    def waits(number: int, state: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray | None]:
        if number == 2:
            assert answered.wait(PATIENCE_S)
        return layer(number, state)

    backend.layer = waits  # type: ignore[method-assign]

    async def scenario() -> None:
        running = await first_batch(batcher, backend)
        early, deep = submit(batcher, [8]), submit(batcher, [8], certain=False)
        backend.gate.set()
        await running
        assert (await early)[0].exit_layer == 1
        assert not deep.done()
        answered.set()
        assert (await deep)[0].exit_layer == 3

    asyncio.run(scenario())
    assert backend.batches == [[5], [8, 8]]


def test_batcher_refuses_requests_if_too_many_tokens_wait(batcher: Batcher, backend: GatedBackend) -> None:
    async def scenario() -> None:
        calls = [await first_batch(batcher, backend), submit(batcher, [30, 30, 30])]
        assert batcher.queued_tokens == 90
        with pytest.raises(RequestError, match="90 tokens wait, the limit is 100") as caught:
            submit(batcher, [11])
        assert caught.value.status == 503
        calls.append(submit(batcher, [10]))
        backend.gate.set()
        await asyncio.gather(*calls)

    asyncio.run(scenario())
    assert batcher.queued_tokens == 0


def test_batcher_refuses_a_deadline_that_would_pass_in_the_queue(batcher: Batcher, backend: GatedBackend) -> None:
    async def scenario() -> None:
        calls = [await first_batch(batcher, backend)]
        batcher._pace = 1.0  # seconds per token
        calls.append(submit(batcher, [8]))  # due after one second
        calls.append(submit(batcher, [8], deadline_ms=500))  # starts before it
        with pytest.raises(RequestError, match="start after 16000 ms, but deadline_ms is 9000") as caught:
            submit(batcher, [8], deadline_ms=9000)
        calls.append(submit(batcher, [8], deadline_ms=17000))
        assert caught.value.status == 503
        backend.gate.set()
        await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_batcher_averages_the_time_per_token(batcher: Batcher, backend: GatedBackend) -> None:
    async def scenario() -> None:
        running = await first_batch(batcher, backend)
        await asyncio.sleep(0.05)
        backend.gate.set()
        await running
        await submit(batcher, [5])

    assert batcher._pace == 0.0
    asyncio.run(scenario())
    batcher.close()
    assert 0.2 * 0.05 / 5 < batcher._pace < 1.0


def test_batcher_continues_after_a_failure(batcher: Batcher, backend: GatedBackend) -> None:
    async def scenario() -> None:
        backend.error = RuntimeError("no memory")
        running = await first_batch(batcher, backend)
        backend.gate.set()
        with pytest.raises(BerxitError, match="no memory"):
            await running
        assert batcher.failing
        backend.error = None
        assert len(await submit(batcher, [5])) == 1
        assert not batcher.failing

    asyncio.run(scenario())


def test_batcher_skips_a_request_that_was_cancelled(batcher: Batcher, backend: GatedBackend) -> None:
    async def scenario() -> None:
        running = await first_batch(batcher, backend)
        submit(batcher, [8]).cancel()
        other = submit(batcher, [12])
        backend.gate.set()
        await asyncio.gather(running, other)

    asyncio.run(scenario())
    assert backend.batches == [[5], [12]]


def test_batcher_survives_the_end_of_an_event_loop(batcher: Batcher, backend: GatedBackend) -> None:
    async def left() -> None:
        await first_batch(batcher, backend)

    async def scenario() -> list[Prediction]:
        return await submit(batcher, [5])

    asyncio.run(left())
    backend.gate.set()
    assert len(asyncio.run(scenario())) == 1


def test_batcher_answers_waiting_requests_before_it_closes(batcher: Batcher, backend: GatedBackend) -> None:
    async def scenario() -> None:
        calls = [await first_batch(batcher, backend), submit(batcher, [8]), submit(batcher, [30])]
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        while not batcher._closing:
            await asyncio.sleep(0)
        with pytest.raises(RequestError, match="shutting down"):
            submit(batcher, [8])
        backend.gate.set()
        await closing
        assert [len(answer) for answer in await asyncio.gather(*calls)] == [1, 1, 1]

    asyncio.run(scenario())


def test_batcher_reports_batches_and_predictions(batcher: Batcher, backend: GatedBackend) -> None:
    async def scenario() -> None:
        calls = [await first_batch(batcher, backend), submit(batcher, [8]), submit(batcher, [7])]
        backend.gate.set()
        await asyncio.gather(*calls)

    asyncio.run(scenario())
    batcher.close()
    observed = batcher._observer
    assert isinstance(observed, Observed)
    assert observed.batches == [(1, 5), (2, 16)]
    assert len(observed.predictions) == 3
