"""EarlyExitRunner on a small bundle: predictions, batches, streams, errors, closing."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import math
import pickle
import shutil
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_backend import StoredBackend

from berxit.runtime import BerxitError, EarlyExitRunner, ExitPolicy, InputError, Prediction
from berxit.runtime.bundle import read_manifest, write_manifest
from berxit.runtime.placement import choose_device
from berxit.runtime.policies import softmax
from berxit.runtime.runner import parts
from berxit.runtime.tokenization import Text, TokenBatch

TEXTS: list[Text] = [
    "the cat sat on the mat",
    "a dog",
    "the big red dog ran under the tree and it was not a cat",
    "stop the music",
    "turn on the light",
    "cat",
]
LONG = " ".join(["cat"] * 100)


@pytest.fixture(scope="module")
def runner(bundle: Path) -> EarlyExitRunner:
    return EarlyExitRunner.load(bundle, threads=1)


def but_latency(answer: Prediction) -> Prediction:
    return dataclasses.replace(answer, latency_ms=0.0)


def assert_same(one: Prediction, other: Prediction) -> None:
    """Compares with a tolerance, because different padding may change the last digits."""
    assert (one.label, one.exit_layer, one.truncated) == (other.label, other.exit_layer, other.truncated)
    assert one.scores == pytest.approx(other.scores, abs=1e-5)
    assert one.certainty == pytest.approx(other.certainty, abs=1e-5)


def test_prediction_has_all_fields(runner: EarlyExitRunner) -> None:
    answer = runner.predict("the cat sat on the mat")
    assert list(answer.scores) == list(runner.manifest.model.labels)
    assert sum(answer.scores.values()) == pytest.approx(1)
    assert answer.label == max(answer.scores, key=lambda name: answer.scores[name])
    assert 1 <= answer.exit_layer <= 3
    assert answer.certainty == pytest.approx(answer.scores[str(answer.label)], abs=1e-6)
    assert answer.latency_ms > 0
    assert not answer.truncated


def test_predictions_match_labels_after_training_and_export(runner: EarlyExitRunner) -> None:
    """Covers training, export and the order of the labels."""
    assert runner.predict("dev the cat sat on the mat", threshold=1.0).label == "cat"
    assert runner.predict("dev the dog sat on the mat", threshold=1.0).label == "other"


def test_predict_batch_equals_single_predictions(runner: EarlyExitRunner) -> None:
    stored = np.sort([answer.certainty for text in TEXTS for answer in runner.stream(text)])
    threshold = float(stored[len(stored) // 2 - 1 : len(stored) // 2 + 1].mean())  # some rows exit early
    batch = runner.predict_batch(TEXTS, threshold=threshold)
    assert len({answer.exit_layer for answer in batch}) > 1
    for text, answer in zip(TEXTS, batch, strict=True):
        assert_same(answer, runner.predict(text, threshold=threshold))


def test_predict_batch_keeps_input_order(runner: EarlyExitRunner) -> None:
    forth = runner.predict_batch(TEXTS, threshold=0.7)
    back = runner.predict_batch(TEXTS[::-1], threshold=0.7)[::-1]
    for one, other in zip(forth, back, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("tokens", [1, 8, 24, 40])
def test_predict_batch_keeps_order_over_parts(
    runner: EarlyExitRunner, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    whole = runner.predict_batch(TEXTS, threshold=0.7)
    monkeypatch.setattr(runner.backend, "tokens_at_once", tokens)
    for one, other in zip(runner.predict_batch(TEXTS, threshold=0.7), whole, strict=True):
        assert_same(one, other)
    assert [answer.truncated for answer in runner.predict_batch(["cat", LONG, "a dog"])] == [False, True, False]


def test_parts_group_similar_lengths_within_token_limit() -> None:
    lengths = np.array([30, 3, 8, 4, 40, 8, 3])
    assert [part.tolist() for part in parts(lengths, 16)] == [[1, 6, 3], [2, 5], [0], [4]]
    assert [part.tolist() for part in parts(lengths, 7 * 40)] == [[0, 1, 2, 3, 4, 5, 6]]
    assert [part.tolist() for part in parts(np.array([9]), 1)] == [[0]]
    many = np.random.default_rng(0).integers(1, 129, 10_000)
    cut = parts(many, 1024)
    assert sorted(np.concatenate(cut).tolist()) == list(range(10_000))
    assert max(len(part) * many[part].max() for part in cut) <= 1024
    assert sum(len(part) * many[part].max() for part in cut) < 1.1 * many.sum()


def test_predict_batch_limits_tokens_per_layer(runner: EarlyExitRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    embed = runner.backend.embed

    def noted(batch: TokenBatch) -> Any:
        shapes.append(batch.input_ids.shape)
        return embed(batch)

    monkeypatch.setattr(runner.backend, "embed", noted)
    answers = runner.predict_batch(TEXTS * 100, threshold=0.0)
    assert len(answers) == 600
    assert max(rows * length for rows, length in shapes) <= 1024
    assert sum(rows for rows, _ in shapes) == 600
    latencies = [answer.latency_ms for answer in answers]
    assert latencies[1] < latencies[2]  # short texts run first; the latency is that of the call


def test_predict_accepts_pair(bundle: Path) -> None:
    single = EarlyExitRunner.load(bundle)
    model = dataclasses.replace(single.manifest.model, text_columns=("first", "second"))
    runner = EarlyExitRunner(
        dataclasses.replace(single.manifest, model=model), single.tokenizer, single.backend, single.device
    )
    pair = runner.predict("the cat", "a dog", threshold=1.0)
    assert but_latency(pair) == but_latency(runner.predict_batch([("the cat", "a dog")], threshold=1.0)[0])
    assert pair.scores != single.predict("the cat", threshold=1.0).scores
    with pytest.raises(InputError, match="takes pairs of texts"):
        runner.predict("the cat")


def test_predict_rejects_pair_for_single_text_model(runner: EarlyExitRunner) -> None:
    with pytest.raises(InputError, match="takes single texts"):
        runner.predict("the cat", "a dog")
    with pytest.raises(InputError, match="takes single texts"):
        runner.stream("the cat", "a dog")


def test_stream_yields_prediction_per_layer(runner: EarlyExitRunner) -> None:
    answers = list(runner.stream("the cat sat on the mat"))
    assert [answer.exit_layer for answer in answers] == [1, 2, 3]
    assert but_latency(answers[-1]) == but_latency(runner.predict("the cat sat on the mat", threshold=1.0))
    first = runner.predict("the cat sat on the mat", threshold=0.0)
    assert but_latency(answers[0]) == but_latency(dataclasses.replace(first, stopped_by=None))


def test_stream_can_be_abandoned(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    backend = StoredBackend(np.zeros((1, 3, 2), dtype=np.float32), np.zeros((1, 3)))
    runner.backend = backend
    next(runner.stream("cat"))
    assert [layer for layer, _ in backend.ran] == [1]


def test_predict_threshold_replaces_calibrated_thresholds(runner: EarlyExitRunner) -> None:
    assert {answer.exit_layer for answer in runner.predict_batch(TEXTS, threshold=0.0)} == {1}
    assert {answer.exit_layer for answer in runner.predict_batch(TEXTS, threshold=1.0)} == {3}
    assert runner.policy == runner.manifest.policy


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, math.inf])
def test_predict_rejects_threshold_out_of_range(runner: EarlyExitRunner, threshold: float) -> None:
    with pytest.raises(InputError, match="out of range"):
        runner.predict("the cat", threshold=threshold)
    with pytest.raises(InputError, match="out of range"):
        runner.predict_batch(["the cat"], threshold=threshold)


def test_scores_use_temperature_of_layer(runner: EarlyExitRunner) -> None:
    backend = StoredBackend(np.array([[[0.0, 2.0], [0.0, 6.0], [0.0, 0.0]]], dtype=np.float32))
    tempered = EarlyExitRunner(runner.manifest, runner.tokenizer, backend)
    policy = ExitPolicy("confidence", (0.9, 0.8), (2.0, 3.0, 1.0))
    answer = tempered.answer(["cat"], policy)[0]
    expected = softmax(np.array([0.0, 2.0]))
    assert answer.exit_layer == 2
    assert list(answer.scores.values()) == pytest.approx(expected.tolist())
    assert answer.certainty == pytest.approx(expected[1])


def test_predict_returns_value_for_regression(runner: EarlyExitRunner) -> None:
    model = dataclasses.replace(runner.manifest.model, kind="regression", labels=(), metric="spearman")
    policy = ExitPolicy("patience", (1.0, 1.0), (1.0, 2.0, 1.0), tolerance=0.5)
    manifest = dataclasses.replace(runner.manifest, model=model, policy=policy)
    backend = StoredBackend(np.array([[[2.0], [2.25], [9.0]], [[1.0], [2.0], [3.5]]], dtype=np.float32))
    answers = EarlyExitRunner(manifest, runner.tokenizer, backend).predict_batch(["a cat", "a dog"])
    assert [(a.label, a.scores, a.exit_layer, a.certainty) for a in answers] == [
        (2.25, {"value": 2.25}, 2, 1.0),
        (3.5, {"value": 3.5}, 3, 0.0),
    ]


def test_concurrent_threads_share_runner(runner: EarlyExitRunner) -> None:
    def ask(_worker: int) -> list[Prediction]:
        return [but_latency(runner.predict(text)) for text in TEXTS * 5]

    alone = ask(0)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, range(4)))
    assert together == [alone] * 4


def test_concurrent_threads_predict_batches(runner: EarlyExitRunner) -> None:
    def ask(shift: int) -> list[Prediction]:
        texts = TEXTS[shift:] + TEXTS[:shift]
        return [but_latency(a) for _ in range(5) for a in runner.predict_batch(texts, threshold=0.8)]

    alone = [ask(shift) for shift in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == alone


def test_prediction_reports_truncation(runner: EarlyExitRunner) -> None:
    assert runner.predict(LONG).truncated
    assert [answer.truncated for answer in runner.predict_batch(["cat", LONG])] == [False, True]
    assert all(answer.truncated for answer in runner.stream(LONG))


@pytest.mark.parametrize("text", ["", "  "])
def test_predict_rejects_empty_text(runner: EarlyExitRunner, text: str) -> None:
    with pytest.raises(InputError, match="the text is empty"):
        runner.predict(text)
    with pytest.raises(InputError, match="text 1 is empty"):
        runner.predict_batch(["the cat", text])
    with pytest.raises(InputError, match="the text is empty"):
        runner.stream(text)  # raised by the call, not by the first step


def test_predict_batch_rejects_empty_batch(runner: EarlyExitRunner) -> None:
    with pytest.raises(InputError, match="the batch is empty"):
        runner.predict_batch([])


@pytest.mark.parametrize("text", [None, 7, b"cat"])
def test_predict_rejects_arguments_that_are_not_text(runner: EarlyExitRunner, text: Any) -> None:
    with pytest.raises(InputError, match=f"the text is {type(text).__name__}"):
        runner.predict(text)


def test_load_rejects_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BerxitError, match=r"no bundle at .*nowhere"):
        EarlyExitRunner.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BerxitError, match=r"no bundle at .*file"):
        EarlyExitRunner.load(tmp_path / "file")


def test_load_sets_device(bundle: Path) -> None:
    device = EarlyExitRunner.load(bundle, "cpu", threads=1).device
    assert device is not None
    assert device.name == "cpu"


def test_load_accepts_str_path(bundle: Path) -> None:
    assert EarlyExitRunner.load(str(bundle), threads=1).manifest.model.layers == 3


def test_load_rejects_changed_file(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with (copy / "segments" / "layer_01.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BerxitError, match=r"layer_01\.onnx: checksum differs"):
        EarlyExitRunner.load(copy)


def test_load_names_damaged_tokenizer_without_verification(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(BerxitError, match=r"cannot read tokenizer .*tokenizer\.json"):
        EarlyExitRunner.load(copy, verify=False)


def test_load_rejects_unknown_device(bundle: Path) -> None:
    with pytest.raises(InputError, match="unknown device 'toaster': choose auto, "):
        EarlyExitRunner.load(bundle, "toaster")


@pytest.mark.parametrize("threads", [0, -1])
def test_load_rejects_less_than_one_thread(bundle: Path, threads: int) -> None:
    with pytest.raises(InputError, match=f"threads is {threads}"):
        EarlyExitRunner.load(bundle, threads=threads)


def test_threads_default_to_bundle_then_device(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Path(shutil.copytree(bundle, tmp_path / "asking"))
    write_manifest(dataclasses.replace(read_manifest(bundle), threads=3), asking)
    profile = dataclasses.replace(choose_device("cpu", "onnxruntime"), threads=2)
    monkeypatch.setattr("berxit.runtime.runner.choose_device", lambda *_: profile)
    assert EarlyExitRunner.load(asking, threads=1).backend.threads == 1
    assert EarlyExitRunner.load(asking).backend.threads == 3
    assert EarlyExitRunner.load(bundle).backend.threads == 2


def test_prediction_records_exit_reason(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    text = "the cat sat"
    assert runner.predict(text, threshold=0.0).stopped_by == "certainty"
    assert runner.predict(text, threshold=1.0).stopped_by == "last_layer"
    assert runner.predict(text, threshold=1.0, deadline_ms=1e-6).stopped_by == "deadline"
    assert runner.predict(text, threshold=0.0, deadline_ms=1e-6).stopped_by == "certainty"
    assert runner.predict(text, threshold=1.0, deadline_ms=1e6).stopped_by == "last_layer"
    assert runner.answer([text], runner.policy.at_depth(2))[0].stopped_by == "last_layer"


def test_exit_reason_at_last_layer_is_last_layer(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    policy = ExitPolicy(runner.policy.criterion, (1.0, 1.0), (1.0, 1.0, 1e-6))
    certain = runner.answer(["the cat sat"], policy)[0]
    assert (certain.certainty, certain.stopped_by) == (1.0, "last_layer")


def test_predict_batch_records_exit_reason_per_row(runner: EarlyExitRunner) -> None:
    """Row 0 passes the threshold at layer 1; row 1 exits there because of the deadline."""
    logits = np.zeros((2, 3, 2), dtype=np.float32)
    logits[0, 0] = (9, 0)
    policy = ExitPolicy.uniform("confidence", 0.9, 3)
    for deadline_ms, other in ((1e-6, "deadline"), (None, "last_layer")):
        stored = EarlyExitRunner(runner.manifest, runner.tokenizer, StoredBackend(logits))
        found = stored.answer(["cat", "dog"], policy, deadline_ms)
        assert [each.stopped_by for each in found] == ["certainty", other]


def test_stream_records_exit_reason_only_at_last_layer(bundle: Path) -> None:
    reasons = [each.stopped_by for each in EarlyExitRunner.load(bundle).stream("the cat sat")]
    assert reasons == [None, None, "last_layer"]


def test_prediction_records_missed_deadline(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    assert runner.predict("the cat sat").late is None
    assert runner.predict("the cat sat", deadline_ms=1e-6).late is True
    assert runner.predict("the cat sat", deadline_ms=1e6).late is False
    assert [each.late for each in runner.stream("the cat sat")] == [None] * 3


def test_prediction_records_bundle_digest(bundle: Path, tmp_path: Path) -> None:
    def model(folder: Path) -> str:
        return EarlyExitRunner.load(folder).predict("the cat sat").model

    copy = Path(shutil.copytree(bundle, tmp_path / "elsewhere"))
    content = (copy / "manifest.json").read_bytes()
    assert model(bundle) == model(copy) == hashlib.sha256(content).hexdigest()[:12]
    (copy / "manifest.json").write_bytes(content + b"\n")
    assert model(copy) != model(bundle)


def test_read_manifest_rejects_digest_key(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    data = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    assert "digest" not in data
    (copy / "manifest.json").write_text(json.dumps({**data, "digest": "0"}), encoding="utf-8")
    with pytest.raises(BerxitError, match="unknown key 'digest'"):
        EarlyExitRunner.load(copy)


@pytest.mark.parametrize(
    "text", ["cat " * 250_000, "a" + " " * 1_000_000 + "cat", "c" * 1_000_000, "cat\u200b" * 250_000]
)
def test_deadline_covers_tokenization(bundle: Path, text: str) -> None:
    """If a longer prefix is not expected to be tokenized in time, the text is truncated to the current prefix."""
    runner = EarlyExitRunner.load(bundle, threads=1)
    prediction = runner.predict(text, threshold=1.0, deadline_ms=1e-3)
    assert (prediction.truncated, prediction.late, prediction.exit_layer) == (True, True, 1)


def test_close_frees_the_sessions(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1, verify=False)  # unchecked files are not shared with other tests
    backend: Any = runner.backend
    assert backend.name == "onnxruntime"
    sessions = [weakref.ref(file.open()) for file in backend._files]
    del backend
    runner.predict("the cat")
    runner.close()
    gc.collect()
    assert [session() for session in sessions] == [None] * 4


def test_close_can_be_called_twice(bundle: Path) -> None:
    runner = EarlyExitRunner.load(bundle, threads=1)
    runner.close()
    runner.close()
    assert runner.manifest.model.layers == 3


def test_closed_runner_raises_in_every_call(bundle: Path) -> None:
    with EarlyExitRunner.load(bundle, threads=1) as runner:
        half = runner.stream("the cat")
        next(half)
    calls: list[Callable[[], Any]] = [
        lambda: runner.predict("the cat"),
        lambda: runner.predict("the cat", deadline_ms=5),
        lambda: runner.predict_batch(["the cat"]),
        lambda: runner.stream("the cat"),
        lambda: runner.backend,
        lambda: pickle.dumps(runner),
        runner.__enter__,
        lambda: next(half),
    ]
    for call in calls:
        with pytest.raises(BerxitError, match=r"^this runner is closed: load the bundle again$"):
            call()


def test_runner_as_context_manager_closes_after_an_error(bundle: Path) -> None:
    with pytest.raises(InputError, match="empty"), EarlyExitRunner.load(bundle, threads=1) as runner:
        runner.predict("")
    with pytest.raises(BerxitError, match="closed"):
        runner.predict("the cat")


def test_close_keeps_sessions_that_another_runner_shares(bundle: Path) -> None:
    first, second = (EarlyExitRunner.load(bundle, threads=1) for _ in range(2))
    expected = but_latency(second.predict("the cat"))
    first.close()
    assert but_latency(second.predict("the cat")) == expected


def test_stream_excludes_the_callers_pauses_from_the_latency(runner: EarlyExitRunner) -> None:
    pause_s, latencies = 0.2, []
    stream = runner.stream("the cat sat on the mat")
    time.sleep(pause_s)
    for prediction in stream:
        latencies.append(prediction.latency_ms)
        time.sleep(pause_s)
    assert len(latencies) == 3
    assert latencies == sorted(latencies)
    assert latencies[-1] < 1e3 * pause_s


def test_predict_batch_accepts_arrays_and_generators(runner: EarlyExitRunner) -> None:
    texts = ["the cat sat", "a dog"]
    expected = [but_latency(each) for each in runner.predict_batch(texts)]
    for batch in (np.array(texts), np.array(texts, dtype=object), (text for text in texts)):
        assert [but_latency(each) for each in runner.predict_batch(batch)] == expected


def test_answer_tokens_yields_rows_as_they_exit_with_their_own_deadlines(runner: EarlyExitRunner) -> None:
    batch = runner.tokenizer(TEXTS)
    policy = runner.policy.at_depth(3)
    starts = time.perf_counter() - np.array([0.0, 5.0, 0.0, 0.0, 5.0, 0.0])
    deadlines = np.array([math.inf, 100.0, 1e6, math.inf, math.inf, 1e6])
    steps = [(rows.tolist(), found) for rows, found in runner.answer_tokens(batch, policy, starts, deadlines)]
    assert [rows for rows, _ in steps] == [[1], [0, 2, 3, 4, 5]]
    late, others = steps[0][1][0], dict(zip(*steps[1], strict=True))
    assert (late.exit_layer, late.stopped_by, late.late) == (1, "deadline", True)
    assert late.latency_ms >= 5000
    assert [others[row].late for row in (0, 2, 3, 4, 5)] == [None, False, None, None, False]
    assert others[4].latency_ms >= 5000 > others[0].latency_ms
    for row, expected in enumerate(runner.answer(TEXTS, policy)):
        if row != 1:
            assert_same(others[row], expected)
