"""Swift package: its sources have no syntax errors, and its tests pass. test_vectors.py checks its test vectors."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from berxit.runtime.bench_result import BenchResult
from berxit.runtime.bundle import SCHEMA_VERSION
from berxit.runtime.json_data import parse
from berxit.toolkit.comparison.benches import compare_benches

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    ROOT / "Package.swift",
    *sorted((ROOT / "runners" / "swift").rglob("*.swift")),
    *sorted(file for file in (ROOT / "tests" / "swift").rglob("*.swift") if ".build" not in file.parts),
    *sorted(file for file in (ROOT / "benchmarks").rglob("*.swift") if ".build" not in file.parts),
]


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


# Systems and reviewers of Apple: checked here, because no Apple machine runs the tests.

PACKAGE = sorted((ROOT / "runners" / "swift" / "Sources").rglob("*.swift"))
APP = sorted((ROOT / "runners" / "swift" / "Example").rglob("*.swift"))
STANDIN = sorted((ROOT / "tests" / "swift" / "coreml_standin" / "Sources" / "CoreML").glob("ML*.swift"))
REQUIRED_REASON = {
    *("creationDate", "modificationDate", "fileModificationDate", "contentModificationDateKey", "creationDateKey"),
    *("contentModificationDate", "attributeModificationDate", "attributeModificationDateKey", "contentAccessDateKey"),
    *("getattrlist", "getattrlistbulk", "fgetattrlist", "getattrlistat", "stat", "fstat", "fstatat", "lstat"),
    *("systemUptime", "mach_absolute_time", "mach_continuous_time"),
    *("volumeAvailableCapacityKey", "volumeAvailableCapacity", "volumeAvailableCapacityForImportantUsageKey"),
    *("volumeAvailableCapacityForOpportunisticUsageKey", "volumeTotalCapacityKey", "volumeTotalCapacity"),
    *("systemFreeSize", "systemSize", "systemFreeNodes", "statfs", "statvfs", "fstatfs", "fstatvfs"),
    *("activeInputModes", "UserDefaults", "NSUserDefaults", "AppStorage"),
}
"""Symbols for which Apple requires a reason in a privacy manifest: file timestamps, system boot time, disk space,
active keyboards, user defaults."""


def test_swift_package_uses_no_required_reason_symbols() -> None:
    used = {word for file in PACKAGE + APP for word in re.findall(r"\w+", without_comments(file.read_text("utf-8")))}
    assert len(used) > 500
    assert used & REQUIRED_REASON == set()


def without_comments(source: str) -> str:
    return re.sub(r"//.*", "", source)


def test_swift_package_uses_coreml_symbols_only_where_they_are_available() -> None:
    lint = pytest.importorskip("availability", reason="tree-sitter-swift is not installed: pip install -e '.[dev]'")
    minimum = lint.minimum_versions((ROOT / "Package.swift").read_text(encoding="utf-8"))
    known = [symbol for file in STANDIN for symbol in lint.symbols(file.read_text(encoding="utf-8"))]
    assert minimum["iOS"] == (16,)
    assert minimum.keys() == {"iOS", "macCatalyst", "macOS", "tvOS", "visionOS"}
    assert [symbol.name for symbol in known if symbol.since.keys() != minimum.keys()] == []
    newer = {symbol.name for symbol in known if symbol.since.get("iOS", (0,)) > minimum["iOS"]}
    assert newer >= {"functionName", "prediction", "MLComputePlan"}
    found = {
        f"{file.name} {each}"
        for file in PACKAGE + APP
        for each in lint.findings(file.read_text("utf-8"), known, minimum)
    }
    assert found == set()


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("c.functionName = f", ["functionName"]),
        ("if #available(iOS 18, macOS 15, tvOS 18, visionOS 2, *) { c.functionName = f }", []),
        ("if #available(iOS 17, macOS 15, tvOS 18, visionOS 2, *) { c.functionName = f }", ["functionName"]),
        ("if #available(iOS 18, macOS 15, tvOS 18, *) { c.functionName = f }", ["functionName"]),
        ("if #available(iOS 18, macOS 15, tvOS 18, visionOS 2, *) { } else { c.functionName = f }", ["functionName"]),
        ("guard #available(iOS 18, macOS 15, tvOS 18, visionOS 2, *) else { return }; c.functionName = f", []),
        ("_ = try await m.prediction(from: i)", ["prediction"]),
        ("_ = try m.prediction(from: i)", []),
        ("if a, #available(iOS 17, macOS 14, tvOS 17, *) { return try await m.prediction(from: i) }", []),
        ("let plan: MLComputePlan? = nil", ["MLComputePlan"]),
        ("configuration.computeUnits = .cpuAndNeuralEngine", []),
    ],
)
def test_availability_lint_detects_missing_guards(body: str, names: list[str]) -> None:
    lint = pytest.importorskip("availability", reason="tree-sitter-swift is not installed: pip install -e '.[dev]'")
    minimum = lint.minimum_versions((ROOT / "Package.swift").read_text(encoding="utf-8"))
    known = [symbol for file in STANDIN for symbol in lint.symbols(file.read_text(encoding="utf-8"))]
    found = lint.findings(f"func f() async throws {{ {body} }}", known, minimum)
    assert [finding.name for finding in found] == names


def test_swift_package_can_be_a_versioned_dependency() -> None:
    """SwiftPM rejects unsafe flags, branches and local paths in the dependencies of a version."""
    package = (ROOT / "Package.swift").read_text(encoding="utf-8")
    assert [word for word in ("unsafeFlags", "branch:", "revision:", 'path: "..') if word in package] == []
    assert "dependencies: [.package" not in package


def test_swift_bench_has_the_keys_of_a_bench_result() -> None:
    source = (ROOT / "runners" / "swift" / "Example" / "Tests" / "Bench.swift").read_text(encoding="utf-8")
    written = re.findall(r'^        "(\w+)":', source.split("    return [\n")[1].split("\n    ]\n")[0], re.MULTILINE)
    fields = dataclasses.fields(BenchResult)
    required = {field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING}
    assert len(required) > 20
    assert required <= set(written) <= {field.name for field in fields}


def test_swift_package_reads_the_schema_version_of_the_runtime() -> None:
    source = (ROOT / "runners" / "swift" / "Sources" / "EarlyExit" / "Manifest.swift").read_text(encoding="utf-8")
    assert f"static let schemaVersion = {SCHEMA_VERSION}\n" in source


# With a Swift compiler.

SWIFT = os.environ.get("SWIFT") or shutil.which("swift")
"""Swift compiler, or tools/swift_on_linux.sh."""


@pytest.mark.slow
@pytest.mark.parametrize("package", [".", "tests/swift/coreml_standin"])
def test_swift_tests_pass(package: str, tmp_path: Path) -> None:
    if SWIFT is None:
        pytest.skip("no Swift compiler: install Swift 6, or run tools/swift_on_linux.sh setup and set SWIFT")
    command = [swift_command(), "test", "--package-path", package]
    environment = {**os.environ, "EARLYEXIT_OUTPUT": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    assert "warning: " not in output.replace("warning: libc not found", "")
    assert int(re.findall(r"Executed (\d+) tests", output)[-1]) > 20
    if (bench := tmp_path / "bench.json").exists():  # written by the example's bench
        assert_is_a_bench(bench)
    else:
        assert package == "."


def assert_is_a_bench(path: Path) -> None:
    """The file has the keys and types of `berxit-bench`'s result."""
    result: BenchResult = parse(BenchResult, json.loads(path.read_text(encoding="utf-8")), "bench.json")
    measured = {str(layer): each for layer, each in result.by_layer.items()}
    assert sorted(measured) == ["2", "3", "6"]
    assert measured["6"].average_exit_layer == 6
    assert result.machine.system == "Darwin"
    assert result.line is not None
    assert result.line.ms_per_layer > 0
    assert compare_benches(path, path).regressions(0.0) == []


