"""Throughput and latency of ``berxit serve``, compared with the same service at full depth, on this machine.

    python benchmarks/serving_load.py BUNDLE --data DATA [--threads 1] [--rounds 3] --output serving

Starts two services on loopback: one with the bundle's policy and one at full depth. First measures the throughput of
each, with 8 clients that wait for each response. Then sends requests at fixed rates, as shares of the throughput at
full depth, at random times (Poisson), to one service after the other, in several rounds. Latency counts from the time
at which a request was due, so a client that cannot keep up does not hide it. Last, sends --requests requests from 8
clients and compares the predictions, the memory and the open files. For details, see benchmarks/README.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np

from berxit import devices
from berxit.runtime import BerxitError, EarlyExitRunner
from berxit.runtime.console import debug_option, run
from berxit.runtime.examples import find_split, read_examples_for
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import Text

CLIENTS = 8
SHARES = (0.25, 0.5, 0.75, 0.9, 1.2)
"""Rates, as shares of the throughput at full depth."""
LOAD = 0.5
"""Share at which the deadline must be met by 99% of the requests."""
CONNECTIONS = 64
"""Most open requests of a measurement at a fixed rate."""
WARM_UP = 500
"""Requests before memory and open files are read for the first time."""
SAME_SCORE = 1e-3
"""Scores that differ by less count as equal; rounding differs between batches."""


@dataclass(frozen=True)
class Reply:
    """One response."""

    seconds: float
    """From the time at which the request was due."""
    status: int
    data: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Load:
    """Results of one service at one rate."""

    service: str
    rate: float
    """Requests per second that were due."""
    requests: int
    throughput: float
    """Predictions per second; refused requests are not counted."""
    refused: int
    """Responses with status 503."""
    errors: int
    """Other responses that are not predictions."""
    p50_ms: float
    p99_ms: float
    average_exit_layer: float
    late: float | None
    """Share of the texts that exited after their deadline; None without a deadline."""
    cpu_ms: float
    """CPU time of the service per prediction. It depends little on other processes of the machine."""

    @classmethod
    def of(cls, service: str, rate: float, replies: Sequence[Reply], seconds: float, cpu_seconds: float) -> Load:
        good = [reply for reply in replies if reply.status == 200]
        if not good:
            raise BerxitError(f"{service}: no request of {len(replies)} succeeded")
        refused = sum(reply.status == 503 for reply in replies)
        found = [prediction for reply in good for prediction in reply.data]
        p50, p99 = np.percentile([1e3 * reply.seconds for reply in good], [50, 99]).tolist()
        layers = float(np.mean([prediction["exit_layer"] for prediction in found]))
        late = [prediction["late"] for prediction in found if prediction["late"] is not None]
        return cls(
            service,
            rate,
            len(replies),
            len(good) / seconds,
            refused,
            len(replies) - len(good) - refused,
            p50,
            p99,
            layers,
            float(np.mean(late)) if late else None,
            1e3 * cpu_seconds / len(good),
        )


@dataclass(frozen=True)
class Soak:
    """Results of many requests from concurrent clients."""

    requests: int
    clients: int
    errors: int
    throughput: float
    p50_ms: float
    p99_ms: float
    different: int
    """Predictions whose label, exit layer or scores differ from the runner's."""
    memory_mib: tuple[float, float]
    """Resident memory of the service after WARM_UP requests and after all."""
    open_files: tuple[int, int]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Inputs: a file, or a folder with splits.")
@click.option("--split", default="dev", show_default=True)
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(min=1), help="Use the first N inputs.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="CPU threads of a service.")
@click.option("--seconds", default=4.0, show_default=True, help="Duration of each measurement.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Measurements of each rate.")
@click.option("--requests", default=10_000, show_default=True, type=click.IntRange(min=1), help="Of the last part.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the results.")
@debug_option
def command(
    bundle: Path,
    data: Path,
    split: str,
    limit: int,
    threads: int,
    seconds: float,
    rounds: int,
    requests: int,
    output: Path,
) -> None:
    """Measure how BUNDLE is served on this machine."""
    runner = EarlyExitRunner.load(bundle, threads=threads)
    texts = read_examples_for(runner.manifest.model, find_split(data, split)).head(limit).texts
    before = devices.read_sensors()
    with ExitStack() as services:
        early, full = (services.enter_context(served(bundle, threads, *options)) for options in ((), ("--full-depth",)))
        measured_throughput: dict[str, list[float]] = {"early": [], "full depth": []}
        for _ in range(rounds):
            for name, one in (("early", early), ("full depth", full)):
                measured_throughput[name].append(capacity(one, texts, seconds))
        throughput = {name: float(np.median(found)) for name, found in measured_throughput.items()}
        click.echo(f"requests per second with {CLIENTS} clients: {throughput}")
        calm = {"full depth": (full, bodies(texts))}
        (load,) = at_rate_interleaved(calm, SHARES[0] * throughput["full depth"], rounds * seconds, 1)
        deadline_ms = load.p99_ms
        cases = {
            "full depth": (full, bodies(texts)),
            "early exit": (early, bodies(texts)),
            "early exit, deadline": (early, bodies(texts, deadline_ms=deadline_ms)),
        }
        loads = []
        for share in SHARES:
            rate = share * throughput["full depth"]
            for load in at_rate_interleaved(cases, rate, seconds, rounds):
                loads.append(load)
                click.echo(str(load))
        soaked = soak(early, runner, texts, requests)
        click.echo(str(soaked))
    measured = {
        "throughput": throughput,
        "throughput_ratio": throughput["early"] / throughput["full depth"],
        "deadline_ms": deadline_ms,
        "loads": [dataclasses.asdict(load) for load in loads],
        "soak": dataclasses.asdict(soaked),
    }
    conditions = {
        "bundle": bundle.resolve().name,
        "precision": runner.manifest.precision,
        "threads": threads,
        "layers": runner.backend.layers,
        "inputs": len(texts),
        "seconds": seconds,
        "rounds": rounds,
        "machine": dataclasses.asdict(devices.this_machine()),
        "versions": {name: metadata.version(name) for name in ("berxit", "numpy", "starlette", "uvicorn")},
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(devices.read_sensors()),
    }
    text = report(conditions, throughput, deadline_ms, loads, soaked)
    files = write_results(output, "serving", {**conditions, **measured}, text)
    click.echo(f"\n{text}\n\nwritten: {', '.join(map(str, files))}")


