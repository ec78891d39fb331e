"""Swift package: its test vectors equal the outputs of the Python runtime, and its sources have no syntax errors."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest
from make_vectors import ROOT, VECTORS, copy_tokenizers, write_vectors

SOURCES = [
    ROOT / "Package.swift",
    *sorted((ROOT / "runners" / "swift").rglob("*.swift")),
    *sorted((ROOT / "tests" / "swift").rglob("*.swift")),
]


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Newly computed test vectors, from the committed tokenizers; newly trained ones may differ between versions."""
    folder = tmp_path_factory.mktemp("vectors")
    copy_tokenizers(VECTORS, folder)
    write_vectors(folder)
    return folder


def test_vectors_equal_runtime_outputs(today: Path) -> None:
    files = sorted(path.relative_to(VECTORS) for path in VECTORS.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(today) for path in today.rglob("*") if path.is_file())
    assert len(files) > 10
    different = [str(file) for file in files if not same(VECTORS / file, today / file)]
    assert different == [], "run tests/swift/make_vectors.py, then run the tests of the Swift package"


def same(a: Path, b: Path) -> bool:
    """Compares files byte by byte; computed numbers to six digits, because exp differs between CPUs in the last one."""
    if a.name not in ("policies.json", "newer_policies.json", "answers.json", "deadlines.json"):
        return filecmp.cmp(a, b, shallow=False)
    return alike(*(json.loads(path.read_text(encoding="utf-8")) for path in (a, b)))


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == pytest.approx(b, rel=1e-6)) if isinstance(a, float) else bool(a == b)


def test_swift_sources_have_no_syntax_errors() -> None:
    tree_sitter = pytest.importorskip("tree_sitter", reason="tree-sitter is not installed: pip install -e '.[dev]'")
    swift = pytest.importorskip("tree_sitter_swift", reason="tree-sitter-swift is not installed")
    parser = tree_sitter.Parser(tree_sitter.Language(swift.language()))
    assert len(SOURCES) > 20
    broken = [
        f"{path.name}:{node.start_point.row + 1}"
        for path in SOURCES
        for node in errors(parser.parse(path.read_bytes()).root_node)
    ]
    assert broken == []


def errors(node):  # type: ignore[no-untyped-def]
    """Syntax errors below a node."""
    if node.is_error or node.is_missing:
        yield node
    for child in node.children:
        if child.has_error:
            yield from errors(child)


def test_swift_parser_detects_errors() -> None:
    tree_sitter = pytest.importorskip("tree_sitter", reason="tree-sitter is not installed: pip install -e '.[dev]'")
    swift = pytest.importorskip("tree_sitter_swift", reason="tree-sitter-swift is not installed")
    parser = tree_sitter.Parser(tree_sitter.Language(swift.language()))
    assert list(errors(parser.parse(b"func f( { let = }").root_node)) != []
