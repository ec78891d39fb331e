"""Markdown tables with aligned columns, for the terminal, the reports and results/."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Table(NamedTuple):
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


_NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?[%x]?|-|")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown table. Columns of numbers are right-aligned. Floats are written with three significant digits; format a
    value beforehand for another precision."""
    cells = [[_text(value) for value in row] for row in rows]
    columns = list(zip(header, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [i > 0 and all(_NUMBER.fullmatch(cell) for cell in column[1:]) for i, column in enumerate(columns)]

    def line(row: Sequence[str]) -> str:
        padded = (text.rjust(w) if r else text.ljust(w) for text, w, r in zip(row, widths, right, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ":" if r else "-" * (w + 2) for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([line(header), rule, *map(line, cells)])


def plural(count: int, word: str) -> str:
    """``count`` with ``word``, in the plural unless ``count`` is 1."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def listed(names: Iterable[str], most: int = 10) -> str:
    """First ``most`` names, comma-separated, with the number of further names."""
    names = list(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _text(value: object) -> str:
    """A cell. A bar would end it, and a line break the row."""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")