@dataclass(frozen=True)
class ServedBundle:
    """A running service."""

    pid: int
    port: int

    @property
    def memory_mib(self) -> float:
        """Resident memory of the process (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the process (Linux)."""
        after_name = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def open_files(self) -> int:
        """Number of open file descriptors (Linux)."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@contextmanager
def served(bundle: Path, threads: int, *options: str) -> Iterator[ServedBundle]:
    """``berxit serve`` in a process of its own, which is stopped at the end."""
    program = [sys.executable, "-m", "berxit.toolkit", "serve", str(bundle), "--port", "0", "--threads", str(threads)]
    with subprocess.Popen([*program, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = ""
        for line in process.stderr:
            if found := re.search(r" at http://127\.0\.0\.1:(\d+) ", line):
                break
        else:
            raise BerxitError(f"the service did not start: {line}")
        try:
            yield ServedBundle(process.pid, int(found[1]))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def bodies(texts: Sequence[Text], **options: Any) -> list[bytes]:
    """One request per text."""
    return [json.dumps({"input": text if isinstance(text, str) else [text], **options}).encode() for text in texts]


class Connection:
    """HTTP connection that sends one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def classify(self, body: bytes, due: float) -> Reply:
        """The response to a request that was due at ``due``, a value of ``time.perf_counter()`` in seconds."""
        head = "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        headers = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        (length,) = re.findall(r"content-length: (\d+)", headers)
        content = json.loads(await self._reader.readexactly(int(length)))
        status = int(headers.split()[1])
        return Reply(time.perf_counter() - due, status, tuple(content.get("data", ())))

    def close(self) -> None:
        self._writer.close()


async def with_clients(port: int, requests: Sequence[bytes], clients: int, seconds: float | None) -> list[Reply]:
    """Replies in the order of ``requests``, from clients that each send one request at a time. Ends after
    ``seconds``, if given."""
    replies: list[Reply | None] = [None] * len(requests)
    waiting = iter(enumerate(requests))
    end = time.perf_counter() + (seconds or float("inf"))

    async def client() -> None:
        connection = await Connection.open(port)
        for place, body in waiting:
            replies[place] = await connection.classify(body, time.perf_counter())
            if time.perf_counter() > end:
                break
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return [reply for reply in replies if reply is not None]


def capacity(service: ServedBundle, texts: Sequence[Text], seconds: float) -> float:
    """Requests per second with CLIENTS clients that wait for each response."""
    requests = bodies(texts) * (1 + int(1000 * seconds / len(texts)))  # more than any service here answers
    asyncio.run(with_clients(service.port, requests[: 4 * CLIENTS], CLIENTS, None))
    start = time.perf_counter()
    replies = asyncio.run(with_clients(service.port, requests, CLIENTS, seconds))
    return len(replies) / (time.perf_counter() - start)


def at_rate_interleaved(
    cases: Mapping[str, tuple[ServedBundle, Sequence[bytes]]], rate: float, seconds: float, rounds: int
) -> list[Load]:
    """Results of each case, by name: a service and its requests. The cases are measured in turn, in every round."""
    replies: dict[str, list[Reply]] = {name: [] for name in cases}
    spent, cpu = dict.fromkeys(cases, 0.0), dict.fromkeys(cases, 0.0)
    for seed in range(rounds):
        for name, (service, requests) in cases.items():
            before = service.cpu_seconds
            found, duration = at_rate(service, requests, rate, seconds, seed)
            replies[name] += found
            spent[name] += duration
            cpu[name] += service.cpu_seconds - before
    return [Load.of(name, rate, replies[name], spent[name], cpu[name]) for name in cases]


