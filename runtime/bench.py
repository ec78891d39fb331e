"""``python -m runtime.bench --device DEVICE BUNDLE``: latency on this device against average exit layer."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from berxit.runtime.arguments import refuse_alone
from berxit.runtime.backend_options import parse_option_flags
from berxit.runtime.backends import options_help
from berxit.runtime.bench_report import report_text, write_result
from berxit.runtime.benchmark import bench
from berxit.runtime.bundle import read_manifest
from berxit.runtime.console import (
    FiniteRange,
    debug_option,
    progress_bar,
    refuse_split_of_no_folder,
    register_option,
    run,
)
from berxit.runtime.errors import InputError
from berxit.runtime.examples import find_split, read_examples_for
from berxit.runtime.placement import device_here
from berxit.runtime.storage import check_results_folder
from berxit.runtime.tuning import TuningResult, tune
from berxit.runtime.validity import PRESETS


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--device", default="auto", show_default=True, help="A name that `berxit devices` lists.")
@click.option("--data", type=click.Path(path_type=Path), help="Labelled inputs: a file, or a folder with splits.")
@click.option("--split", default="dev", show_default=True, help="The split, if --data is a folder.")
@click.option("--limit", type=click.IntRange(min=1), help="Use the first N inputs only.")
@click.option("--backend", help="Backend, if the target has several.  [default: the first installed]")
@click.option(
    "--backend-option",
    "option_flags",
    multiple=True,
    metavar="OPTION",
    help=f"Option of the backend, can be repeated. {options_help()}",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the bundle's, or the cores, at most 4]"
)
@click.option(
    "--tune",
    "tuning",
    is_flag=True,
    help="Measure every installed backend, option and number of threads first; use the fastest.",
)
@click.option("--accept-noise", is_flag=True, help="With --tune: use the fastest even on a busy machine.")
@click.option(
    "--lazy", is_flag=True, help="Load a layer when an input first reaches it; shows the memory that this saves."
)
@click.option("--thresholds", default=7, show_default=True, type=click.IntRange(min=1), help="Number of thresholds.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="standard",
    show_default=True,
    help="Rules by which the result is valid. single-stream: those of MLPerf Mobile; about seven minutes, more for"
    " large models.",
)
@click.option(
    "--queries", type=click.IntRange(min=1), help="Minimum per operating point.  [default: the preset's, 200]"
)
@click.option("--seconds", default=10.0, show_default=True, type=FiniteRange(min=0), help="Minimum in total.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the results; BUNDLE-bench by default.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@register_option
@debug_option
def command(
    bundle: Path | None,
    device: str,
    data: Path | None,
    split: str,
    limit: int | None,
    backend: str | None,
    option_flags: tuple[str, ...],
    threads: int | None,
    tuning: bool,
    accept_noise: bool,
    lazy: bool,
    thresholds: int,
    preset: str,
    queries: int | None,
    seconds: float,
    output: Path | None,
    quiet: bool,
) -> None:
    """Measure BUNDLE on this device: latency against average exit layer.

    Writes bench.json, bench.md, queries.json and, if matplotlib is installed, bench.png.
    """
    refuse_split_of_no_folder(data)
    if data is None:
        refuse_alone({"--limit": limit}, "--data")
    if not tuning:
        refuse_alone({"--accept-noise": accept_noise}, "--tune")
    bundle = bundle or _bundle_here(device)
    here = bundle.resolve()
    folder = output or here.with_name(f"{here.name}-bench")
    check_results_folder(folder)
    examples = None
    if data is not None:
        model = read_manifest(bundle, verify=False).model
        path = find_split(data, split)
        examples = read_examples_for(model, path).head(limit)
    backend_options = parse_option_flags(option_flags) or None
    tuned: tuple[TuningResult, ...] = ()
    if tuning:
        tuned = tune(
            bundle,
            read_manifest(bundle),
            backend=backend,
            backend_options=backend_options,
            threads=threads,
            accept_noise=accept_noise,
            progress=progress_bar("tuning", quiet),
        )
    result = bench(
        bundle,
        device,
        examples=examples,
        backend=backend,
        backend_options=backend_options,
        threads=threads,
        tuned=tuned,
        lazy=lazy,
        thresholds=thresholds,
        preset=preset,
        queries=queries,
        seconds=seconds,
        progress=progress_bar("measuring", quiet),
    )
    click.echo("\n" + report_text(result) + "\n")
    files = write_result(result, folder, partial(click.echo, err=True))
    click.echo(f"written: {', '.join(map(str, files))}")


def _bundle_here(device: str) -> Path:
    for folder in (Path(), Path("bundle")):
        if (folder / "manifest.json").is_file():
            return folder
    device_here(device)  # An unknown device is reported first.
    raise InputError(
        f"which bundle? python -m runtime.bench --device {device} BUNDLE, a folder that berxit-export wrote"
    )


if __name__ == "__main__":
    run(command)
