"""``berxit score``: predictions for a corpus, on the workers of a data engine."""

from __future__ import annotations

from pathlib import Path

import click

from berxit.devices import default_threads
from berxit.runtime.console import debug_option, progress_bar
from berxit.runtime.tables import plural
from berxit.toolkit.api import score
from berxit.toolkit.commands.options import PATH, force_option, quiet_option, say
from berxit.toolkit.scoring.engines import ENGINES


@click.command("score")
@click.argument("bundle", type=PATH)
@click.argument("corpus", type=PATH)
@click.option("--engine", type=click.Choice(list(ENGINES)), required=True, help="Data engine that runs the workers.")
@click.option("--output", type=PATH, required=True, help="Folder of the predictions (Parquet); it must not exist yet.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Worker processes, one CPU each.  [default: the cores, at most 4]"
)
@click.option("--address", help="Address of a Ray cluster or Spark master.  [default: start the engine here]")
@click.option(
    "--text-column",
    "text_columns",
    multiple=True,
    metavar="NAME",
    help="Column with the texts; twice for pairs.  [default: those of the training data]",
)
@click.option("--threshold", type=float, help="Exit threshold at every layer.  [default: the bundle's]")
@click.option("--no-scores", is_flag=True, help="Write no probabilities of the classes.")
@click.option("--backend", help="Backend, if the target has several.  [default: the first installed]")
@force_option
@quiet_option
@debug_option
def command(
    bundle: Path,
    corpus: Path,
    engine: str,
    output: Path,
    workers: int | None,
    address: str | None,
    text_columns: tuple[str, ...],
    threshold: float | None,
    no_scores: bool,
    backend: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Predict every row of CORPUS with BUNDLE on Ray Data or Spark, and write a folder of Parquet files.

    CORPUS is a file, or a folder of files of one format (.parquet, .csv, .tsv, .jsonl). On a cluster, all paths must be
    valid on every machine.
    """
    found = score(
        bundle,
        corpus,
        output,
        engine=engine,
        workers=workers or default_threads(),
        address=address,
        text_columns=text_columns,
        threshold=threshold,
        scores=not no_scores,
        backend=backend,
        force=force,
        progress=progress_bar("scoring", quiet),
        report=(lambda line: None) if quiet else say,
    )
    line = plural(found.rows, "row")
    if found.average_exit_layer is not None:
        line += f", average exit layer {found.average_exit_layer:.2f} of {found.layers}"
    if found.problems:
        line += f"; {found.problems} without a prediction (column problem)"
    click.echo(f"{line}\nwritten: {found.output}")
