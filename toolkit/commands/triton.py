"""``berxit triton``: a bundle as a model folder for Triton Inference Server."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from berxit.devices import install_command
from berxit.runtime.console import debug_option
from berxit.toolkit.commands.options import PATH, force_option


@click.command("triton")
@click.argument("bundle", type=PATH)
@click.option("--output", type=PATH, help="The model's folder; its name is the model's.  [default: BUNDLE-triton]")
@click.option("--max-batch", default=64, show_default=True, type=click.IntRange(min=1), help="Largest batch.")
@click.option("--backend", help="Backend, if the target has several.  [default: the first installed]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the bundle's]")
@click.option("--threshold", type=float, help="Threshold of requests that have none.  [default: calibrated]")
@click.option("--deadline-ms", type=float, help="Deadline of requests that have none.")
@force_option
@debug_option
def command(
    bundle: Path,
    output: Path | None,
    max_batch: int,
    backend: str | None,
    threads: int | None,
    threshold: float | None,
    deadline_ms: float | None,
    force: bool,
) -> None:
    """Write BUNDLE as a model folder for Triton's Python backend: early exit inside one model."""
    from berxit.exporters.triton_server.model_folder import TritonOptions, write_model_folder

    here = bundle.resolve()
    output = output or here.with_name(f"{here.name}-triton")
    options = TritonOptions(max_batch, backend, threads, threshold, deadline_ms)
    manifest = write_model_folder(bundle, output, options, force=force)
    click.echo(f"model: {output}")
    click.echo(
        f"next: tritonserver --model-repository {shlex.quote(str(output.resolve().parent))}, with berxit in its Python"
        f" environment ({install_command(manifest.target)})"
    )
