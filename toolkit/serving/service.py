"""The ASGI application: routes, limits, and the runner behind them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from berxit.runtime import BerxitError, EarlyExitRunner, ExitPolicy, InputError, Prediction
from berxit.runtime.monitoring import Monitor
from berxit.runtime.tokenization import Text, TokenBatch
from berxit.toolkit.serving.batching import BATCH_TOKENS, Batcher
from berxit.toolkit.serving.metrics import Metrics
from berxit.toolkit.serving.wire import Limits, RequestError, error_body, read_request, response

_LOG = logging.getLogger(__name__)
BODY_S = 10.0
"""Longest time for the arrival of a body, in seconds."""
CHARACTERS_IN_LOOP = 20_000
"""Texts of a request with more characters are tokenized in another thread, so that the event loop stays responsive."""


@dataclass(frozen=True)
class Settings:
    """Settings of a service."""

    name: str
    """The served model's name."""
    policy: ExitPolicy | None = None
    """Exit policy of requests without threshold; None for the runner's."""
    deadline_ms: float | None = None
    """Deadline of requests without one."""
    batch_tokens: int = BATCH_TOKENS
    shadow: float = 0.0
    """Share of texts that also run to full depth, to measure the disagreement."""
    hosts: tuple[str, ...] = ("*",)
    """Accepted values of the header Host; "*" accepts all."""
    limits: Limits = field(default_factory=Limits)


class Service:
    """Predictions for concurrent requests, with one runner. ``close`` it after use."""

    def __init__(self, runner: EarlyExitRunner, settings: Settings) -> None:
        """Raises InputError for a deadline that is not positive, or a share out of range."""
        self.runner, self.settings = runner, settings
        self.policy = settings.policy or runner.policy
        if settings.deadline_ms is not None and not settings.deadline_ms > 0:
            raise InputError(f"deadline_ms is {settings.deadline_ms}: it must be above 0")
        self.metrics = Metrics(
            settings.name, runner.manifest, self._monitor(), self.policy, lambda: self.batcher.queued_tokens
        )
        self.batcher = Batcher(
            runner,
            self.metrics,
            batch_tokens=settings.batch_tokens,
            queued_tokens=settings.limits.queued_tokens,
        )

    def _monitor(self) -> Monitor | None:
        """A monitor; None if there is no calibration data to compare the texts with."""
        if self.policy != self.runner.policy:
            return None
        try:
            return self.runner.monitor(shadow=self.settings.shadow)
        except InputError as error:
            if self.settings.shadow:
                raise
            _LOG.warning("no drift metrics: %s", error)
            return None

    def close(self) -> None:
        """Answers the requests that wait, then frees the runner."""
        self.batcher.close()
        self.runner.close()

    async def classify(self, body: bytes, start: float) -> dict[str, Any]:
        """Response to a request's body that arrived at ``start``, a value of ``time.perf_counter()`` in seconds.

        Raises BerxitError; RequestError and InputError if the request is to blame.
        """
        limits = self.settings.limits
        request = read_request(body, self.settings.name, limits)
        policy = self.policy if request.threshold is None else self.runner.policy.with_threshold(request.threshold)
        deadline_ms = self.settings.deadline_ms if request.deadline_ms is None else request.deadline_ms
        if deadline_ms is not None and not deadline_ms > 0:
            raise InputError(f"deadline_ms is {deadline_ms}: it must be above 0")
        predictions, tokens = await self.predict(request.texts, policy, start, deadline_ms)
        return response(self.settings.name, self.runner.manifest.model, predictions, tokens)

    async def predict(
        self, texts: Sequence[Text], policy: ExitPolicy, start: float, deadline_ms: float | None
    ) -> tuple[list[Prediction], int]:
        """Predictions of ``texts`` in a batch with those of other requests, and the number of their tokens."""
        batch = await self._tokens(texts)
        tokens = int(batch.lengths.sum())
        self.settings.limits.check_tokens(tokens)
        return await self.batcher.submit(texts, batch, policy, start, deadline_ms), tokens

    async def _tokens(self, texts: Sequence[Text]) -> TokenBatch:
        self.runner.check_texts(texts)
        characters = sum(len(text) if isinstance(text, str) else len(text[0]) + len(text[1]) for text in texts)
        if characters > CHARACTERS_IN_LOOP:
            return await asyncio.to_thread(self.runner.tokenizer, texts)
        return self.runner.tokenizer(texts)


