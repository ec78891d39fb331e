"""Results of a study, and its files: NAME-TASK.md, .json and .png."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berxit.runtime.results import write_results
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

        def draw(path: Path) -> None:
            from berxit.toolkit.figures import panels_figure

            panels_figure(self.panels, self.title, path)

        data = {"study": self.title, "conditions": list(self.conditions), **self.data}
        return write_results(folder, self.name, data, self.text(), figure=draw)
