"""Results of a study, and its files: NAME-TASK.md, .json, .png, .pdf and .svg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berxit.runtime.results import write_results
from berxit.runtime.tables import Table, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel = Callable[["Axes"], None]
"""Draws one panel of the figure: title, labels, data and key."""
FORMATS = ("png", "pdf", "svg")


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
    notes: Sequence[str] = ()
    """Lines below the figure's panels: what its numbers depend on."""

    def text(self) -> str:
        """The report as Markdown."""
        parts = [f"# {self.title}", "\n".join(f"- {line}" for line in self.conditions)]
        for caption, table in self.tables:
            parts += [f"**{caption}**", markdown_table(*table)]
        return "\n\n".join(parts)

    def write(self, folder: Path) -> list[Path]:
        """Writes the report, the numbers and, if matplotlib is installed, the figure. Returns their paths."""
        data = {"study": self.title, "conditions": list(self.conditions), **self.data}
        return write_results(folder, self.name, data, self.text(), figure=self._draw, formats=FORMATS)

    def _draw(self, path: Path) -> None:
        from berxit.toolkit.studies.drawing import save_figure

        save_figure(self._figure, path)

    @cached_property
    def _figure(self) -> Figure:
        from berxit.toolkit.studies.drawing import panels_figure

        return panels_figure(self.panels, self.title, self.notes)
