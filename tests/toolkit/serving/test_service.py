"""The ASGI application in this process: routes, status codes, limits, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi_client import JSON, call, encoded, get, post
from starlette.applications import Starlette

from berxit.runtime import BerxitError, EarlyExitRunner, InputError
from berxit.toolkit.serving import service as service_module
from berxit.toolkit.serving.service import Service, Settings, application
from berxit.toolkit.serving.wire import Limits

TEXTS = ["the cat sat on the mat", "a dog", "stop the music", "turn on the big red light"]


@pytest.fixture(scope="module")
def runner(bundle: Path) -> EarlyExitRunner:
    return EarlyExitRunner.load(bundle, threads=1)


@pytest.fixture
def service(bundle: Path) -> Iterator[Service]:
    service = served(bundle)
    yield service
    service.close()


def served(bundle: Path, **settings: Any) -> Service:
    settings = {"limits": Limits(body=2000, texts=8, tokens=60), **settings}
    return Service(EarlyExitRunner.load(bundle, threads=1), Settings("tiny", **settings))


@pytest.fixture
def app(service: Service) -> Starlette:
    return application(service)


def sample(metrics: str, name: str) -> float:
    """Value of a metric in Prometheus' text format."""
    return float(next(line for line in metrics.splitlines() if line.startswith(f"{name} ")).split()[-1])


def test_classify_returns_the_predictions_of_the_runner(app: Starlette, runner: EarlyExitRunner) -> None:
    reply = post(app, "/v1/classify", {"model": "tiny", "input": TEXTS})
    assert reply.status == 200
    assert [found["index"] for found in reply.json["data"]] == [0, 1, 2, 3]
    for text, found in zip(TEXTS, reply.json["data"], strict=True):
        expected = runner.predict(text)
        assert (found["label"], found["exit_layer"]) == (expected.label, expected.exit_layer)
        assert found["probs"] == pytest.approx(list(expected.scores.values()), abs=1e-5)
        assert found["certainty"] == pytest.approx(expected.certainty, abs=1e-5)
        assert found["latency_ms"] > 0
    assert reply.json["usage"]["total_tokens"] == int(runner.tokenizer(TEXTS).lengths.sum())


def test_classify_of_concurrent_requests_returns_each_its_own_predictions(app: Starlette, runner: Any) -> None:
    async def scenario() -> list[Any]:
        bodies = [encoded({"input": TEXTS[number % 4]}) for number in range(24)]
        return await asyncio.gather(*(call(app, "POST", "/v1/classify", [body]) for body in bodies))

    for number, reply in enumerate(asyncio.run(scenario())):
        expected = runner.predict(TEXTS[number % 4])
        (found,) = reply.json["data"]
        assert (found["label"], found["exit_layer"]) == (expected.label, expected.exit_layer)


def test_classify_uses_threshold_and_deadline_of_the_request(app: Starlette) -> None:
    deep = post(app, "/v1/classify", {"input": "a dog", "threshold": 1.0}).json["data"][0]
    assert (deep["exit_layer"], deep["stopped_by"], deep["late"]) == (3, "last_layer", None)
    late = post(app, "/v1/classify", {"input": "a dog", "threshold": 1.0, "deadline_ms": 1e-6}).json["data"][0]
    assert (late["exit_layer"], late["stopped_by"], late["late"]) == (1, "deadline", True)
    within = post(app, "/v1/classify", {"input": "a dog", "threshold": 1.0, "deadline_ms": 1e6}).json["data"][0]
    assert (within["exit_layer"], within["late"]) == (3, False)


def test_service_uses_its_own_policy_and_deadline(bundle: Path, runner: EarlyExitRunner) -> None:
    service = served(bundle, policy=runner.policy.at_depth(3), deadline_ms=1e6)
    (found,) = post(application(service), "/v1/classify", {"input": "a dog"}).json["data"]
    assert (found["exit_layer"], found["late"]) == (3, False)
    service.close()


