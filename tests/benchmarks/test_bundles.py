"""Bundles side by side: the exits that they have in common are scored."""

from __future__ import annotations

from pathlib import Path

from bundles import command
from click.testing import CliRunner

from berxit.exporters.export import export
from berxit.exporters.options import ExportOptions


def test_bundles_with_other_exits_are_compared_where_both_have_one(
    checkpoint: Path, bundle: Path, data_folder: Path, tmp_path: Path
) -> None:
    export(checkpoint, "onnxruntime", tmp_path / "few", options=ExportOptions(exits=(2,)))
    arguments = [str(bundle), str(tmp_path / "few"), "--data", str(data_folder), "--limit", "6"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    _, _, *rows = result.output.split("accuracy of exit")[1].splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row.startswith("|")]
    assert [row[0] for row in cells] == ["2", "3"]
    assert all(first == second for _, first, second in cells)  # the same weights, the same answers
