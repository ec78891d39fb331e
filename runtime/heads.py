"""Named heads: several classifications of one text, such as its intent and its urgency.

A label of a model with named heads is HEAD=CLASS: intent=call, intent=alarm, urgency=low, urgency=high. The labels of a
head follow each other, so the logits of an exit are those of its first head, then those of the next one.

A prediction is one number: FIELD_BITS bits for each head, the first head in the lowest ones. They contain the number of
the class plus 1; 0 stands for a head that was not requested. B rows, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from berxit.runtime.errors import InputError
from berxit.runtime.tables import listed

FIELD_BITS = 9
MOST_CLASSES = 2**FIELD_BITS - 1
"""Largest number of classes of a head."""
MOST_HEADS = 6
"""Largest number of heads of a model: a prediction is an int64."""
ASSIGNED, SEPARATOR = "=", "|"
"""Between a head and its class; between labels, and between the columns of the heads."""


class Head(NamedTuple):
    """A head of a model."""

    name: str
    classes: tuple[str, ...]
    start: int
    """The number of its first logit."""


@lru_cache(maxsize=64)
def heads_of(labels: tuple[str, ...]) -> tuple[Head, ...]:
    """The heads in the labels of a model, in their order."""
    found, start = [], 0
    for name, group in groupby(labels, key=lambda label: label.partition(ASSIGNED)[0]):
        classes = tuple(label.partition(ASSIGNED)[2] for label in group)
        found.append(Head(name, classes, start))
        start += len(classes)
    return tuple(found)


def label_of(head: str, name: str) -> str:
    """The label for a class of a head."""
    return f"{head}{ASSIGNED}{name}"


def label_columns(label_column: str) -> tuple[str, ...]:
    """The columns of the heads, from ``label_column`` of a model: names separated by "|"."""
    return tuple(label_column.split(SEPARATOR))


def heads_problems(labels: Sequence[str], label_column: str) -> Iterator[str]:
    """Problems of the labels and columns of a model with named heads, in the words of a manifest."""
    heads = heads_of(tuple(labels))
    if wrong := [label for label in labels if ASSIGNED not in label]:
        yield f"model.labels contains '{wrong[0]}': a label of a heads model is HEAD=CLASS"
    if len({head.name for head in heads}) < len(heads):
        yield "model.labels must list the labels of a head one after the other"
    if len(heads) > MOST_HEADS:
        yield f"model.labels has {len(heads)} heads: a model has at most {MOST_HEADS}"
    if wrong := [head.name for head in heads if not 2 <= len(head.classes) <= MOST_CLASSES]:
        yield f"model.labels: head '{wrong[0]}' must have 2 to {MOST_CLASSES} classes"
    if (columns := len(label_columns(label_column))) != len(heads):
        yield f"model.label_column has {columns} columns for {len(heads)} heads"


def parse_heads(options: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and columns of the values of --head: NAME=COLUMN, or NAME for a column of the same name.

    Raises InputError for an empty or repeated name, a separator in one, and too many heads.
    """
    pairs = [(name.strip(), (column if equals else name).strip()) for name, equals, column in map(_split, options)]
    for option, pair in zip(options, pairs, strict=True):
        if not all(pair) or any(SEPARATOR in part for part in pair) or ASSIGNED in pair[0]:
            raise InputError(f"--head '{option}': give NAME=COLUMN, without '{SEPARATOR}' in the names")
    names, columns = (tuple(part) for part in zip(*pairs, strict=True))
    for given in (names, columns):
        if twice := [name for name in given if given.count(name) > 1]:
            raise InputError(f"--head names '{twice[0]}' twice: give every head its own name and column")
    if len(pairs) > MOST_HEADS:
        raise InputError(f"--head is given {len(pairs)} times: a model has at most {MOST_HEADS} heads")
    return names, columns


def _split(option: str) -> tuple[str, str, str]:
    return option.partition(ASSIGNED)


def pack(classes: npt.NDArray, heads: Sequence[int]) -> npt.NDArray[np.int64]:
    """Class numbers (..., H) of the heads with these numbers -> predictions as numbers (...,)."""
    places = FIELD_BITS * np.array(heads, dtype=np.int64)
    return ((classes.astype(np.int64) + 1) << places).sum(axis=-1)


def classes_in(numbers: npt.NDArray, heads: int) -> npt.NDArray[np.int64]:
    """The opposite of ``pack``: numbers (...,) -> class numbers (..., H); -1 for a head that is not in a number."""
    places = FIELD_BITS * np.arange(heads, dtype=np.int64)
    return (np.asarray(numbers, dtype=np.int64)[..., None] >> places & MOST_CLASSES) - 1


def labels_in(number: int, labels: Sequence[str]) -> list[str]:
    """The labels in a prediction, in the order of the heads."""
    heads = heads_of(tuple(labels))
    classes = classes_in(np.array(number), len(heads)).tolist()
    return [labels[head.start + place] for head, place in zip(heads, classes, strict=True) if place >= 0]


def head_count(numbers: npt.NDArray) -> int:
    """Number of heads in predictions or labels."""
    return -(-int(np.max(numbers, initial=0)).bit_length() // FIELD_BITS)


def chosen_heads(labels: Sequence[str], names: Sequence[str] | str) -> tuple[int, ...]:
    """Numbers of the heads with these names, ascending. Raises InputError for no name, and for an unknown one."""
    names = (names,) if isinstance(names, str) else tuple(names)
    known = [head.name for head in heads_of(tuple(labels))]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"this model has no head '{unknown[0]}': it has {listed(known)}")
    if not names:
        raise InputError(f"no head is requested: give at least one of {listed(known)}")
    return tuple(sorted({known.index(name) for name in names}))
