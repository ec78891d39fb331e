"""``berxit demo``: a local page that shows a prediction layer by layer."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from berxit.runtime import EarlyExitRunner
from berxit.runtime.backend_options import parse_option_flags
from berxit.runtime.console import debug_option, register_option
from berxit.runtime.golden import read_golden
from berxit.toolkit.commands.options import PATH, runner_options, say
from berxit.toolkit.commands.serve import warm_up


@click.command("demo")
@click.argument("bundle", type=PATH)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 chooses a free port.")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in a browser.")
@runner_options
@register_option
@debug_option
def command(
    bundle: Path, port: int, browser: bool, backend: str | None, option_flags: tuple[str, ...], threads: int | None
) -> None:
    """Show BUNDLE on a local page: type a text and see its prediction after every layer.

    Only this machine can reach the page.
    """
    from berxit.toolkit.serving import demo, server
    from berxit.toolkit.serving.service import Service, Settings, application

    runner = EarlyExitRunner.load(
        bundle, backend=backend, backend_options=parse_option_flags(option_flags) or None, threads=threads
    )
    listening = server.listen("127.0.0.1", port)
    service = Service(runner, Settings(bundle.resolve().name, hosts=server.LOOPBACK_NAMES))
    warm_up(runner, bundle)
    examples = read_golden(bundle, runner.manifest).inputs

    def started() -> None:
        say(f"demo at {server.url_of(listening)} (Ctrl+C stops it)")
        if browser:
            webbrowser.open(server.url_of(listening))

    server.run(application(service, demo.routes(service, examples)), listening, started)
