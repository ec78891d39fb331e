"""Results of a study, and its files: NAME-TASK.md, .json and .png."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berxit.runtime.errors import BerxitError
from berxit.runtime.json_data import write_json
from berxit.runtime.storage import write_text
from berxit.runtime.tables import Table, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Callable[["Axes"], None]
"""Draws one panel of the figure: title, labels, data. Labelled artists appear in the legend below all panels."""


@dataclass(frozen=True)
class Findings:
    """Results of a study: conditions, tables, numbers and panels."""

    name: str
    """File name without suffix: study and task."""
    title: str
    conditions: Sequence[str]
    """Conditions of the numbers: data, reference, definitions."""
    tables: Sequence[tuple[str, Table]]
    """Caption and table."""
    data: dict[str, Any]
    """All numbers, unrounded, for the JSON file."""
    panels: Sequence[Panel]

    def text(self) -> str:
        """The report as Markdown."""
        parts = [f"# {self.title}", "\n".join(f"- {line}" for line in self.conditions)]
        for caption, table in self.tables:
            parts += [f"**{caption}**", markdown_table(*table)]
        return "\n\n".join(parts)

    def write(self, folder: Path) -> list[Path]:
        """Writes the report, the numbers and, if matplotlib is installed, the figure. Returns their paths."""
        files = [folder / f"{self.name}{suffix}" for suffix in (".md", ".json")]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(files[0], self.text() + "\n")
            write_json({"study": self.title, "conditions": list(self.conditions), **self.data}, files[1])
        except OSError as error:
            raise BerxitError(f"cannot write results to {folder}: {error.strerror}. Choose another --output") from error
        try:
            from berxit.toolkit.figures import panels_figure

            files.append(panels_figure(self.panels, self.title, folder / f"{self.name}.png"))
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
        return files
