"""Differences between CoreML bundles and their checkpoint, in every precision and layout.

    python benchmarks/coreml_precisions.py CHECKPOINT [--precisions int8,palette6] [--target-options float16-exits]
        [--exits 2,4,6] [--output RESULT.json]

Exports the checkpoint once per precision and layout, executes each package in numpy on the golden inputs, and prints
the largest difference and the smallest PSNR over all exits, with the limits of the precision. The exit status is 1 if
an exit exceeds a limit. Each export of a small model takes up to a minute.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from berxit.runtime.console import run
from berxit.runtime.errors import BerxitError
from berxit.runtime.tables import markdown_table
from berxit.toolkit.commands.options import PATH, silence_library_logs

EXIT = re.compile(r"-\[(.)] (.+): max diff (\S+) \(.*\), PSNR (\S+) dB")
"""Line of the export's report for one exit."""
LAYOUTS = ("tokens", "ane")


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--precisions", help="Separated by commas.  [default: all]")
@click.option("--target-options", default="", help="Of every export, separated by commas.")
@click.option("--exits", default="", help="Layers with an exit, separated by commas.  [default: all]")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file.")
def command(checkpoint: Path, precisions: str | None, target_options: str, exits: str, output: Path | None) -> None:
    silence_library_logs()
    from berxit.exporters.export import export
    from berxit.exporters.options import ExportOptions
    from berxit.exporters.targets import COREML

    chosen = precisions.split(",") if precisions else [each.name for each in COREML.precisions]
    variants = tuple(filter(None, target_options.split(",")))
    layers = tuple(int(layer) for layer in filter(None, exits.split(",")))
    results: list[dict[str, Any]] = []
    for precision, layout in product(chosen, LAYOUTS):
        if precision == "fp32" and (layout == "ane" or "float16-exits" in variants):
            continue  # the Neural Engine has no float32
        click.echo(f"{precision}, {layout}", err=True)
        options = ExportOptions(precision, layout=layout, exits=layers, target_options=variants)
        lines: list[str] = []
        with TemporaryDirectory() as scratch:
            try:
                export(
                    checkpoint, "coreml", Path(scratch) / "bundle", options=options, report=lines.append, scores=False
                )
            except BerxitError as error:
                if not any(map(EXIT.match, lines)):
                    raise
                click.echo(str(error), err=True)
        limits = {name: getattr(COREML.precision(precision), name) for name in ("atol", "least_psnr")}
        found = [measured(line) for line in lines if EXIT.match(line)]
        results.append({"precision": precision, "layout": layout, **limits, "exits": found})
    rows = [row(each) for each in results]
    click.echo(
        markdown_table(["precision", "layout", "largest difference", "limit", "PSNR (dB)", "at least", ""], rows)
    )
    if output:
        text = {"checkpoint": checkpoint.name, "target_options": variants, "results": results}
        output.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(exit_["within"] for each in results for exit_ in each["exits"]) else 1)


def measured(line: str) -> dict[str, Any]:
    """One exit, from its line of the report."""
    match = EXIT.match(line)
    assert match is not None
    mark, name, difference, psnr = match.groups()
    return {"exit": name, "within": mark == "✓", "max_diff": float(difference), "psnr_db": float(psnr)}


def row(result: dict[str, Any]) -> list[str]:
    """Of the table: the largest difference and the smallest PSNR over all exits."""
    exits = result["exits"]
    return [
        result["precision"],
        result["layout"],
        f"{max(each['max_diff'] for each in exits):.1e}",
        f"{result['atol']:g}",
        f"{min(each['psnr_db'] for each in exits):.0f}",
        f"{result['least_psnr']:.0f}",
        "within" if all(each["within"] for each in exits) else "exceeded",
    ]


if __name__ == "__main__":
    run(command)