def at_rate(
    service: ServedBundle, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0
) -> tuple[list[Reply], float]:
    """Sends requests at random times, ``rate`` per second on average. Each uses a free connection, of CONNECTIONS.
    Returns the replies and the seconds until the last one."""

    async def measure() -> tuple[list[Reply], float]:
        free: asyncio.Queue[Connection] = asyncio.LifoQueue()
        for _ in range(CONNECTIONS):
            free.put_nowait(await Connection.open(service.port))

        async def send(body: bytes, due: float) -> Reply:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            connection = await free.get()
            try:
                return await connection.classify(body, due)
            finally:
                free.put_nowait(connection)

        generator, start = random.Random(seed), time.perf_counter()
        due, sending = start + generator.expovariate(rate), []
        while due < start + seconds or not sending:
            sending.append(send(requests[len(sending) % len(requests)], due))
            due += generator.expovariate(rate)
        replies = await asyncio.gather(*sending)
        spent = time.perf_counter() - start
        while not free.empty():
            free.get_nowait().close()
        return list(replies), max(spent, seconds)

    return asyncio.run(measure())


def soak(service: ServedBundle, runner: EarlyExitRunner, texts: Sequence[Text], requests: int) -> Soak:
    """Sends ``requests`` requests from CLIENTS clients, and compares the predictions with the runner's."""
    sent = bodies(texts) * (1 + requests // len(texts))
    asyncio.run(with_clients(service.port, sent[:WARM_UP], CLIENTS, None))
    memory, files = service.memory_mib, service.open_files
    start, cpu = time.perf_counter(), service.cpu_seconds
    replies = asyncio.run(with_clients(service.port, sent[:requests], CLIENTS, None))
    spent = time.perf_counter() - start
    load = Load.of("soak", requests / spent, replies, spent, service.cpu_seconds - cpu)
    expected = [runner.answer([text], runner.policy)[0] for text in texts[:requests]]
    different = 0
    for place, reply in enumerate(replies):
        wanted = expected[place % len(texts)]
        for found in reply.data:
            scores = np.abs(np.array(found["probs"]) - list(wanted.scores.values())).max()
            same = found["label"] in (wanted.label, None) and found["exit_layer"] == wanted.exit_layer
            different += not (same and scores < SAME_SCORE)
    return Soak(
        requests,
        CLIENTS,
        load.errors + load.refused,
        load.throughput,
        load.p50_ms,
        load.p99_ms,
        different,
        (memory, service.memory_mib),
        (files, service.open_files),
    )


def report(
    conditions: dict[str, Any], throughput: dict[str, float], deadline_ms: float, loads: Sequence[Load], soaked: Soak
) -> str:
    """The results as Markdown."""
    table = markdown_table(
        [
            "requests/s",
            "service",
            "answered/s",
            "p50 ms",
            "p99 ms",
            "CPU ms",
            "average exit layer",
            "late",
            "refused",
            "errors",
        ],
        [
            [
                f"{load.rate:.0f}",
                load.service,
                f"{load.throughput:.0f}",
                f"{load.p50_ms:.1f}",
                f"{load.p99_ms:.1f}",
                f"{load.cpu_ms:.1f}",
                f"{load.average_exit_layer:.2f}",
                "" if load.late is None else f"{load.late:.1%}",
                f"{load.refused / load.requests:.1%}",
                load.errors,
            ]
            for load in loads
        ],
    )
    calm = [load for load in loads if load.late is not None and load.rate <= LOAD * throughput["full depth"]]
    met = all(load.late is not None and load.late <= 0.01 for load in calm)
    return "\n\n".join(
        [
            f"{conditions['bundle']} ({conditions['precision']}, {conditions['threads']} threads of each service),"
            f" {conditions['inputs']} inputs, one per request, {conditions['rounds']} rounds of"
            f" {conditions['seconds']:g} s per row;"
            f" load average {conditions['before']['load'] or 0:.1f} before,"
            f" {conditions['after']['load'] or 0:.1f} after",
            f"With {CLIENTS} clients: {throughput['early']:.0f} requests/s with early exit,"
            f" {throughput['full depth']:.0f} at full depth"
            f" ({throughput['early'] / throughput['full depth']:.2f}x)",
            table,
            f"Deadline {deadline_ms:.1f} ms, full depth's p99 at {SHARES[0]:.0%} of its throughput:"
            f" {'met' if met else 'not met'} by 99% of the texts at up to {LOAD:.0%}",
            f"{soaked.requests} requests from {soaked.clients} clients: {soaked.errors} errors, {soaked.different}"
            f" predictions differ from the runner's; resident memory {soaked.memory_mib[0]:.1f} MiB after {WARM_UP}"
            f" requests and {soaked.memory_mib[1]:.1f} MiB after all; {soaked.open_files[0]} and"
            f" {soaked.open_files[1]} open files; p50 {soaked.p50_ms:.1f} ms, p99 {soaked.p99_ms:.1f} ms",
        ]
    )


if __name__ == "__main__":
    run(command)
