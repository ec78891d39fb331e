"""The registry of targets: names, defaults, and the options that each target accepts."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import fields
from itertools import takewhile
from pathlib import Path

import pytest

from berxit.exporters.options import ExportOptions
from berxit.exporters.targets import COREML, ONNX_RUNTIME, TARGETS, TENSORRT, by_target, find_target
from berxit.runtime.backends import BACKENDS
from berxit.runtime.calibration import Calibration, Costs, ExitPlacement
from berxit.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "coremltools", "scipy")


def test_importing_the_registry_loads_no_framework() -> None:
    code = "import sys, berxit.exporters.targets; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "berxit.exporters.targets" in loaded
    assert not set(HEAVY) & set(loaded)


def test_every_target_has_a_backend() -> None:
    assert set(TARGETS) == set(BACKENDS)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_names_of_a_target_are_unique(target) -> None:  # type: ignore[no-untyped-def]
    for values in (target.precisions, target.versions, target.variants):
        names = [name for value in values for name in (value.name, *getattr(value, "aliases", ()))]
        assert len(names) == len(set(names))
    for version in target.versions:
        assert set(version.without) < {value.name for value in (*target.precisions, *target.variants)}
    for variant in target.variants:
        assert set(variant.without) < {precision.name for precision in target.precisions}


def test_settings_contain_the_defaults() -> None:
    assert ONNX_RUNTIME.settings(ExportOptions()).precision.name == "fp32"
    tensorrt = TENSORRT.settings(ExportOptions()).for_model(100)
    assert (tensorrt.precision.name, tensorrt.version.name if tensorrt.version else None) == ("fp16", "jetpack6.1")
    assert (tensorrt.lengths, tensorrt.max_batch) == ((16, 32, 64, 100), 8)
    coreml = COREML.settings(ExportOptions()).for_model(100)
    assert (coreml.layout, coreml.lengths, coreml.max_batch) == ("tokens", (), 1)


def test_settings_limit_lengths_to_the_model() -> None:
    settings = COREML.settings(ExportOptions(lengths=(128, 16, 64))).for_model(32)
    assert settings.lengths == (16, 32)
    assert settings.max_length(32) == 32
    assert COREML.settings(ExportOptions(lengths=(8,))).for_model(32).max_length(32) == 8


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("onnxruntime", ExportOptions("fp7"), "target onnxruntime has no precision 'fp7': choose fp32, int8, fp16"),
        ("onnxruntime", ExportOptions(target_version="ios18"), "--target-version does not go with target onnxruntime"),
        ("onnxruntime", ExportOptions(max_batch=2), "--max-batch does not go with target onnxruntime"),
        ("tensorrt", ExportOptions(threads=2), "--threads does not go with target tensorrt"),
        ("tensorrt", ExportOptions(max_batch=0), "--max-batch 0: it must be at least 1"),
        ("coreml", ExportOptions(max_batch=2), "--max-batch 2: the largest batch of target coreml is 1"),
        (
            "tensorrt",
            ExportOptions(target_options=("full-depth",)),
            "--target-options does not go with target tensorrt",
        ),
        (
            "coreml",
            ExportOptions(target_options=("fast",)),
            "no target option 'fast': choose fixed-shapes, full-depth",
        ),
        (
            "coreml",
            ExportOptions("fp32", target_options=("float16-exits",)),
            "--target-options float16-exits does not go with --precision fp32: omit one of them",
        ),
        (
            "coreml",
            ExportOptions(target_version="ios16", target_options=("fixed-shapes",)),
            "--target-options fixed-shapes does not go with --target-version ios16: choose ios18, macos15",
        ),
    ],
)
def test_settings_reject_what_the_target_does_not_accept(target: str, options: ExportOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_target(target).settings(options)


def test_settings_accept_threads_on_a_cpu() -> None:
    assert ONNX_RUNTIME.settings(ExportOptions(threads=2)).threads == 2


def test_help_lists_names_by_target() -> None:
    assert by_target({"a": ["x", "y"], "b": [], "c": ["z"]}) == "a: x, y; c: z"


def table(heading: str, header: str = "|") -> list[list[str]]:
    """Rows of the first table below a heading of docs/bundle.md whose header starts with ``header``."""
    page = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    lines = page.split(f"\n{heading}\n", 1)[1].splitlines()
    start = next(row for row, line in enumerate(lines) if line.startswith(header))
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_docs_list_the_targets_and_precisions_of_the_registry() -> None:
    meanings = {row[0]: row[2] for row in table("## manifest.json", "| key")}
    assert names(meanings["`target`"]) == list(TARGETS)
    every = {precision.name for target in TARGETS.values() for precision in target.precisions}
    listed = names(meanings["`precision`"].partition(";")[0])
    assert (set(listed), len(listed)) == (every, len(every))
    rows = [
        (*names(target + name), float(atol), psnr, scored)
        for target, name, atol, psnr, scored in table("### precisions")
    ]
    assert rows == [
        (
            target.name,
            precision.name,
            precision.atol,
            f"{precision.least_psnr:g}" if math.isfinite(precision.least_psnr) else "",
            "yes" if precision.scored else "",
        )
        for target in TARGETS.values()
        for precision in target.precisions
    ]


def test_docs_list_the_keys_of_a_calibration_and_of_a_placement() -> None:
    keys = [name for row in table("### calibration") for name in names(row[0])]
    assert sorted(keys) == sorted(field.name for field in fields(Calibration))
    below = "`placement` contains the measurement on the exporting machine:"
    keys = [name for row in table(below) for name in names(row[0])]
    costs = [f"costs.{field.name}" for field in fields(Costs)]
    assert sorted(keys) == sorted([*(field.name for field in fields(ExitPlacement) if field.name != "costs"), *costs])


def test_alias_selects_the_version_under_its_name() -> None:
    for alias in ("jetpack6", "jetpack6.1", "jetpack6.2"):
        version = TENSORRT.settings(ExportOptions(target_version=alias)).version
        assert version
        assert version.name == "jetpack6.1"


def cell_of_option(option: str) -> str:
    """The description of an option in the table of berxit-export."""
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    [row] = [line for line in page.splitlines() if line.startswith(f"| `{option}`")]
    return row.split("|")[3]


def test_docs_list_the_precisions_of_the_registry() -> None:
    listed = names(cell_of_option("--precision"))
    assert listed == [precision.name for target in TARGETS.values() for precision in target.precisions]


def test_docs_list_the_versions_of_the_registry() -> None:
    listed = names(cell_of_option("--target-version"))
    assert listed == [
        name
        for target in (COREML, TENSORRT)
        for version in target.versions
        for name in (version.name, *version.aliases)
    ]


def rows_of_tensorrt_page(header: str) -> list[list[str]]:
    """Cells of the table whose header starts so, without the header."""
    page = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    (rows,) = re.findall(rf"^{re.escape(header)}.*\n\|-.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows.splitlines()]


def test_docs_list_the_versions_of_tensorrt() -> None:
    listed = [name for row in rows_of_tensorrt_page("| you have | `--target-version` |") for name in names(row[1])]
    assert sorted(listed) == sorted(name for v in TENSORRT.versions for name in (v.name, *v.aliases))
    opsets = {opset for row in rows_of_tensorrt_page("| you have |") for opset in re.findall(r"\d+", row[3])}
    assert opsets == {str(version.opset) for version in TENSORRT.versions}


def test_docs_list_the_precisions_of_tensorrt_with_their_tolerances() -> None:
    rows = rows_of_tensorrt_page("| `--precision` | types in the file | tolerance at an exit |")
    found = {}
    for name, _, tolerance, _ in rows:
        atol, *psnr = re.findall(r"[\d.e-]+", tolerance)
        found[names(name)[0]] = (float(atol), *map(float, psnr))
    assert found == {p.name: (p.atol, *([p.least_psnr] if p.least_psnr > 0 else [])) for p in TENSORRT.precisions}
