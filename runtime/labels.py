"""Labels of data files: class names, missing values and numbers."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Context, Decimal

import numpy as np

from berxit.runtime.errors import InputError
from berxit.runtime.heads import SEPARATOR, heads_of, label_columns, pack
from berxit.runtime.tables import listed

BOOLEANS = ("false", "true")
LONGEST_PLAIN = 30
"""Largest decimal exponent of a numeric class name that is written without an exponent."""

LARGEST_VALUE = float(np.finfo(np.float32).max)
"""Largest label of a regression: models compute in float32."""

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_MISSING = ("", "<NA>", "#NA", "#N/A", "#N/A N/A", "NA", "N/A", "n/a", "None")


def class_name(label: str) -> str:
    """Normalized name of a class. Numbers are compared by value (1, 1.0, +1 and 1e0 are class "1"), booleans without
    case ("true", "false"), and other names letter by letter."""
    number = as_number(label)
    if number is None:
        name = unicodedata.normalize("NFC", label.strip())
        return name.lower() if name.lower() in BOOLEANS else name
    if number == 0:
        return "0"
    plain = number.normalize(Context(prec=len(number.as_tuple().digits)))  # enough digits to avoid rounding
    return f"{plain:f}" if abs(plain.adjusted()) <= LONGEST_PLAIN else str(plain)


def as_number(label: str) -> Decimal | None:
    """Exact value of a numeric label; None for any other label."""
    return Decimal(label.strip()) if _NUMBER.fullmatch(label.strip()) else None


def label_numbers(labels: Sequence[str], glue_numbers: bool = False) -> dict[str, int]:
    """Maps class names to class numbers; with ``glue_numbers`` also the numbers themselves, as in the GLUE files.

    Raises InputError if two classes have the same normalized name, as in checkpoints of releases that compared numbers
    as text.
    """
    numbers = {class_name(name): number for number, name in enumerate(labels)}
    if len(numbers) < len(labels):
        raise InputError(f"two of the classes {listed(labels)} are equal (as '1' and '1.0' are): train again")
    if glue_numbers:
        numbers.update({str(number): number for number in range(len(labels))})
    return numbers


def checked_label(text: str, column: str, where: str) -> str:
    """The label without surrounding whitespace. Raises InputError for a marker of a missing value.

    The markers are those of pandas; "nan" and "null" match in upper and lower case.
    """
    label = text.strip()
    if label in _MISSING or label.lower().lstrip("+-") in ("nan", "null"):
        marker = f": '{label}' marks a missing value, rename a class of that name" if label else ""
        raise InputError(f"{where}: column '{column}' has no label{marker}. Fill it in or delete the line")
    return label


def class_number(label: str, numbers: dict[str, int], labels: Sequence[str], where: str) -> int:
    """Class number of a label; ``numbers`` from ``label_numbers``. Raises InputError for an unknown label."""
    name = class_name(label)
    if name in numbers:
        return numbers[name]
    values = "" if as_number(label) is None or None in map(as_number, labels) else ". For regression, add --regression"
    raise InputError(f"{where}: unknown label '{label}'. Known labels: {listed(labels)}{values}")


def regression_value(label: str, where: str) -> float:
    """Label as a number. Raises InputError unless it is a finite number that a model can predict."""
    number = as_number(label)
    value = math.nan if number is None else float(number)
    if not math.isfinite(value):
        raise InputError(
            f"{where}: label '{label}' is not a number, and the task is regression. Fix or delete the line"
        )
    if abs(value) > LARGEST_VALUE:
        raise InputError(f"{where}: label '{label}' is beyond the range of float32. Rescale the labels")
    return value


def set_names(text: str, column: str, where: str) -> list[str]:
    """Names in a set of labels: a JSON list, or names separated by "|". An empty text is the empty set.

    Raises InputError for a name that is empty, occurs twice, is no text or number, or contains the separator.
    """
    text = text.strip()
    if text.startswith("["):
        try:
            parts = [part if isinstance(part, str) else json.dumps(part) for part in json.loads(text)]
        except ValueError:
            raise InputError(f"{where}: column '{column}' is not a JSON list: {text[:60]}. Fix or delete it") from None
    else:
        parts = text.split(SEPARATOR) if text else []
    names = [class_name(checked_label(part, column, where)) for part in parts]
    if wrong := [name for name in names if SEPARATOR in name or names.count(name) > 1]:
        problem = f"contains '{SEPARATOR}'" if SEPARATOR in wrong[0] else "occurs twice"
        raise InputError(f"{where}: label '{wrong[0]}' {problem}. Fix or delete the line")
    return names


def label_reader(
    kind: str, labels: Sequence[str], column: str, *, glue_numbers: bool = False
) -> Callable[[str, str], float]:
    """A function (label text, place for messages) -> number of the label, as ``runtime.kinds`` numbers predictions.

    It raises InputError for a missing or unknown label, and for a regression label that is no number.
    """
    numbers = {} if kind == "regression" else label_numbers(labels, glue_numbers)

    def one(text: str, where: str) -> float:
        label = checked_label(text, column, where)
        return regression_value(label, where) if kind == "regression" else class_number(label, numbers, labels, where)

    def several(text: str, where: str) -> float:
        return sum(1 << class_number(name, numbers, labels, where) for name in set_names(text, column, where))

    return several if kind == "multilabel" else one


def head_reader(labels: Sequence[str], label_column: str) -> Callable[[Mapping[str, str], str], int]:
    """A function (column -> label text, place for messages) -> number of the labels of all heads.

    ``label_column``: the columns of the heads, separated by "|". The function raises InputError as ``label_reader``
    does. Raises InputError for another number of columns than heads.
    """
    heads, columns = heads_of(tuple(labels)), label_columns(label_column)
    if len(columns) != len(heads):
        raise InputError(
            f"label column '{label_column}' names {len(columns)} columns for {len(heads)} heads: separate them by"
            f" '{SEPARATOR}'"
        )
    readers = [label_reader("classification", head.classes, name) for head, name in zip(heads, columns, strict=True)]

    def read(row: Mapping[str, str], where: str) -> int:
        classes = [int(one(row[column], where)) for one, column in zip(readers, columns, strict=True)]
        return int(pack(np.array(classes), range(len(heads))))

    return read
