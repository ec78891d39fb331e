"""Files of a CoreML package: equal exports have equal bytes, other users can read them, equal weights occur once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="coremltools is not installed here: pip install -e '.[coreml]'")

from conftest import MakeCheckpoint

from berxit.exporters.coreml.package import new_function, write_package
from berxit.exporters.coreml.silenced_coremltools import Function, ct, mb, types
from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions
from berxit.runtime.bundle import sha256

MATRIX = np.arange(64 * 64, dtype=np.float16).reshape(64, 64)


def product(*weights: np.ndarray) -> Function:
    """A function that multiplies a vector (1, 64) with the matrices."""
    with new_function({"x": mb.placeholder(shape=(1, 64), dtype=types.fp16)}, ct.target.iOS17) as function:
        x = function.inputs["x"]
        for weight in weights:
            x = mb.linear(x=x, weight=weight, bias=np.zeros(64, np.float16))
        function.set_outputs([x])
    return function


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("albert", ExportOptions("int8", target_version="ios16")),
        ("bert", ExportOptions("palette4-grouped")),
        ("mpnet", ExportOptions(lengths=(8, 16), layout="ane", target_options=("fixed-shapes", "full-depth"))),
    ],
)
def test_second_export_has_equal_bytes_in_every_file(
    family: str,
    options: ExportOptions,
    made: MakeCheckpoint,
    tmp_path: Path,
) -> None:
    for name in ("first", "second"):
        export(made(family), "coreml", tmp_path / name, options=options)
    first, second = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("first", "second")
    )
    assert {name for name in first if first[name] != second.get(name)} == set()
    assert set(first) == set(second)


def test_program_is_serialized_in_the_order_of_its_keys(tmp_path: Path) -> None:
    write_package({"first": product(MATRIX), "second": product(MATRIX)}, tmp_path / "a.mlpackage", ct.target.iOS18)
    file = next((tmp_path / "a.mlpackage").rglob("model.mlmodel"))
    spec = ct.utils.load_spec(str(file))
    assert file.read_bytes() == spec.SerializeToString(deterministic=True)


def test_package_has_identifiers_of_its_content(tmp_path: Path) -> None:
    manifests = []
    for name, weight in (("a", MATRIX), ("same", MATRIX), ("other", MATRIX + 1)):
        write_package({"main": product(weight)}, tmp_path / f"{name}.mlpackage", ct.target.iOS17)
        manifests.append(json.loads((tmp_path / f"{name}.mlpackage" / "Manifest.json").read_text(encoding="utf-8")))
    a, same, other = manifests
    assert a == same
    assert not set(a["itemInfoEntries"]) & set(other["itemInfoEntries"])
    assert a["itemInfoEntries"][a["rootModelIdentifier"]]["name"] == "model.mlmodel"


def test_other_users_can_read_a_package(tmp_path: Path) -> None:
    """coremltools' own packages consist of temporary files of mode 0600 in folders of mode 0700."""
    package = tmp_path / "a.mlpackage"
    write_package({"main": product(MATRIX)}, package, ct.target.iOS17)
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in (package, *package.rglob("*"))}
    assert modes == {True: 0o755, False: 0o644}


def test_functions_store_equal_weights_once(tmp_path: Path) -> None:
    for name, functions in {
        "one": {"first": product(MATRIX)},
        "equal": {"first": product(MATRIX), "second": product(MATRIX.copy(), MATRIX)},
        "different": {"first": product(MATRIX), "second": product(MATRIX + 1)},
    }.items():
        write_package(functions, tmp_path / f"{name}.mlpackage", ct.target.iOS18)
    one, equal, different = (
        next((tmp_path / f"{name}.mlpackage").rglob("weight.bin")).stat().st_size
        for name in ("one", "equal", "different")
    )
    assert equal == one
    assert different > one + MATRIX.nbytes - 1


def test_package_checksum_ignores_finder_metadata(tmp_path: Path) -> None:
    package = tmp_path / "a.mlpackage"
    write_package({"main": product(MATRIX)}, package, ct.target.iOS17)
    before = sha256(package)
    for name in (".DS_Store", "Data/.DS_Store", "Data/com.apple.CoreML/._model.mlmodel"):
        (package / name).write_bytes(b"Finder")
    assert sha256(package) == before
    (package / "Data" / "other").write_bytes(b"not Finder")
    assert sha256(package) != before
