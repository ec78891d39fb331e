"""Import order of the packages: only down the floors, without cycles, and no printing in library code."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"alias": 0, "devices": 1, "runtime": 1, "train": 2, "exporters": 3, "toolkit": 4}
FILES = [path for package in FLOORS if package != "alias" for path in sorted((ROOT / package).rglob("*.py"))]
COMMANDS = {"runtime/bench.py", "runtime/build.py", "runtime/console.py"}
"""Modules below floor 4 that may use a command line: they run on devices."""


def name_of(path: Path) -> str:
    """``runtime/loop.py`` -> ``berxit.runtime.loop``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["berxit", *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = {name_of(path): path for path in FILES}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Everything that a module imports, in functions and under TYPE_CHECKING, too: modules of the project by their
    full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One cycle of the graph; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def printing(tree: ast.AST) -> list[str]:
    """Names by which a module prints: click, console, print, the standard streams."""
    imported = set(imports_of(tree))
    found = [name for name in imported if name.partition(".")[0] == "click" or name == "berxit.runtime.console"]
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found += ["print" for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    streams = {"sys.stdout", "sys.stderr"}
    return found + [
        ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n) in streams
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_imports_only_down_the_floors(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    imported = {name.split(".")[1] for name in imports_of(parsed(path)) if name.startswith("berxit.")}
    if own == "devices":
        assert imported <= {"devices"}
    assert {name for name in imported if FLOORS[name] > FLOORS[own]} == set()


ANNOTATIONS = {"berxit.runtime.manifest_checks": {"berxit.runtime.bundle"}}
"""Module -> imports that do not count: the checks of a manifest annotate the classes that the bundle defines."""


def test_modules_import_each_other_without_a_cycle() -> None:
    """Imports in functions and under TYPE_CHECKING count, too."""
    graph = {
        name: {each for each in imports_of(parsed(path)) if each in MODULES} - {name, *ANNOTATIONS.get(name, ())}
        for name, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 300
    assert find_cycle(graph) == []


def test_find_cycle_finds_one() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


LIBRARY = [
    path
    for path in FILES
    if path.relative_to(ROOT).parts[0] != "toolkit" and path.relative_to(ROOT).as_posix() not in COMMANDS
]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_library_module_does_not_print(path: Path) -> None:
    assert printing(parsed(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "print('x')",
        "import click",
        "def f():\n    from berxit.runtime.console import progress_bar",
        "import sys\nsys.stderr.write('x')",
        "from click import echo",
    ],
)
def test_printing_finds_every_way_to_print(line: str) -> None:
    assert printing(ast.parse(line)) != []
