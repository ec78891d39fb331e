"""The writer of results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from berxit.devices import install_command
from berxit.runtime.errors import BerxitError
from berxit.runtime.results import write_results


def draw(path: Path) -> None:
    path.write_bytes(b"figure")


def test_write_results_writes_numbers_report_and_figure(tmp_path: Path) -> None:
    more = {"array.npz": lambda path: path.write_bytes(b"array")}
    files = write_results(tmp_path / "new", "bench", {"ms": 1.5}, "# Report", figure=draw, more=more)
    assert [path.name for path in files] == ["array.npz", "bench.json", "bench.md", "bench.png"]
    written = json.loads(files[1].read_text(encoding="utf-8"))
    assert written.pop("made_by")["versions"]["berxit"]
    assert written == {"ms": 1.5}
    assert files[2].read_text(encoding="utf-8") == "# Report\n"
    assert files[3].read_bytes() == b"figure"


def test_write_results_without_matplotlib_reports_the_command_that_installs_it(tmp_path: Path) -> None:
    def no_matplotlib(path: Path) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    lines: list[str] = []
    files = write_results(tmp_path, "eval", {}, "", figure=no_matplotlib, report=lines.append)
    assert [path.name for path in files] == ["eval.json", "eval.md"]
    assert lines == [f"no figure: matplotlib is not installed here: {install_command('report')}"]


def test_write_results_raises_for_another_missing_module(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    with pytest.raises(ModuleNotFoundError, match="torch"):
        write_results(tmp_path, "eval", {}, "", figure=broken)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no figure")])
def test_write_results_keeps_the_earlier_results_if_it_does_not_finish(tmp_path: Path, error: BaseException) -> None:
    def interrupted(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    more = {"array.npz": lambda path: path.write_bytes(b"array")}
    write_results(tmp_path, "eval", {"ms": 1}, "# First", figure=draw, more=more)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    more = {"array.npz": lambda path: path.write_bytes(b"another")}
    with pytest.raises(type(error)):
        write_results(tmp_path, "eval", {"ms": 2}, "# Second", figure=interrupted, more=more)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_write_results_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BerxitError, match=r"cannot write results to .*file: .*Choose another folder"):
        write_results(tmp_path / "file", "eval", {}, "")