@pytest.mark.slow
def test_swift_package_builds_as_a_versioned_dependency(tmp_path: Path) -> None:
    """A package of a user depends on a tag of the repository."""
    if SWIFT is None:
        pytest.skip("no Swift compiler: install Swift 6, or run tools/swift_on_linux.sh setup and set SWIFT")
    repository, client = tmp_path / "berxit", tmp_path / "client"
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        if name == "Package.swift" or name.startswith("runners/swift/"):
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, repository / name)
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "0.2.0"], ["tag", "0.2.0"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    (client / "Sources" / "Client").mkdir(parents=True)
    (client / "Sources" / "Client" / "main.swift").write_text("import EarlyExit\nprint(Manifest.schemaVersion)\n")
    (client / "Package.swift").write_text(
        "// swift-tools-version:6.0\nimport PackageDescription\n"
        'let package = Package(name: "Client", platforms: [.macOS(.v13)],'
        f' dependencies: [.package(url: "file://{repository}", from: "0.2.0")],'
        ' targets: [.executableTarget(name: "Client",'
        ' dependencies: [.product(name: "EarlyExit", package: "berxit")])])\n'
    )
    done = subprocess.run(
        [swift_command(), "run", "--package-path", str(client)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(SCHEMA_VERSION), (done.stdout + done.stderr)[-4000:]


def swift_command() -> str:
    assert SWIFT is not None
    return str(ROOT / SWIFT) if (ROOT / SWIFT).exists() else SWIFT
