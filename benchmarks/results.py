"""The commands that generate results/: ``make results`` lists them and skips those whose data is missing.

    make results DATA=glue MODELS=encoders                 # the list
    make results DATA=glue MODELS=encoders RUN=monitoring  # runs one entry

``DATA`` is a folder with MRPC/, RTE/, SST-2/, STS-B/ and SICK/ (train and dev files in the official layouts),
``MODELS`` a folder with the encoders bge-small-en/ and mpnet-base/ (all-mpnet-base-v2). MiniLM-L6 is the encoder of the
quickstart. Commands write to build/results/, never to results/: compare, then copy the JSON file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from benchmarks.result_entries import ENTRIES
from benchmarks.result_entry import OUTPUT, Entry
from berxit.runtime.console import debug_option, run
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.tables import markdown_table
from berxit.toolkit.quickstart import demo_model

ROOT = Path(__file__).resolve().parent.parent


@click.command(help=__doc__)
@click.option("--data", default=lambda: os.environ.get("DATA", ""), help="Folder of the data sets.  [default: $DATA]")
@click.option("--models", default=lambda: os.environ.get("MODELS", ""), help="Folder of encoders.  [default: $MODELS]")
@click.option("--run", "chosen", help="Run the commands of this entry.")
@debug_option
def command(data: str, models: str, chosen: str | None) -> None:
    folders = {"DATA": data, "MODELS": models, "MINILM": _minilm()}
    if chosen:
        run_entry(chosen, folders)
        return
    rows = [[entry.name, str(entry.minutes), state(entry, folders)] for entry in ENTRIES]
    click.echo(markdown_table(["entry", "minutes", "state"], rows))
    for entry in ENTRIES:
        if not entry.missing(folders):
            click.echo(f"\n# {entry.name}: {', '.join(entry.files)}")
            click.echo("\n".join(entry.commands))


def state(entry: Entry, folders: Mapping[str, str]) -> str:
    """Can the entry run?"""
    if missing := entry.missing(folders):
        return f"skipped: no {', '.join(missing)}"
    return f"ready, after {', '.join(entry.after)}" if entry.after else "ready"


def _minilm() -> str:
    """The folder of the quickstart's encoder; empty if it is not installed."""
    try:
        return demo_model()
    except BerxitError:
        return ""


def run_entry(name: str, folders: Mapping[str, str]) -> None:
    """Runs the commands of an entry one after the other. Raises InputError for an unknown entry or missing data,
    BerxitError for the first command that fails."""
    entry = next((each for each in ENTRIES if each.name == name), None)
    if entry is None:
        raise InputError(f"no entry '{name}': choose one of {', '.join(each.name for each in ENTRIES)}")
    if missing := entry.missing(folders):
        raise InputError(f"{name} needs {', '.join(missing)}: set DATA and MODELS to folders that contain them")
    (ROOT / OUTPUT).mkdir(parents=True, exist_ok=True)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {
        **os.environ,
        "PATH": programs,
        **{key: str(Path(value).resolve()) for key, value in folders.items() if value},
    }
    for line in entry.commands:
        click.echo(f"$ {line}")
        status = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, check=False).returncode
        if status:
            raise BerxitError(f"{name}: '{line}' failed with status {status}. Fix it, and run the entry again")


if __name__ == "__main__":
    run(command)
