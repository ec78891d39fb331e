"""The service in a process of its own, on a real socket."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from berxit.runtime import InputError
from berxit.toolkit.serving import server

ROOT = Path(__file__).resolve().parents[3]
LONGEST_S = 60


@contextmanager
def running(bundle: Path, *command: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command that serves ``bundle`` on a free port, and the port."""
    program = [sys.executable, "-m", "berxit.toolkit", *command, str(bundle), "--port", "0", "--threads", "1"]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        line = service.stderr.readline()
        found = re.search(r" at http://127\.0\.0\.1:(\d+) ", line)
        assert found is not None, line + service.stderr.read()
        yield service, int(found[1])
        if service.poll() is None:
            service.kill()


@pytest.fixture
def process(bundle: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with running(bundle, "serve") as found:
        yield found


def test_serve_answers_its_requests_before_it_stops_at_sigterm(process: tuple[subprocess.Popen[str], int]) -> None:
    service, port = process
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_S)
    idle.request("GET", "/health")
    assert idle.getresponse().read() == b'{"status":"ok","model":"bundle"}'
    body = json.dumps({"input": ["the cat sat on the mat"] * 200, "threshold": 1.0}).encode()
    statuses = []
    half = threading.Event()

    def classify() -> None:
        """Sends a request whose second half arrives after the signal."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_S)
        connection.putrequest("POST", "/v1/classify")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:100])
        half.set()
        assert signalled.wait(LONGEST_S)
        connection.send(body[100:])
        reply = connection.getresponse()
        statuses.append((reply.status, len(json.loads(reply.read())["data"])))

    signalled = threading.Event()
    client = threading.Thread(target=classify)
    client.start()
    assert half.wait(LONGEST_S)
    idle.request("GET", "/health")  # the service has read the first half when it answers this
    idle.getresponse().read()
    service.send_signal(signal.SIGTERM)
    signalled.set()
    client.join(LONGEST_S)
    assert service.wait(LONGEST_S) == 0
    assert statuses == [(200, 200)]
    assert service.stderr is not None
    assert service.stderr.read() == "stopped: all requests were answered\n"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_demo_serves_its_page_until_sigint(bundle: Path) -> None:
    with running(bundle, "demo", "--no-browser") as (service, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_S)
        connection.request("GET", "/")
        assert b"<title>berxit demo</title>" in connection.getresponse().read()
        service.send_signal(signal.SIGINT)
        assert service.wait(LONGEST_S) == 0


def test_connection_sends_the_second_part_of_a_response_at_once() -> None:
    with (
        server.listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_listen_reports_an_address_in_use() -> None:
    with server.listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert server.url_of(listening) == f"http://127.0.0.1:{port}"
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}: .*Choose another --port"):
            server.listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_is_loopback_accepts_only_addresses_of_this_machine(host: str) -> None:
    assert server.is_loopback(host)
    assert not server.is_loopback("0.0.0.0")
    assert not server.is_loopback("example.org")
