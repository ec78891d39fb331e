"""The commands and the Python of docs/guards.md run, in order, on a small guard."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from berxit.runtime.console import status_of
from berxit.toolkit.cli import berxit, load

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guards.md"


def blocks_of(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_commands_of_the_guards_page_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data_folder: Path,
    backbone_folders: dict[str, Path],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(backbone_folders["bert"], "encoder")
    Path("guard").mkdir()
    for split, source, copies in (("train", "train", 1), ("dev", "dev", 4), ("test", "dev", 1)):
        header, *rows = (data_folder / f"{source}.tsv").read_text().splitlines()
        named = [row.replace("\tcat", "\tattack").replace("\tother", "\tbenign") for row in rows]
        lines = [f"{row.partition(' ')[0]} {copy} {row.partition(' ')[2]}" for copy in range(copies) for row in named]
        (Path("guard") / f"{split}.tsv").write_text("\n".join([header, *lines]) + "\n")
    quick = ["--max-steps", "12", "--learning-rate", "3e-3", "--max-length", "16"]
    printed = []
    for line in "".join(blocks_of("sh")).splitlines():
        name, *arguments = shlex.split(line)
        command = berxit if name == "berxit" else load(name.removeprefix("berxit-"))
        extra = quick if name == "berxit-train" else []
        if "int8" in line:  # the small model may have more flips than the page accepts
            arguments[arguments.index("--most-flips") + 1] = "100"
        assert status_of(command, [*arguments, *extra]) == 0, line
        printed.append(capsys.readouterr().out)
    assert re.search(r"[\d.]+% of the predictions differ from full depth's", printed[3])
    assert "flips: " in printed[4]
    assert "flips (predictions that differ from full depth)" in printed[-1]
    for block in blocks_of("python"):
        exec(block, {})


def test_export_writes_nothing_above_most_flips(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    arguments = [str(copy), "--target", "onnxruntime", "--output", str(tmp_path / "bundle")]
    assert status_of(load("export"), [*arguments, "--most-flips", "1"]) == 2  # fp32 is not measured
    assert status_of(load("export"), [*arguments, "--precision", "int8", "--most-flips", "0"]) in (0, 1)
    assert (tmp_path / "bundle").exists() == (status_of(load("inspect"), [str(tmp_path / "bundle")]) == 0)
