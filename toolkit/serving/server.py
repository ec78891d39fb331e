"""Runs a service on a socket until a signal arrives."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from berxit.runtime import InputError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")
"""Accepted values of the header Host on a loopback address. Others come from web pages that rebind a DNS name."""
CONNECTIONS = 512
"""Largest number of open connections."""
KEEP_ALIVE_S = 75
"""Time after which an idle connection is closed, in seconds. Proxies keep theirs for 60 seconds. A proxy that sends a
request on a connection that is being closed reports an error."""
DRAIN_S = 30
"""Longest time for the requests that run when a signal arrives, in seconds."""


def is_loopback(host: str) -> bool:
    """True for an address that only this machine can reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket. Raises InputError if the address is unknown or in use."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=1024)  # type: ignore[arg-type]
    except OSError as error:
        number = error.errno or 0  # negative in errors of getaddrinfo
        reason = os.strerror(number) if number > 0 else error.strerror
        raise InputError(f"cannot listen on {host}:{port}: {reason}. Choose another --port or --host") from None
    # Connections inherit it. A response is written in two parts, and without it the second part waits for the client's
    # acknowledgement of the first one, which clients delay by 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def url_of(listening: socket.socket) -> str:
    """URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(app: Starlette, listening: socket.socket, started: Callable[[], None]) -> None:
    """Serves ``app`` until SIGINT or SIGTERM, then answers the requests that run, and returns.

    ``started`` is called when requests are accepted. A second SIGINT ends the requests that run.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    asyncio.run(_Server(config, started).serve(sockets=[listening]))


class _Server(uvicorn.Server):
    """uvicorn's server, which returns after a signal instead of raising the signal again."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
