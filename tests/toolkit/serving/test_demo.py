"""The routes of the demo page."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi_client import get, post
from starlette.applications import Starlette

from berxit.runtime import EarlyExitRunner, ExitPolicy
from berxit.runtime.policies import CRITERIA
from berxit.runtime.policies.criteria import Confidence
from berxit.toolkit.serving import demo
from berxit.toolkit.serving.service import Service, Settings, application

EXAMPLES = ["the cat sat on the mat", "a dog", "stop the music", "turn on the light", "the big red dog"]


@pytest.fixture
def service(bundle: Path) -> Iterator[Service]:
    service = Service(EarlyExitRunner.load(bundle, threads=1), Settings("tiny"))
    yield service
    service.close()


@pytest.fixture
def app(service: Service) -> Starlette:
    return application(service, demo.routes(service, EXAMPLES))


def events(body: bytes) -> list[tuple[str, Any]]:
    """Server-sent events, as (name, data)."""
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", body.decode())
    assert "".join(f"event: {name}\ndata: {data}\n\n" for name, data in found) == body.decode()
    return [(name, json.loads(data)) for name, data in found]


def test_stream_sends_the_prediction_of_every_exit(app: Starlette, service: Service) -> None:
    reply = post(app, "/demo/stream", {"input": "the cat sat"})
    assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    found = events(reply.body)
    assert [name for name, _ in found] == ["layer", "layer", "layer", "end"]
    for (_, data), expected in zip(found, service.runner.stream("the cat sat"), strict=False):
        assert (data["exit_layer"], data["label"]) == (expected.exit_layer, expected.label)
        assert data["certainty"] == pytest.approx(expected.certainty, abs=1e-6)


def test_stream_ends_with_an_error_if_the_backend_fails(
    app: Starlette, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = service.runner.backend.layer

    def fails(number: int, state: Any) -> Any:
        if number == 2:
            raise RuntimeError("no memory")
        return layer(number, state)

    monkeypatch.setattr(service.runner.backend, "layer", fails)
    (first, last) = events(post(app, "/demo/stream", {"input": "a dog"}).body)
    assert (first[0], last[0]) == ("layer", "error")
    assert "no memory" in last[1]["error"]["message"]


@pytest.mark.parametrize("value", ["", ["a", "b"], [["a", "b"]]])
def test_stream_refuses_anything_but_one_text(app: Starlette, value: Any) -> None:
    assert post(app, "/demo/stream", {"input": value}).status == 400


def test_info_describes_criterion_thresholds_and_examples(app: Starlette, service: Service) -> None:
    info = get(app, "/demo/info").json
    assert (info["criterion"], info["higher_is_more_certain"], info["inclusive"]) == ("confidence", True, False)
    assert info["range"] == [0.0, 1.0]
    assert info["thresholds"] == list(service.policy.thresholds)
    assert info["examples"] == [["a dog"], ["stop the music"], ["the big red dog"], ["turn on the light"]]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (ExitPolicy.uniform("entropy", 0.1, 3), {"higher_is_more_certain": False, "step": 0}),
        (
            ExitPolicy("confidence", (0.9, (0.8, 0.7)), (1.0,) * 3, off=(1,)),
            {"thresholds": [0.9, (0.8, 0.7)], "off": [1]},
        ),
        (ExitPolicy.uniform("patience", 2, 3), {"range": [1.0, 3.0], "inclusive": True, "step": 1}),
    ],
)
def test_info_of_other_policies(service: Service, policy: ExitPolicy, expected: dict[str, Any]) -> None:
    service.policy = policy
    info = demo.page_info(service, EXAMPLES)
    assert {name: info[name] for name in expected} == expected
    (low, high) = info["range"]
    assert (low < high) == info["higher_is_more_certain"]


def test_info_of_a_criterion_without_bounds_has_no_slider(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    class Margin(Confidence):
        def bounds(self, classes: int) -> tuple[float, float]:
            return -math.inf, math.inf

    monkeypatch.setitem(CRITERIA, "margin", Margin())
    service.policy = ExitPolicy.uniform("margin", 2.0, 3)
    assert demo.page_info(service, EXAMPLES)["range"] is None


def test_info_of_a_pair_has_both_texts(service: Service) -> None:
    model = dataclasses.replace(service.runner.manifest.model, text_columns=("a", "b"))
    service.runner.manifest = dataclasses.replace(service.runner.manifest, model=model)
    assert demo.page_info(service, [("one", "two")])["examples"] == [("one", "two")]


def test_page_refers_only_to_its_own_files(app: Starlette) -> None:
    """The page works offline, and its policy forbids other sources and inline code."""
    page = get(app, "/")
    assert page.headers["content-security-policy"] == "default-src 'self'"
    names = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert {"demo.css", "demo.js", "icon.svg"} == set(names)
    for name in names:
        reply = get(app, f"/{name}")
        assert reply.status == 200
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", reply.body)
    assert not re.search(r"<script>|style=| on\w+=", page.body.decode())


def test_demo_routes_are_not_part_of_the_service(service: Service) -> None:
    app = application(service)
    assert {get(app, path).status for path in ("/", "/demo/info", "/demo.js")} == {404}
