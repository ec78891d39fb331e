"""``berxit compare``: two models or two benches side by side, with a regression gate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from berxit.runtime.console import FiniteRange, debug_option, progress_bar, refuse_split_of_no_folder, register_option
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.json_data import write_json
from berxit.runtime.provenance import provenance
from berxit.runtime.storage import check_results_file, write_errors
from berxit.toolkit.api import compare
from berxit.toolkit.commands.options import PATH, quiet_option, silence_library_logs, split_option
from berxit.toolkit.comparison.benches import bench_file


@click.command("compare")
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option("--data", type=PATH, help="Labelled texts: a file, or a folder with splits.  [default: golden inputs]")
@split_option
@click.option("--limit", type=click.IntRange(min=1), help="Use the first N rows only.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the bundle's]")
@click.option(
    "--fail-above",
    type=FiniteRange(min=0),
    metavar="PERCENT",
    help="Exit with status 1 if latency, score or predictions of SECOND are worse than FIRST's by more.",
)
@click.option("--output", type=PATH, help="JSON file for all compared values.")
@quiet_option
@register_option
@debug_option
def command(
    first: Path,
    second: Path,
    data: Path | None,
    split: str,
    limit: int | None,
    threads: int | None,
    fail_above: float | None,
    output: Path | None,
    quiet: bool,
) -> None:
    """Compare FIRST with SECOND: two bundles, a checkpoint and a bundle, or two bench.json files."""
    if any((path / "config.json").is_file() for path in (first, second)):  # a checkpoint, which torch executes
        silence_library_logs()
    if output:
        check_results_file(output, ".json")
        if output.resolve() in (bench.resolve() for bench in (bench_file(first), bench_file(second)) if bench):
            raise InputError(f"--output {output} is one of the compared benches: name a new file")
    refuse_split_of_no_folder(data)
    bar = progress_bar("comparing", quiet)
    found = compare(first, second, data, split=split, limit=limit, threads=threads, progress=bar)
    click.echo(found.text())
    if output:
        with write_errors(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json({**asdict(found), "made_by": provenance()}, output)
        click.echo(f"\nwritten: {output}")
    if fail_above is not None and (worse := found.regressions(fail_above)):
        raise BerxitError(f"{second} is worse than {first} by more than {fail_above:g}%: {'; '.join(worse)}")
