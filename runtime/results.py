"""The writer of results: one report as Markdown, its numbers as JSON, and a figure if matplotlib is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from berxit.devices import install_command
from berxit.runtime.errors import BerxitError
from berxit.runtime.json_data import write_json
from berxit.runtime.provenance import provenance
from berxit.runtime.storage import write_text, write_together


def write_results(
    folder: Path,
    name: str,
    data: Mapping[str, Any],
    text: str,
    *,
    figure: Callable[[Path], object] | None = None,
    formats: Sequence[str] = ("png",),
    more: Mapping[str, Callable[[Path], object]] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Writes NAME.json, NAME.md and NAME.png to ``folder``, which is created: all files, or none after an error or an
    interruption. Returns their paths.

    ``data``: the numbers, as JSON types; the file also contains their ``provenance`` as ``made_by``. ``figure`` draws
    the figure in the format of a path's suffix, once for each of ``formats``; without matplotlib there is none, and
    ``report`` receives the command that installs it. ``more``: file
    name -> the function that writes it, before the report.
    Raises BerxitError if the folder cannot be written.
    """
    writers: dict[str, Callable[[Path], object]] = {
        **(more or {}),
        f"{name}.json": lambda path: write_json({**data, "made_by": provenance()}, path),
        f"{name}.md": lambda path: write_text(path, text + "\n"),
    }
    names = list(writers)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_together(folder) as scratch:
            for file, write in writers.items():
                write(scratch / file)
            if figure is not None:
                drawings = [f"{name}.{each}" for each in formats]
                names += drawings if _drawn(figure, [scratch / each for each in drawings], report) else []
    except OSError as error:
        raise BerxitError(f"cannot write results to {folder}: {error.strerror}. Choose another folder") from error
    return [folder / each for each in names]


def _drawn(figure: Callable[[Path], object], paths: Sequence[Path], report: Callable[[str], None]) -> bool:
    """Draws the figure. False if matplotlib is not installed."""
    try:
        for path in paths:
            figure(path)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        report(f"no figure: matplotlib is not installed here: {install_command('report')}")
        return False
    return True