def application(service: Service, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The ASGI application of ``service``. ``routes``: further routes. The service is closed at shutdown."""

    async def classify(request: Request) -> Response:
        body = await read_body(request, service.settings.limits)
        start = time.perf_counter()
        content = JSONResponse(await service.classify(body, start))
        service.metrics.request(HTTPStatus.OK, time.perf_counter() - start)
        return content

    async def health(request: Request) -> Response:
        if service.batcher.failing:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "the last batch failed, see the log of the service")
        return JSONResponse({"status": "ok", "model": service.settings.name})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model_info(service)]})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    def failed(status: HTTPStatus, message: str) -> Response:
        service.metrics.request(status, None)
        return JSONResponse(error_body(status, message), status_code=status)

    def on_berxit_error(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestError):
            return failed(error.status, str(error))
        of_client = isinstance(error, InputError)
        return failed(HTTPStatus.BAD_REQUEST if of_client else HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def on_other_error(request: Request, error: Exception) -> Response:
        return failed(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error: the log of the service shows where")

    def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == HTTPStatus.NOT_FOUND:
            message += f". The paths are {', '.join(route.path for route in paths)}"
        refused = failed(HTTPStatus(error.status_code), message)
        refused.headers.update(error.headers or {})
        return refused

    def on_other_host(host: str) -> Response:
        return failed(
            HTTPStatus.BAD_REQUEST,
            f"the header Host is '{host}', which this service does not accept: start it with --allowed-host",
        )

    handlers: dict[Any, Callable[[Request, Exception], Response]] = {
        BerxitError: on_berxit_error,
        HTTPException: on_http_exception,
        Exception: on_other_error,
        ClientDisconnect: lambda request, error: Response(status_code=HTTPStatus.BAD_REQUEST),
    }
    paths = [
        Route("/v1/classify", classify, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    return Starlette(
        routes=[*paths, *routes],
        middleware=[Middleware(_KnownHosts, hosts=service.settings.hosts, refused=on_other_host)],
        exception_handlers=handlers,
        lifespan=lifespan,
    )


class _KnownHosts:
    """Starlette's check of the header Host, with an error in the format of all others."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], refused: Callable[[str], Response]) -> None:
        self._app, self._hosts, self._refused = app, list(hosts), refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = False

        async def accept(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal accepted
            accepted = True

        await TrustedHostMiddleware(accept, self._hosts, www_redirect=False)(scope, receive, _discard)
        app = self._app if accepted else self._refused(Headers(scope=scope).get("host", ""))
        await app(scope, receive, send)


async def _discard(message: Message) -> None: ...


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a JSON request. At most ``limits.body`` bytes are read.

    Raises RequestError for another content type, a larger body, or one that takes longer than BODY_S.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # Web pages of other sites can send other types without a preflight request.
        raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send the header Content-Type: application/json")
    limits.check_body(int(request.headers.get("content-length", "0")))
    body = bytearray()

    async def receive() -> None:
        async for part in request.stream():
            body.extend(part)
            limits.check_body(len(body))

    try:
        await asyncio.wait_for(receive(), BODY_S)
    except asyncio.TimeoutError:
        raise RequestError(HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {BODY_S:g} seconds") from None
    return bytes(body)


def model_info(service: Service) -> dict[str, Any]:
    """Description of the served model, an element of the response of ``/v1/models``."""
    manifest, policy = service.runner.manifest, service.policy
    return {
        "id": service.settings.name,
        "object": "model",
        "owned_by": "berxit",
        "task": manifest.model.task,
        "kind": manifest.model.kind,
        "labels": list(manifest.model.labels),
        "text_columns": list(manifest.model.text_columns),
        "max_model_len": manifest.model.max_length,
        "exits": list(manifest.exits),
        "criterion": policy.criterion,
        "digest": manifest.digest,
    }
