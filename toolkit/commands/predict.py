"""``berxit predict``: predictions for one text, one pair, or all rows of a file."""

from __future__ import annotations

from pathlib import Path

import click

from berxit.runtime import EarlyExitRunner, Prediction
from berxit.runtime.bundle import ModelInfo
from berxit.runtime.console import debug_option, progress_bar, register_option
from berxit.runtime.errors import InputError
from berxit.runtime.kinds import NO_LABEL
from berxit.runtime.storage import check_results_folder
from berxit.runtime.tables import markdown_table
from berxit.toolkit.api import predict
from berxit.toolkit.commands.options import PATH, force_option, quiet_option, say, skip_bad_rows_option
from berxit.toolkit.scoring.inputs import is_file

CLASSES = 10
"""Largest number of classes whose scores are shown for one text."""


@click.command("predict")
@click.argument("bundle", type=PATH)
@click.argument("inputs", nargs=-1, required=True, metavar='"TEXT" ["TEXT"] | FILE')
@click.option("--output", type=PATH, help="File of the predictions: .csv, .jsonl or .parquet.  [default: the screen]")
@click.option("--threshold", type=float, help="Exit threshold at every layer.  [default: the bundle's]")
@click.option(
    "--text-column",
    "text_columns",
    multiple=True,
    metavar="NAME",
    help="Column of FILE with the texts; twice for pairs.  [default: those of the training data]",
)
@click.option("--label-column", metavar="NAME", help="Column of FILE with the labels.  [default: the training data's]")
@click.option("--no-labels", is_flag=True, help="Ignore the labels of FILE.")
@click.option("--flips", is_flag=True, help="Run full depth, too, and report the predictions that differ from it.")
@click.option("--no-scores", is_flag=True, help="Write no probabilities of the classes.")
@click.option("--report", type=PATH, metavar="FOLDER", help="Write the report on FILE as predict.json and predict.md.")
@click.option("--backend", help="Backend, if the target has several.  [default: the first installed]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the bundle's]")
@skip_bad_rows_option
@force_option
@quiet_option
@register_option
@debug_option
def command(
    bundle: Path,
    inputs: tuple[str, ...],
    output: Path | None,
    threshold: float | None,
    text_columns: tuple[str, ...],
    label_column: str | None,
    no_labels: bool,
    flips: bool,
    no_scores: bool,
    report: Path | None,
    backend: str | None,
    threads: int | None,
    skip_bad_rows: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Predict one text, one pair of texts, or every row of FILE (.tsv, .csv, .json, .jsonl, .parquet) with BUNDLE.

    If FILE contains labels, also report the score, the confusion matrix and the wrong rows. An interrupted run with
    --output continues with the same command.
    """
    if len(inputs) == 1 and is_file(inputs[0]):
        if report:
            check_results_folder(report, "--report")
        found = predict(
            bundle,
            inputs[0],
            output,
            threshold=threshold,
            text_columns=text_columns,
            label_column=label_column,
            use_labels=not no_labels,
            flips=flips,
            scores=not no_scores,
            backend=backend,
            threads=threads,
            skip_bad_rows=skip_bad_rows,
            force=force,
            progress=progress_bar("predicting", quiet),
            report=say,
        )
        if output is None:
            click.echo(f"{found.report.table()}\n")
        click.echo(found.report.text())
        written = [*([output] if output else []), *(found.report.write(report) if report else [])]
        if written:
            click.echo(f"\nwritten: {', '.join(map(str, written))}")
        return
    for_files = {
        "--output": output,
        "--text-column": text_columns,
        "--label-column": label_column,
        "--no-labels": no_labels,
        "--flips": flips,
        "--no-scores": no_scores,
        "--report": report,
        "--skip-bad-rows": skip_bad_rows,
        "--force": force,
    }
    if given := [option for option, value in for_files.items() if value]:
        raise InputError(f"{given[0]} goes with a file, and '{inputs[0]}' is a text: name a file, or omit {given[0]}")
    if len(inputs) > 2:
        raise InputError(f"{len(inputs)} texts: give one text or one pair, each in quotation marks, or a file")
    with EarlyExitRunner.load(bundle, backend=backend, threads=threads) as runner:
        click.echo(one_text(runner.predict(*inputs, threshold=threshold), runner.manifest.model))


def one_text(prediction: Prediction, model: ModelInfo) -> str:
    """A prediction, with the scores of the classes, the highest first."""
    label = f"{prediction.label:.4g}" if isinstance(prediction.label, float) else prediction.label or NO_LABEL
    lines = [
        f"{label}: exit layer {prediction.exit_layer} of {model.layers}, certainty {prediction.certainty:.4f}"
        + (f" (the text was truncated to {model.max_length} tokens)" if prediction.truncated else "")
    ]
    if prediction.spans is not None:
        rows = [[span.start, span.end, span.label, f"{span.score:.4f}"] for span in prediction.spans]
        lines.append(markdown_table(["start", "end", "label", "score"], rows) if rows else "no spans")
    elif not model.regression:
        scores = sorted(prediction.scores.items(), key=lambda pair: -pair[1])
        lines.append(markdown_table(["label", "score"], [[name, f"{score:.4f}"] for name, score in scores[:CLASSES]]))
        if len(scores) > CLASSES:
            lines.append(f"{len(scores) - CLASSES} more classes: at most {scores[CLASSES][1]:.4f} each")
    return "\n\n".join(lines)
