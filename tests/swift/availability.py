"""Lint of the Swift package: every symbol of CoreML is used only where the system is new enough to have it.

Swift's compiler checks this only for Apple's systems. On Linux, the stand-in for CoreML declares each symbol with the
availability that Apple publishes. A use of a symbol that is newer than the package's minimum versions must be inside
`if #available`, after `guard #available`, or in a declaration with `@available`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import tree_sitter
import tree_sitter_swift

Versions = dict[str, tuple[int, ...]]
"""Platform -> version."""
PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))


@dataclass(frozen=True)
class Symbol:
    """A declaration of the stand-in."""

    name: str
    asynchronous: bool
    since: Versions
    inherited: bool
    """True if it has the availability of its type. Who has a value of the type may use it."""


@dataclass(frozen=True)
class Finding:
    line: int
    name: str
    platform: str
    since: str
    minimum: str = field(compare=False)

    def __str__(self) -> str:
        return f"line {self.line}: {self.name} needs {self.platform} {self.since}, guarded for {self.minimum}"


def minimum_versions(package: str) -> Versions:
    """The minimum versions that Package.swift declares."""
    names = {"iOS": "iOS", "macCatalyst": "macCatalyst", "macOS": "macOS", "tvOS": "tvOS", "visionOS": "visionOS"}
    return {names[name]: (int(version),) for name, version in re.findall(r"\.(\w+)\(\.v(\d+)\)", package)}


def symbols(source: str) -> Iterator[Symbol]:
    """The public declarations of a stand-in's file."""
    for node in _walk(_parse(source)):
        if node.type not in (
            "class_declaration",
            "protocol_declaration",
            "function_declaration",
            "property_declaration",
            "enum_entry",
        ):
            continue
        own, outer = _available(node), _parent(node)
        if node.type != "enum_entry" and not _is_public(node):
            continue
        since = own or (_enclosing_availability(outer) if outer else {})
        for name in _names(node):
            yield Symbol(name, b"async" in node.text.split(b"{")[0].split(), since, not own)


def findings(source: str, known: list[Symbol], minimum: Versions) -> list[Finding]:
    """Uses of symbols in a file of the package whose guards do not suffice."""
    found = []
    for node in _walk(_parse(source)):
        if node.type not in ("simple_identifier", "type_identifier"):
            continue
        since = _requirement(node, known)
        guards = {platform: max(version, _guarded(node, platform)) for platform, version in minimum.items()}
        for platform, version in guards.items():
            if since.get(platform, (0,)) > version:
                found.append(
                    Finding(
                        node.start_point.row + 1,
                        node.text.decode(),
                        platform,
                        _dotted(since[platform]),
                        _dotted(version),
                    )
                )
                break
    return found


def _requirement(node: Any, known: list[Symbol]) -> Versions:
    """Versions that have the symbol with this name; of an overload, the one that the use selects."""
    candidates = [symbol for symbol in known if symbol.name == node.text.decode()]
    if node.type == "simple_identifier":  # a member of a type needs no check beyond that of its type
        candidates = [symbol for symbol in candidates if not symbol.inherited]
        awaits = any(parent.type == "await_expression" for parent in _parents(node))
        if any(symbol.asynchronous for symbol in candidates):
            candidates = [symbol for symbol in candidates if symbol.asynchronous] if awaits else []
    return candidates[0].since if candidates else {}


def _guarded(node: Any, platform: str) -> tuple[int, ...]:
    """Highest version of the platform that the guards around a use establish."""
    versions = [(0,)]
    for child, parent in zip([node, *_parents(node)], _parents(node), strict=False):
        conditions: list[Versions] = [_available(parent)]
        if parent.type == "if_statement" and not _is_else(parent, child):
            conditions += [_versions(c) for c in parent.children if c.type == "availability_condition"]
        if parent.type == "statements":
            for sibling in parent.children:
                if sibling.start_byte >= child.start_byte:
                    break
                if sibling.type == "guard_statement":
                    conditions += [_versions(c) for c in sibling.children if c.type == "availability_condition"]
        for condition in conditions:
            if platform == "macCatalyst" and "macCatalyst" not in condition:
                versions.append(condition.get("iOS", (0,)))
            versions.append(condition.get(platform, (0,)))
    return max(versions)


def _is_else(statement: Any, child: Any) -> bool:
    """True if ``child`` is in the else branch of an if statement."""
    return any(c.type == "else" and c.start_byte < child.start_byte for c in statement.children)


def _available(node: Any) -> Versions:
    """Content of the @available attribute of a declaration; empty without one."""
    for modifiers in node.children:
        if modifiers.type == "modifiers":
            for attribute in modifiers.children:
                if attribute.type == "attribute" and attribute.text.startswith(b"@available("):
                    return _versions(attribute)
    return {}


def _versions(node: Any) -> Versions:
    found = re.findall(r"(\w+) (\d+(?:\.\d+)*)", node.text.decode())
    return {platform: tuple(map(int, version.split("."))) for platform, version in found}


def _enclosing_availability(node: Any) -> Versions:
    return _available(node) or next((_available(parent) for parent in _parents(node) if _available(parent)), {})


def _is_public(node: Any) -> bool:
    return any(b"public" in child.text.split() for child in node.children if child.type == "modifiers")


def _names(node: Any) -> list[str]:
    found = [child for child in node.children if child.type in ("simple_identifier", "type_identifier")]
    patterns = [c for child in node.children if child.type == "pattern" for c in child.children]
    return [child.text.decode() for child in found + patterns if child.type.endswith("identifier")]


def _parent(node: Any) -> Any:
    """The declaration around a declaration."""
    return next((parent for parent in _parents(node) if parent.type.endswith("_declaration")), None)


def _parents(node: Any) -> list[Any]:
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


def _parse(source: str) -> Any:
    return PARSER.parse(source.encode()).root_node


def _walk(node: Any) -> Iterator[Any]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
