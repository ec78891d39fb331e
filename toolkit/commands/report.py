"""``berxit report``: one self-contained HTML page for benches and evaluations."""

from __future__ import annotations

from pathlib import Path

import click

from berxit.runtime.console import debug_option, register_option
from berxit.runtime.storage import check_results_file, write_errors
from berxit.toolkit.commands.options import PATH


@click.command("report")
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
@click.option("--output", type=PATH, default=Path("report.html"), show_default=True, help="The HTML file; replaced.")
@click.option("--texts/--no-texts", default=True, show_default=True, help="Include the texts of the inputs.")
@register_option
@debug_option
def command(paths: tuple[Path, ...], output: Path, texts: bool) -> None:
    """Write one HTML page that shows a bench or an evaluation, or compares two.

    PATH is a folder or JSON file of berxit-bench or berxit-eval. Give one, a bench with its evaluation, two benches or
    two evaluations. The page opens offline, and contains no path of this machine. It contains the inputs' texts unless
    --no-texts.
    """
    from berxit.toolkit.report.report_page import write_report
    from berxit.toolkit.report.sources import read_source

    check_results_file(output, ".html")
    with write_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_report(output, [read_source(path) for path in paths], texts=texts)
    click.echo(f"written: {output} ({output.stat().st_size / 1e3:.0f} kB)")
