"""Compares the numbers of README.md and of the pages in results/ with the stored results.

    python -m benchmarks.results_page

A comment in the page names the values of the numbers below it, up to the next heading or the next such comment:

    <!-- numbers: mrpc-minilm/bench.json
    by_layer/*/score
    by_layer/6/latency/mean / policy/latency/mean
    row 2: by_layer/*/latency/mean
    column 3: outcomes[rule=--keep 0.99,rows=400]/kept ; outcomes[rule=--keep 0.99,rows=400]/saved_layers
    text: policy/score ; policy/latency/mean
    given: 0.99
    -->

A line with a file below results/ selects it, FOLDER/*.json all files by their names, and FOLDER/*/FILE.json one file of
every folder, by the folders' names. Every other line is an expression:

- paths of keys, with ``*`` for all entries and ``[key=value,key!=value]`` for some entries of a list. A comma before a
  blank belongs to the value.
- ``@mean`` and ``@median`` of a list; at the end of a path, ``@min`` and ``@max`` of all values that the path selects
- ``+ - * /`` between blanks

The numbers of the page must each equal one of these values, after rounding as printed. Three prefixes are stricter: the
numbers must equal the values in their order, those of ``A ; B`` taking turns. ``row`` and ``column`` name a row or a
column of the next table, counted from 1 without the header, and ``text`` the numbers outside the tables. Lines with the
same prefix continue each other. ``given`` lists conditions and bars, which are not measured and not in ``text``.

Checked are numbers with a decimal point, an exponent, ``%`` or ``x``, and all numbers in the cells of a table after the
first, unless it is a table of conditions ("| condition | value |"). Code and links are not read. A paragraph or list
item that starts with "Not stored:" contains numbers of which no file exists. In a part without a comment, it covers the
whole part.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PAGES = (ROOT / "README.md", *sorted(RESULTS.glob("*.md")))

NUMBER = re.compile(
    r"(?<![\w.,])(?<!\w-)[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?(?:%|x\b)?(?![\w])(?!\.\d)"
)
COMMENT = re.compile(r"<!-- numbers:(.*?)-->", re.DOTALL)
UNREAD = re.compile(r"```.*?```|<!--.*?-->|`[^`\n]*`|\]\([^)]*\)|https?://\S+", re.DOTALL)
NOT_STORED = re.compile(r"^\W*Not stored:", re.MULTILINE)
OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
REDUCTIONS: dict[str, Callable[[Any], float]] = {"@mean": statistics.mean, "@median": statistics.median}
EXTREMES: dict[str, Callable[[list[float]], float]] = {"@min": min, "@max": max}


class PageError(Exception):
    """An annotation that does not fit the results: file, path or table."""


@dataclass
class Annotation:
    """The values that a comment names."""

    line: int
    """Line of the comment in its page."""
    pool: list[float] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    rows: dict[int, list[float]] = field(default_factory=dict)
    columns: dict[int, list[float]] = field(default_factory=dict)
    text: list[float] = field(default_factory=list)
    """Values of the numbers outside the tables, in their order; empty if they can be any of the pool."""


@dataclass(frozen=True)
class Problem:
    """A number without a value, or an annotation that does not fit."""

    page: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.what}"


def problems(page: Path, results: Path = RESULTS) -> list[Problem]:
    """Every number of a page that differs from the stored results, and every number without an annotation."""
    text = page.read_text(encoding="utf-8")
    found: list[Problem] = []
    try:
        name = page.relative_to(ROOT).as_posix()
    except ValueError:
        name = page.name
    for start, part in _regions(text):
        line = text.count("\n", 0, start) + 1
        try:
            match = COMMENT.match(part)
            annotation = _annotation(match[1], line, results) if match else Annotation(line)
            body = _without_unread(part)
            if match is None and NOT_STORED.search(body):
                continue
            found += [Problem(name, at, what) for at, what in _check(body, line, annotation)]
        except PageError as error:
            found.append(Problem(name, line, str(error)))
    return found


def _regions(text: str) -> Iterator[tuple[int, str]]:
    """Offset and text of each part of a page that has one annotation, or none."""
    hidden = re.sub(r"```.*?```", lambda code: re.sub(r"[^\n]", " ", code[0]), text, flags=re.DOTALL)
    starts = {
        0,
        *(m.start() for m in re.finditer(r"^#+ ", hidden, re.MULTILINE)),
        *(m.start() for m in COMMENT.finditer(text)),
    }
    for start, end in pairwise(sorted({*starts, len(text)})):
        yield start, text[start:end]


def _without_unread(text: str) -> str:
    """The text with blanks in place of code, comments and links."""
    return UNREAD.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _check(body: str, line: int, annotation: Annotation) -> Iterator[tuple[int, str]]:
    """Problems of a region: line and description."""
    table: list[tuple[int, list[str]]] = []
    numbers: list[tuple[int, str]] = []
    skipped = False
    for number, row in enumerate([*body.split("\n"), ""], start=line):
        if row.lstrip().startswith("|"):
            table.append((number, [cell.strip() for cell in row.strip().strip("|").split("|")]))
            continue
        if table:
            yield from _check_table(table, annotation)
            table = []
        if not row.strip() or re.match(r"\s*(?:- |\d+\. |#)", row):
            skipped = False
        skipped = skipped or bool(NOT_STORED.match(row))
        if skipped or row.startswith("#"):
            continue
        if annotation.text:
            numbers += [(number, token) for token in _measured(row, annotation, every=False)]
        else:
            yield from ((number, problem) for problem in _unmatched(row, annotation, every=False))
    if annotation.text:
        yield from _check_order(numbers, annotation.text, "the text")


def _check_table(table: Sequence[tuple[int, list[str]]], annotation: Annotation) -> Iterator[tuple[int, str]]:
    rows = table[2:]  # without the header and the line below it
    if table[0][1][0] == "condition":
        return
    for place, values in annotation.columns.items():
        cells = [(line, cells[place - 1]) for line, cells in rows if place <= len(cells)]
        yield from _check_order(cells, values, f"column {place}")
    for place, values in annotation.rows.items():
        if place <= len(rows):
            line, cells = rows[place - 1]
            yield from _check_order([(line, cell) for cell in cells[1:]], values, f"row {place}")
    for row, (line, cells) in enumerate(rows, start=1):
        if row in annotation.rows:
            continue
        for column, cell in enumerate(cells[1:], start=2):
            if column not in annotation.columns:
                yield from ((line, problem) for problem in _unmatched(cell, annotation, every=True))
    annotation.columns.clear()
    annotation.rows.clear()


def _check_order(cells: Sequence[tuple[int, str]], values: Sequence[float], where: str) -> Iterator[tuple[int, str]]:
    """Compares the numbers of cells with the values, in order."""
    printed = [(line, token) for line, cell in cells for token in NUMBER.findall(cell)]
    if len(printed) != len(values):
        yield cells[0][0] if cells else 0, f"{where} has {len(printed)} numbers, the results have {len(values)}"
        return
    for (line, token), value in zip(printed, values, strict=True):
        if not _equal(token, value):
            yield line, f"{where}: {token} is printed, {value:.6g} is stored"


def _unmatched(text: str, annotation: Annotation, *, every: bool) -> Iterator[str]:
    """Problems of the numbers of a line or a cell."""
    for token in _measured(text, annotation, every=every):
        if not any(_equal(token, value) for value in annotation.pool):
            yield f"{token} is no value of its annotation" if annotation.pool else f"{token} has no annotation"


def _measured(text: str, annotation: Annotation, *, every: bool) -> Iterator[str]:
    """The numbers that need a value. ``every``: plain integers, too."""
    for token in NUMBER.findall(text):
        if (every or re.search(r"[.%xe]", token)) and token not in annotation.given:
            yield token


def _equal(token: str, value: float) -> bool:
    """True if a value rounds to the printed number, as it is or in percent."""
    digits = token.rstrip("%x").replace(",", "")
    printed, mantissa = float(digits), digits.partition("e")[0]
    unit = 10.0 ** -len(mantissa.partition(".")[2]) * 10.0 ** int(digits.partition("e")[2] or 0)
    return any(abs(printed - each) <= 0.5 * unit * (1 + 1e-6) + 1e-12 for each in (value, 100 * value))


def _annotation(content: str, line: int, results: Path) -> Annotation:
    found = Annotation(line)
    data: Any = None
    for entry in filter(None, map(str.strip, content.splitlines())):
        if entry.endswith(".json"):
            data = _read(results, entry)
        elif entry.startswith("given:"):
            found.given += entry.removeprefix("given:").split()
        elif data is None:
            raise PageError(f"'{entry}' comes before a file")
        elif match := re.match(r"(?:(row|column) (\d+)|text): (.*)", entry):
            lists = [_values(part, data) for part in match[3].split(" ; ")]
            if len({len(values) for values in lists}) > 1:
                raise PageError(f"'{entry}': the lists have {', '.join(str(len(each)) for each in lists)} values")
            places = found.rows if match[1] == "row" else found.columns
            ordered = places.setdefault(int(match[2]), []) if match[2] else found.text
            ordered += [v for group in zip(*lists, strict=True) for v in group]
        else:
            found.pool += _values(entry, data)
    return found


@cache
def _read(results: Path, entry: str) -> Any:
    """Content of a file; of several as an object, by their names without suffix (FOLDER/*.json), or by their folders
    (FOLDER/*/FILE.json)."""
    paths = sorted(results.glob(entry))
    if not paths:
        raise PageError(f"there is no results/{entry}")
    by_folder = "*" in str(Path(entry).parent)
    files = {
        path.parent.name if by_folder else path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths
    }
    if len(files) < len(paths):
        raise PageError(f"results/{entry} selects several files of one folder")
    return files if "*" in entry else next(iter(files.values()))


def _values(expression: str, data: Any) -> list[float]:
    """The values of an expression: paths and numbers with operators between blanks."""
    names: dict[str, list[float]] = {}
    words = []
    for word in re.findall(r"(?:[^ \[]|\[[^\]]*\]|(?<! [-+*/]) (?![-+*/] ))+", expression):  # keys can contain blanks
        stripped = word.strip("()")
        if stripped in "+-*/" or re.fullmatch(r"\d+(?:\.\d+)?", stripped):
            words.append(word)
            continue
        name = f"v{len(names)}"
        path, _, last = stripped.rpartition("/")
        extreme = EXTREMES.get(last)
        names[name] = list(_numbers(_select(path if extreme else stripped, data)))
        if not names[name]:
            raise PageError(f"'{stripped}' names no number")
        if extreme:
            names[name] = [extreme(names[name])]
        words.append(word.replace(stripped, name))
    count = max(map(len, names.values()), default=1)
    tree = ast.parse(" ".join(words), mode="eval").body
    return [_compute(tree, {name: v[i] if len(v) > 1 else v[0] for name, v in names.items()}) for i in range(count)]


def _compute(node: ast.expr, names: dict[str, float]) -> float:
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_compute(node.left, names), _compute(node.right, names))
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    raise PageError(f"'{ast.unparse(node)}' is no arithmetic")


def _select(path: str, data: Any) -> Iterator[Any]:
    """The entries below a path."""
    if not path:
        yield data
        return
    key, _, rest = _split(path)
    if key in REDUCTIONS:
        children = [REDUCTIONS[key](data)]
    elif key == "*":
        children = list(data.values()) if isinstance(data, dict) else data
    elif match := re.fullmatch(r"(.*?)\[(.*)\]", key):
        conditions = [re.fullmatch(r"(.*?)(!?=)(.*)", part) for part in re.split(r",(?! )", match[2])]
        entries = data[match[1]] if match[1] else data
        children = [e for e in entries if all(c and (str(e.get(c[1])) == c[3]) == (c[2] == "=") for c in conditions)]
    elif isinstance(data, list):
        children = [data[int(key)]]
    else:
        if not isinstance(data, dict) or key not in data:
            raise PageError(f"'{key}' of '{path}' is not in the results")
        children = [data[key]]
    following = _split(rest)[0].partition("[")[0]
    for child in children:
        if key == "*" and isinstance(child, dict) and following not in ("", "*") and following not in child:
            continue  # not every entry has it
        yield from _select(rest, child)


def _split(path: str) -> tuple[str, str, str]:
    """The first key of a path, and the rest. A slash in brackets belongs to the key."""
    match = re.match(r"((?:[^/\[]|\[[^\]]*\])*)(/?)(.*)", path)
    assert match is not None
    return match[1], match[2], match[3]


def _numbers(entries: Iterator[Any]) -> Iterator[float]:
    """The numbers of entries and of the lists and dictionaries among them; None is skipped."""
    for entry in entries:
        if isinstance(entry, list):
            yield from _numbers(iter(entry))
        elif isinstance(entry, dict):
            yield from _numbers(iter(entry.values()))
        elif isinstance(entry, int | float) and not isinstance(entry, bool):
            yield float(entry)


def main() -> None:
    found = [problem for page in PAGES for problem in problems(page)]
    print("\n".join(map(str, found)) or "every number equals its stored value")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
