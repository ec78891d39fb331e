"""The demo page, and the routes that it calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from berxit.runtime import BerxitError, InputError, Prediction
from berxit.runtime.policies import CRITERIA, UNBOUNDED
from berxit.runtime.tokenization import Text
from berxit.toolkit.serving.service import Service, model_info, read_body
from berxit.toolkit.serving.wire import error_body, prediction_fields, read_request

PAGE = Path(__file__).parent / "page"
EXAMPLES = 4
"""Most example texts on the page, the shortest."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes(service: Service, examples: Sequence[Text]) -> list[BaseRoute]:
    """Routes of the demo page. ``examples``: texts that the page offers."""

    async def info(request: Request) -> Response:
        return JSONResponse(page_info(service, examples), headers=HEADERS)

    async def stream(request: Request) -> Response:
        body = await read_body(request, service.settings.limits)
        wanted = read_request(body, service.settings.name, service.settings.limits)
        if len(wanted.texts) != 1:
            raise InputError(f"input has {len(wanted.texts)} texts: give one text, or one pair in a list")
        steps = await asyncio.to_thread(service.runner.stream, *_parts(wanted.texts[0]))
        return StreamingResponse(events(service, steps), media_type="text/event-stream", headers=HEADERS)

    def file(name: str) -> Route:
        path = "/" if name == "index.html" else f"/{name}"
        return Route(path, lambda request: FileResponse(PAGE / name, headers=HEADERS))

    return [
        *(file(path.name) for path in sorted(PAGE.iterdir())),
        Route("/demo/info", info),
        Route("/demo/stream", stream, methods=["POST"]),
    ]


def events(service: Service, steps: Iterator[Prediction]) -> Iterator[str]:
    """Server-sent events: ``layer`` with the prediction of an exit, the shallowest first, then ``end`` or ``error``."""
    try:
        for step in steps:
            yield event("layer", prediction_fields(service.runner.manifest.model, step))
    except BerxitError as error:
        yield event("error", error_body(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)))
    else:
        yield event("end", {})


def event(name: str, data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def page_info(service: Service, examples: Sequence[Text]) -> dict[str, Any]:
    """Values that the page needs: the model, its criterion and thresholds, and examples.

    ``range``: certainties at the left and the right end of the threshold slider, the least certain first.
    """
    manifest, policy = service.runner.manifest, service.policy
    criterion = CRITERIA[policy.criterion]
    classes = len(manifest.model.labels) or 1
    scale = [bound(manifest.model.layers, classes) for bound in (criterion.always, criterion.never)]
    return {
        **model_info(service),
        "layers": manifest.model.layers,
        "thresholds": [policy.thresholds[layer - 1] for layer in manifest.exits[:-1]],
        "off": list(policy.off),
        "calibrated": manifest.calibration is not None,
        "higher_is_more_certain": criterion.higher_is_more_certain,
        "inclusive": criterion.inclusive,
        "step": 1 if criterion.counts else 0,
        "range": scale if max(map(abs, scale)) < UNBOUNDED else None,
        "backend": service.runner.backend.label,
        "threads": service.runner.backend.threads,
        "precision": manifest.precision,
        "examples": sorted((_parts(text) for text in examples), key=lambda parts: sum(map(len, parts)))[:EXAMPLES],
    }


def _parts(text: Text) -> tuple[str, ...]:
    """The text, or the two texts of a pair."""
    return (text,) if isinstance(text, str) else text