@pytest.mark.parametrize("deadline", [0, -1.0])
def test_service_rejects_a_deadline_that_is_not_positive(bundle: Path, deadline: float) -> None:
    with pytest.raises(InputError, match="deadline_ms is"):
        served(bundle, deadline_ms=deadline)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is not JSON"),
        ({"input": ""}, 400, "the text is empty"),
        ({"input": ["a", " "]}, 400, "text 1 is empty"),
        ({"input": "\ud800"}, 400, "lone surrogate"),
        ({"input": [["a", "b"]]}, 400, "this model takes single texts"),
        ({"input": "a", "threshold": 7}, 400, "threshold 7.0 is out of range"),
        ({"input": "a", "deadline_ms": 0}, 400, "deadline_ms is 0"),
        ({"input": "a", "model": "gpt"}, 404, "no model 'gpt' here"),
        ({"input": ["a"] * 9}, 413, "input has 9 texts; the limit is 8"),
        ({"input": ["the cat sat on the mat and the dog"] * 7}, 413, "input has 77 tokens; the limit is 60"),
        (b"x" * 2001, 413, "the body is larger than 2000 bytes"),
    ],
)
def test_classify_refuses_invalid_requests_in_one_line(app: Starlette, body: Any, status: int, message: str) -> None:
    reply = post(app, "/v1/classify", body)
    assert reply.status == status
    assert message in reply.error
    assert "\n" not in reply.error
    assert reply.json["error"]["code"] == status
    assert get(app, "/health").status == 200


def test_classify_refuses_a_body_that_grows_beyond_the_limit(app: Starlette) -> None:
    reply = asyncio.run(call(app, "POST", "/v1/classify", [b'{"input": "', *[b"a" * 500] * 5, b'"}']))
    assert (reply.status, reply.error) == (413, "the body is larger than 2000 bytes: split it into several requests")


def test_classify_refuses_a_slow_body(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "BODY_S", 0.01)
    reply = asyncio.run(call(app, "POST", "/v1/classify", [b'{"input": ', b'"a"}'], pause=0.05))
    assert (reply.status, reply.error) == (408, "the body did not arrive within 0.01 seconds")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_classify_refuses_types_that_web_pages_of_other_sites_can_send(app: Starlette, kind: str) -> None:
    reply = post(app, "/v1/classify", {"input": "a"}, {**JSON, "content-type": kind})
    assert reply.status == 415
    accepted = {**JSON, "content-type": "Application/JSON; charset=utf-8"}
    assert post(app, "/v1/classify", {"input": "a"}, accepted).status == 200


def test_application_refuses_unknown_paths_methods_and_hosts(bundle: Path) -> None:
    service = served(bundle, hosts=("localhost", "127.0.0.1"))
    app = application(service)
    assert (get(app, "/nowhere").status, get(app, "/v1/classify").status) == (404, 405)
    paths = "/v1/classify, /v1/models, /health, /metrics"
    assert get(app, "/nowhere").error == f"GET /nowhere: Not Found. The paths are {paths}"
    refused = get(app, "/health", {"host": "evil.example"})
    assert refused.status == 400
    assert refused.error.startswith("the header Host is 'evil.example', which this service does not accept: start it")
    assert get(app, "/health", {"host": "127.0.0.1:8000"}).status == 200
    service.close()


