"""The wire format: requests and responses of POST /v1/classify."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import pytest

from berxit.runtime import BerxitError, InputError, Prediction
from berxit.runtime.bundle import ModelInfo
from berxit.toolkit.serving.wire import (
    ClassifyRequest,
    Limits,
    RequestError,
    error_body,
    read_request,
    response,
)

LIMITS = Limits(texts=3)
MODEL = ModelInfo("bert", "custom", "classification", ("no", "yes"), "accuracy", ("text",), "label", 3, 8, 16, 0, True)
REGRESSION = ModelInfo("bert", "stsb", "regression", (), "pearson", ("a", "b"), "score", 3, 8, 16, 0, True)


def request(**fields: Any) -> ClassifyRequest:
    return read_request(json.dumps(fields).encode(), "intents", LIMITS)


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([["one", "two"]], [("one", "two")]),
        ([["a", "b"], ["c", "d"]], [("a", "b"), ("c", "d")]),
    ],
)
def test_read_request_accepts_texts_and_pairs(value: Any, texts: list[Any]) -> None:
    assert request(input=value) == ClassifyRequest(texts)


def test_read_request_accepts_the_fields_of_other_servers() -> None:
    found = request(input="one", model="intents", user="u", priority=1, threshold=0.9, deadline_ms=5)
    assert found == ClassifyRequest(["one"], 0.9, 5.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'["one"]', "the body is a JSON list"),
        (b"{}", "input must be"),
        (b'{"input": []}', "input must be"),
        (b'{"input": 3}', "input must be"),
        (b'{"input": [1, 2, 3]}', r"input\[0\] must be"),
        (b'{"input": ["a", ["b"]]}', r"input\[1\] must be"),
        (b'{"input": [["a", "b", "c"]]}', r"input\[0\] must be"),
        (b'{"input": "a", "treshold": 0.5}', "unknown field 'treshold'"),
        (b'{"input": "a", "threshold": "0.5"}', "threshold is '0.5'"),
        (b'{"input": "a", "deadline_ms": true}', "deadline_ms is True"),
        (b'{"input": "a", "deadline_ms": Infinity}', "deadline_ms is inf"),
    ],
)
def test_read_request_rejects_invalid_bodies(body: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_request(body, "intents", LIMITS)


def test_read_request_rejects_another_model() -> None:
    with pytest.raises(RequestError, match="no model 'other' here: this service serves 'intents'") as caught:
        request(input="one", model="other")
    assert caught.value.status == HTTPStatus.NOT_FOUND


def test_read_request_rejects_too_many_texts() -> None:
    assert len(request(input=["a"] * 3).texts) == 3
    with pytest.raises(RequestError, match="input has 4 texts; the limit is 3") as caught:
        request(input=["a"] * 4)
    assert caught.value.status == 413


def test_limits_reject_values_below_one() -> None:
    with pytest.raises(InputError, match="the limit of tokens is 0"):
        Limits(tokens=0)


def test_response_has_the_fields_of_the_format() -> None:
    predictions = [
        Prediction("yes", {"no": 0.25, "yes": 0.75}, 2, 0.75, 1.5, False, "certainty", None, "abc"),
        Prediction("no", {"no": 0.5, "yes": 0.5}, 3, 0.5, 2.5, True, "deadline", True, "abc"),
    ]
    found = response("intents", MODEL, predictions, 17)
    assert found["object"] == "list"
    assert found["model"] == "intents"
    assert found["id"].startswith("classify-")
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] == 17
    assert found["data"] == [
        {
            "index": 0,
            "label": "yes",
            "probs": [0.25, 0.75],
            "num_classes": 2,
            "exit_layer": 2,
            "certainty": 0.75,
            "latency_ms": 1.5,
            "stopped_by": "certainty",
            "truncated": False,
            "late": None,
        },
        {
            "index": 1,
            "label": "no",
            "probs": [0.5, 0.5],
            "num_classes": 2,
            "exit_layer": 3,
            "certainty": 0.5,
            "latency_ms": 2.5,
            "stopped_by": "deadline",
            "truncated": True,
            "late": True,
        },
    ]


def test_response_of_a_regression_has_no_label() -> None:
    (found,) = response("stsb", REGRESSION, [Prediction(3.5, {"value": 3.5}, 2, 0.9, 1.0)], 4)["data"]
    assert (found["label"], found["probs"], found["num_classes"]) == (None, [3.5], 1)


def test_error_body_is_one_line() -> None:
    found = error_body(HTTPStatus.BAD_REQUEST, "two\nlines")["error"]
    assert found == {"message": "two lines", "type": "invalid_request_error", "param": None, "code": 400}
    assert error_body(HTTPStatus.SERVICE_UNAVAILABLE, "busy")["error"]["type"] == "server_error"
    assert issubclass(RequestError, BerxitError)
