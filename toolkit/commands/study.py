"""``berxit-study``: the paper's experiments on your checkpoints, each as a table, a JSON file and a figure."""

from __future__ import annotations

from pathlib import Path

import click

from berxit.runtime.console import debug_option, given, progress_bar, refuse_split_of_no_folder, register_option
from berxit.runtime.policies import adaptive_criterion_from
from berxit.runtime.storage import check_results_folder
from berxit.runtime.tables import plural
from berxit.toolkit.commands.options import (
    PATH,
    adaptive_criterion_option,
    batch_size_option,
    data_option,
    quiet_option,
    say,
    silence_library_logs,
    split_option,
)
from berxit.toolkit.studies import READ_BY, STUDIES, check_options, find_study

NAMES = "\n".join(f"  {name:<11}{what}" for name, what in STUDIES.items())

WITHOUT_DATA = ("runtime", "flops")
"""Studies that download no data: runtime takes bundles and reads local data, flops needs no data."""


@click.command("study", epilog=f"\b\nThe studies:\n{NAMES}")
@click.argument("name")
@click.argument("checkpoints", type=PATH, nargs=-1, metavar="CHECKPOINT...")
@data_option
@split_option
@click.option(
    "--relative-to",
    metavar="SCORE|CHECKPOINT",
    help="The score that is 100%; a checkpoint stands for its group.  [default: full depth of the first raw, two-stage"
    " or other group, mean over its seeds]",
)
@adaptive_criterion_option
@click.option("--length", type=click.IntRange(min=1), help="flops: input length in tokens.  [default: 128]")
@batch_size_option
@click.option("--output", type=PATH, default=Path("studies"), show_default=True, help="Folder of the results.")
@quiet_option
@register_option
@debug_option
def command(
    name: str,
    checkpoints: tuple[Path, ...],
    data: Path | None,
    split: str,
    relative_to: str | None,
    criterion: str | None,
    length: int | None,
    batch_size: int,
    output: Path,
    quiet: bool,
) -> None:
    """Run the study NAME on checkpoints of one task (runtime: on bundles).

    Labels name every option in which the checkpoints' trainings differ. Checkpoints that differ only in their seed are
    averaged. Each checkpoint runs over the data once: the pass is stored in OUTPUT/passes, and later studies read it.
    Writes NAME-TASK.md, .json, .png, .pdf and .svg.
    """
    check_results_folder(output)
    silence_library_logs()
    study = find_study(name)
    if not checkpoints:
        raise click.UsageError("Missing argument 'CHECKPOINT...'")
    check_options(name, filter(given, READ_BY))
    if data is not None:
        refuse_split_of_no_folder(data)
    from berxit.toolkit.studies.request import Request
    from berxit.train.checkpoint import read_config
    from berxit.train.hub import task_data

    if name not in WITHOUT_DATA:
        data = task_data(read_config(checkpoints[0])["task"], data, split, say)
    criterion = adaptive_criterion_from(criterion) if criterion else None
    request = Request(
        paths=checkpoints,
        output=output,
        data=data,
        split=split,
        relative_to=relative_to,
        criterion=criterion,
        length=length,
        batch_size=batch_size,
        bar=lambda label: progress_bar(label, quiet),
    )
    findings = study(request)
    click.echo("\n" + findings.text() + "\n")
    files = findings.write(output)
    click.echo(f"written, of {plural(len(checkpoints), 'input')}: {', '.join(map(str, files))}")
