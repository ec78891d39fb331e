"""``berxit serve``: a bundle as an HTTP service."""

from __future__ import annotations

from pathlib import Path

import click

from berxit.runtime import EarlyExitRunner, ExitPolicy, InputError
from berxit.runtime.backend_options import parse_option_flags
from berxit.runtime.console import debug_option, register_option
from berxit.toolkit.commands.options import PATH, runner_options, say, warn


@click.command("serve")
@click.argument("bundle", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 chooses a free port.")
@click.option("--allowed-host", "hosts", multiple=True, help="Accepted Host header, can be repeated; for proxies.")
@click.option("--name", help="Name of the model in requests.  [default: the folder's name]")
@runner_options
@click.option("--threshold", type=float, help="Replaces the calibrated thresholds at every layer.")
@click.option("--full-depth", is_flag=True, help="No early exit, for comparisons.")
@click.option("--deadline-ms", type=float, help="Deadline of requests that have none, in milliseconds.")
@click.option(
    "--batch-tokens", default=256, show_default=True, type=click.IntRange(min=1), help="Largest batch, in tokens."
)
@click.option(
    "--shadow", default=0.0, show_default=True, help="Share of texts that also run to full depth, to compare both."
)
@click.option("--max-body", default=1 << 20, show_default=True, help="Largest body of a request, in bytes.")
@click.option("--max-texts", default=256, show_default=True, help="Most texts of a request.")
@click.option("--max-tokens", default=16384, show_default=True, help="Most tokens of a request.")
@click.option("--max-queued-tokens", default=65536, show_default=True, help="Most tokens that wait.")
@register_option
@debug_option
def command(
    bundle: Path,
    host: str,
    port: int,
    hosts: tuple[str, ...],
    name: str | None,
    backend: str | None,
    option_flags: tuple[str, ...],
    threads: int | None,
    threshold: float | None,
    full_depth: bool,
    deadline_ms: float | None,
    batch_tokens: int,
    shadow: float,
    max_body: int,
    max_texts: int,
    max_tokens: int,
    max_queued_tokens: int,
) -> None:
    """Serve BUNDLE over HTTP: POST /v1/classify, /v1/models, /health, /metrics.

    Only this machine can reach the service unless you give --host.
    """
    from berxit.toolkit.serving import server
    from berxit.toolkit.serving.service import Service, Settings, application
    from berxit.toolkit.serving.wire import Limits

    if full_depth and threshold is not None:
        raise InputError("--full-depth and --threshold exclude each other: choose one")
    if full_depth and shadow:
        raise InputError("--full-depth and --shadow exclude each other: choose one")
    limits = Limits(max_body, max_texts, max_tokens, max_queued_tokens)
    local = server.is_loopback(host)
    accepted = (*hosts, *(server.LOOPBACK_NAMES if local else ())) if hosts or local else ("*",)
    runner = EarlyExitRunner.load(
        bundle, backend=backend, backend_options=parse_option_flags(option_flags) or None, threads=threads
    )
    policy: ExitPolicy | None = None
    if full_depth:
        policy = runner.policy.at_depth(runner.manifest.model.layers)
    elif threshold is not None:
        policy = runner.policy.with_threshold(threshold)
    settings = Settings(name or bundle.resolve().name, policy, deadline_ms, batch_tokens, shadow, accepted, limits)
    listening = server.listen(host, port)
    service = Service(runner, settings)
    warm_up(runner, bundle)
    if not local:
        warn([f"everyone who can reach {host} can use this service: put a proxy with authentication in front of it"])

    def started() -> None:
        say(f"serving {settings.name} at {server.url_of(listening)} (Ctrl+C stops the service)")

    server.run(application(service), listening, started)
    say("stopped: all requests were answered")


def warm_up(runner: EarlyExitRunner, bundle: Path) -> None:
    """Runs the golden inputs to full depth, because the first inputs of a new runner are slow."""
    from berxit.runtime.golden import read_golden

    for text in read_golden(bundle, runner.manifest).inputs:
        runner.answer([text], runner.policy.at_depth(runner.manifest.model.layers))
