"""Runtime on an emulated aarch64 CPU, and the same checks on this machine."""

from __future__ import annotations

from pathlib import Path

import aarch64
import aarch64_checks
import pytest
from conftest import prepared

from berxit.runtime.errors import BerxitError, InputError


@pytest.fixture(scope="module")
def bundles(bundle: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Precision -> bundle for ONNX Runtime."""

    def build(folder: Path) -> None:
        from berxit.exporters.export import export
        from berxit.exporters.options import ExportOptions

        export(checkpoint, "onnxruntime", folder / "bundle", options=ExportOptions("int8"))

    return {"fp32": bundle, "int8": prepared(tmp_path_factory, "onnxruntime-int8", build) / "bundle"}


@pytest.mark.aarch64
@pytest.mark.parametrize(
    ("precision", "board"),
    [("fp32", "raspberry-pi-5"), ("int8", "raspberry-pi-5"), ("int8", "raspberry-pi-4")],  # 4: no int8 dot product
)
def test_bundle_passes_checks_on_emulated_board(precision: str, board: str, bundles: dict[str, Path]) -> None:
    try:
        aarch64.prepare()
    except BerxitError as error:
        pytest.skip(str(error))
    found = aarch64.emulated(bundles[precision], board)
    assert (found["machine"], found["precision"]) == ("aarch64", precision)
    assert found["predictions"] > 20
    assert found["predictions"] - len(found["different"]) >= 0.9 * found["predictions"]


def test_bundle_passes_checks_on_this_machine(bundle: Path, quiet_machine: None) -> None:
    found = aarch64_checks.check(bundle)
    assert found["precision"] == "fp32"
    assert {layer for _, layer in found["predictions"]} == {1, 2, 3}


def test_prepare_names_missing_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(aarch64, "FOLDER", tmp_path)
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(InputError, match=r"made from Debian packages: apt-get is not installed here"):
        aarch64.prepare()
