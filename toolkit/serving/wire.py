"""Wire format of ``POST /v1/classify``, that of vLLM and SGLang with additions. Specification: docs/serving.md."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import Any

from berxit.runtime import BerxitError, InputError, Prediction
from berxit.runtime.arguments import as_number
from berxit.runtime.bundle import ModelInfo
from berxit.runtime.tokenization import Text

IGNORED = frozenset({"user", "rid", "request_id", "priority"})
"""Fields of other servers that identify or order a request. They change no prediction, so they are accepted."""


class RequestError(BerxitError):
    """Request that the service refuses, with the status of its response."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Largest requests that the service accepts."""

    body: int = 1 << 20
    """Bytes of a request's body."""
    texts: int = 256
    """Texts, or pairs, of a request."""
    tokens: int = 16384
    """Tokens of a request, after each text was truncated to the model's maximum length."""
    queued_tokens: int = 65536
    """Tokens of all waiting requests together. Further requests are refused with status 503."""

    def __post_init__(self) -> None:
        """Raises InputError for a limit below 1."""
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise InputError(f"the limit of {field.name} is {getattr(self, field.name)}: it must be at least 1")

    def check_texts(self, count: int) -> None:
        """Raises RequestError for too many texts."""
        if count > self.texts:
            raise _too_large(f"input has {count} texts; the limit is {self.texts}: split it into several requests")

    def check_tokens(self, count: int) -> None:
        """Raises RequestError for too many tokens."""
        if count > self.tokens:
            raise _too_large(f"input has {count} tokens; the limit is {self.tokens}: split it into several requests")

    def check_body(self, size: int) -> None:
        """Raises RequestError for a body of too many bytes."""
        if size > self.body:
            raise _too_large(f"the body is larger than {self.body} bytes: split it into several requests")


@dataclass(frozen=True)
class ClassifyRequest:
    """Body of a request, checked."""

    texts: list[Text]
    threshold: float | None = None
    """Replaces the thresholds of the service at every layer."""
    deadline_ms: float | None = None
    """Milliseconds from the arrival of the request."""


def read_request(body: bytes, model: str, limits: Limits) -> ClassifyRequest:
    """Parses and checks the body of a request to the service that serves ``model``.

    Raises RequestError or InputError for a body that is not a valid request. The texts themselves are checked by the
    tokenizer.
    """
    data = read_json(body)
    unknown = data.keys() - IGNORED - {"model", "input", "threshold", "deadline_ms"}
    if unknown:
        raise InputError(f"unknown field '{min(unknown)}': the fields are model, input, threshold and deadline_ms")
    name = data.get("model")
    if name is not None and name != model:
        raise RequestError(HTTPStatus.NOT_FOUND, f"no model {name!r} here: this service serves '{model}'")
    texts = _texts(data.get("input"))
    limits.check_texts(len(texts))
    return ClassifyRequest(texts, _number(data, "threshold"), _number(data, "deadline_ms"))


def read_json(body: bytes) -> dict[str, Any]:
    """JSON object in ``body``. Raises InputError if it is anything else."""
    try:
        data = json.loads(body)
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"the body is a JSON {type(data).__name__}: send an object with the field input")
    return data


def _texts(value: Any) -> list[Text]:
    """Texts and pairs of the field ``input``: a string, or a list of strings or of lists of two strings."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise InputError("input must be a text, or a list of texts or pairs with at least one element")
    return [_text(element, row) for row, element in enumerate(value)]


def _text(element: Any, row: int) -> Text:
    if isinstance(element, str):
        return element
    if isinstance(element, list) and len(element) == 2 and all(isinstance(part, str) for part in element):
        return element[0], element[1]
    raise InputError(f"input[{row}] must be a text, or a list of two texts")


def _number(data: dict[str, Any], name: str) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    number = as_number(name, value)
    if not math.isfinite(number):
        raise InputError(f"{name} is {value}: give a finite number")
    return number


def _too_large(message: str) -> RequestError:
    return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)


def response(name: str, model: ModelInfo, predictions: Sequence[Prediction], tokens: int) -> dict[str, Any]:
    """Body of the response: one element of ``data`` for each text, in the order of ``input``.

    ``tokens``: number of tokens of all texts.
    """
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": [
            {"index": index, **prediction_fields(model, prediction)} for index, prediction in enumerate(predictions)
        ],
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }


def prediction_fields(model: ModelInfo, prediction: Prediction) -> dict[str, Any]:
    """Fields of one prediction. For regression, ``label`` is null and ``probs`` contains the value. For multilabel,
    ``labels`` contains the labels of the text; for tokens, ``spans`` contains its spans, and ``probs`` is empty; for
    heads, ``heads`` contains the class and the probabilities of each head."""
    heads = prediction.heads or {}
    return {
        "label": None if model.regression else prediction.label,
        "probs": list(prediction.scores.values()),
        "num_classes": len(prediction.scores),
        "exit_layer": prediction.exit_layer,
        "certainty": prediction.certainty,
        "latency_ms": prediction.latency_ms,
        "stopped_by": prediction.stopped_by,
        "truncated": prediction.truncated,
        "late": prediction.late,
        **({} if prediction.labels is None else {"labels": list(prediction.labels)}),
        **({} if prediction.spans is None else {"spans": [span._asdict() for span in prediction.spans]}),
        **({"heads": {name: head._asdict() for name, head in heads.items()}} if heads else {}),
    }


def error_body(status: HTTPStatus, message: str) -> dict[str, Any]:
    """Body of the response to a request that failed."""
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    return {"error": {"message": " ".join(message.split()), "type": kind, "param": None, "code": int(status)}}
