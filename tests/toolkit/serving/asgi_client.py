"""Calls an ASGI application in this process, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from starlette.applications import Starlette

JSON = {"content-type": "application/json", "host": "localhost"}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"]["message"])


async def call(
    app: Starlette,
    method: str,
    path: str,
    parts: Sequence[bytes] = (b"",),
    headers: Mapping[str, str] = JSON,
    pause: float = 0.0,
) -> Reply:
    """The application's reply. The body arrives in ``parts``, ``pause`` seconds apart."""
    waiting = list(parts)
    status, found, body = 0, {}, b""
    finished = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not waiting:
            await finished.wait()
            return {"type": "http.disconnect"}
        await asyncio.sleep(pause)
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        nonlocal status, found, body
        if message["type"] == "http.response.start":
            status = message["status"]
            found = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            body += message.get("body", b"")
            if not message.get("more_body"):
                finished.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, receive, send)
    return Reply(status, found, body)


def get(app: Starlette, path: str, headers: Mapping[str, str] = JSON) -> Reply:
    return asyncio.run(call(app, "GET", path, headers=headers))


def post(app: Starlette, path: str, body: Any, headers: Mapping[str, str] = JSON) -> Reply:
    """``body``: bytes, or an object to send as JSON."""
    return asyncio.run(call(app, "POST", path, [body if isinstance(body, bytes) else encoded(body)], headers))


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()
