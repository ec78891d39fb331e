"""Tables of labels and texts that evaluation and prediction reports share."""

from __future__ import annotations

from collections.abc import Sequence

from berxit.runtime.tables import markdown_table

MATRIX_CLASSES = 12
"""Largest number of classes for which a report contains the confusion matrix; with more, it contains the most frequent
confusions."""
WIDTH = 60
"""Characters of a text that a table shows."""


def confusion_table(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    """The confusion matrix (C, C), indexed [label][prediction], or for many classes its largest entries outside the
    diagonal. Empty if there is none of these."""
    if len(names) <= MATRIX_CLASSES:
        rows = [[name, *counts] for name, counts in zip(names, confusion, strict=True)]
        return [f"confusion matrix, one row per true label:\n\n{markdown_table(['label', *names], rows)}"]
    pairs = [(count, i, j) for i, row in enumerate(confusion) for j, count in enumerate(row) if count and i != j]
    most = [[names[i], names[j], count] for count, i, j in sorted(pairs, key=lambda pair: -pair[0])[:MATRIX_CLASSES]]
    table = markdown_table(["label", "prediction", "rows"], most)
    return [f"most frequent confusions:\n\n{table}"] if most else []


def shortened(text: str) -> str:
    """The start of a text, in one line of a table."""
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."