def test_classify_reports_a_failure_of_the_backend(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    app = application(service)

    def fails(batch: Any) -> Any:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(service.runner.backend, "embed", fails)
        reply = post(app, "/v1/classify", {"input": "a dog"})
        assert (reply.status, reply.json["error"]["type"]) == (500, "server_error")
        assert "no memory" in reply.error
        assert get(app, "/health").status == 503
    assert post(app, "/v1/classify", {"input": "a dog"}).status == 200
    assert get(app, "/health").status == 200


def test_classify_counts_an_error_of_the_program_and_raises_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(texts: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(service.runner, "tokenizer", fails)
    with pytest.raises(ZeroDivisionError):  # the server logs it, after the response
        post(application(service), "/v1/classify", {"input": "a dog"})
    assert 'berxit_requests_total{code="500"} 1.0' in get(application(service), "/metrics").body.decode()


def test_long_texts_are_tokenized_outside_the_event_loop(
    service: Service, runner: EarlyExitRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "CHARACTERS_IN_LOOP", 10)
    moved = []

    async def to_thread(function: Any, *arguments: Any) -> Any:
        moved.append(function)
        return function(*arguments)

    monkeypatch.setattr(service_module.asyncio, "to_thread", to_thread)
    assert post(application(service), "/v1/classify", {"input": "the cat sat"}).status == 200
    assert moved == [service.runner.tokenizer]


def test_models_describes_the_bundle(app: Starlette, runner: EarlyExitRunner) -> None:
    (model,) = get(app, "/v1/models").json["data"]
    assert (model["id"], model["object"], model["labels"]) == ("tiny", "model", ["cat", "other"])
    assert (model["exits"], model["digest"]) == ([1, 2, 3], runner.manifest.digest)


def test_metrics_count_requests_texts_and_exit_layers(service: Service, runner: EarlyExitRunner) -> None:
    app = application(service)
    post(app, "/v1/classify", {"input": TEXTS})
    post(app, "/v1/classify", {"input": "a dog", "threshold": 1.0, "deadline_ms": 1e-6})
    post(app, "/v1/classify", b"{")
    service.batcher.close()  # counts are complete when the thread ends
    reply = get(app, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    found = reply.body.decode()
    assert sample(found, 'berxit_requests_total{code="200"}') == 2
    assert sample(found, 'berxit_requests_total{code="400"}') == 1
    assert sample(found, "berxit_request_seconds_count") == 2
    layers = [runner.predict(text).exit_layer for text in TEXTS] + [1]
    for layer in (1, 2, 3):
        expected = sum(exited <= layer for exited in layers)
        assert sample(found, f'berxit_exit_layer_bucket{{le="{layer:.1f}"}}') == expected
    assert sample(found, "berxit_text_seconds_count") == sample(found, "berxit_queue_seconds_count") == 5
    assert sample(found, "berxit_late_predictions_total") == 1
    assert sample(found, "berxit_queued_tokens") == 0
    assert 'berxit_model_info{digest="' in found


def test_metrics_contain_drift_and_disagreement(bundle: Path) -> None:
    service = served(bundle, shadow=1.0)
    app = application(service)
    for _ in range(60):
        post(app, "/v1/classify", {"input": "dev the cat sat on the mat"})
    post(app, "/v1/classify", {"input": "a dog", "threshold": 0.9})  # another policy is not compared
    service.batcher.close()
    found = get(app, "/metrics").body.decode()
    assert sample(found, "berxit_monitored_texts") == sample(found, "berxit_shadow_runs") == 60
    assert sample(found, "berxit_drift") == 1  # the same text again and again
    assert sample(found, "berxit_disagreement") in (0.0, 1.0)
    assert 1 <= sample(found, "berxit_average_exit_layer") <= 3
    service.close()


def test_service_without_calibration_data_has_no_drift_metrics(bundle: Path, runner: EarlyExitRunner) -> None:
    service = served(bundle, policy=runner.policy.with_threshold(0.5))
    assert "berxit_drift" not in get(application(service), "/metrics").body.decode()
    service.close()


def test_application_closes_the_service_at_shutdown(service: Service) -> None:
    async def scenario() -> None:
        app = application(service)
        async with app.router.lifespan_context(app):
            assert (await call(app, "POST", "/v1/classify", [encoded({"input": "a dog"})])).status == 200

    asyncio.run(scenario())
    with pytest.raises(BerxitError, match="closed"):
        service.runner.predict("a dog")
