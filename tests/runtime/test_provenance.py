"""The provenance of a result."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from berxit.runtime import provenance as module
from berxit.runtime.provenance import commit, provenance


@click.command("measure")
@click.argument("inputs", type=click.Path(path_type=Path), nargs=-1)
@click.option("--data", type=click.Path(path_type=Path))
@click.option("-r", "--rows", type=int, multiple=True)
@click.option("--seed", default=7)
@click.option("--keep/--no-keep", default=True)
@click.option("--quiet", is_flag=True)
def measure(**_options: Any) -> None:
    click.echo(json.dumps(provenance()))


def measured(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(measure, [str(each) for each in arguments], catch_exceptions=False)
    found: dict[str, Any] = json.loads(done.output)
    return found


def test_provenance_has_the_command_without_folders(tmp_path: Path) -> None:
    found = measured(tmp_path / "ckpt", "--data", tmp_path / "MRPC", "--rows", "3", "-r", "4", "--no-keep", "--quiet")
    assert found["command"] == "measure ckpt --data MRPC --rows 3 --rows 4 --no-keep --quiet"
    assert found["options"] == {
        "inputs": ["ckpt"],
        "data": "MRPC",
        "rows": [3, 4],
        "seed": 7,
        "keep": False,
        "quiet": True,
    }
    assert str(tmp_path) not in json.dumps(found)


def test_provenance_has_the_seeds_and_options_of_the_checkpoints(tmp_path: Path) -> None:
    for name, seed in (("one", 42), ("two", 43)):
        (tmp_path / name).mkdir()
        record = {"options": {"model": "bge", "seed": seed}}
        (tmp_path / name / "training.json").write_text(json.dumps(record), encoding="utf-8")
    found = measured(tmp_path / "one", f"mrpc={tmp_path / 'two'}=800", tmp_path / "none", "--seed", "1")
    assert found["seeds"] == [1, 42, 43]
    assert found["training"] == {"one": {"model": "bge", "seed": 42}, "two": {"model": "bge", "seed": 43}}
    assert found["command"] == "measure one mrpc=two=800 none --seed 1"


def test_provenance_without_a_command_has_versions_and_machine() -> None:
    found = provenance()
    assert (found["command"], found["options"], found["seeds"]) == (None, {}, [])
    assert {"python", "berxit", "numpy"} <= found["versions"].keys()
    assert found["machine"]["cores"] >= 1


def test_commit_marks_changed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(module, "ROOT", tmp_path)
    commit.cache_clear()
    assert commit() is None
    git("init")
    (tmp_path / "file").write_text("one", encoding="utf-8")
    git("add", "file")
    git("commit", "-m", "first")
    commit.cache_clear()
    first = commit()
    assert first is not None and len(first) == 12
    (tmp_path / "file").write_text("two", encoding="utf-8")
    commit.cache_clear()
    assert commit() == f"{first}+"
    commit.cache_clear()
