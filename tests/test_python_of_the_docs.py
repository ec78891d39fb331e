"""The Python blocks of README.md and docs/ run, on a small bundle; the tables of docs/runtime.md are complete."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hub_standin import HubStandIn

import berxit
from berxit.runtime import errors

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/runtime.md", "docs/api.md")


def blocks_of(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    checkpoint: Path,
    backbone_folders: dict[str, Path],
) -> Path:
    """Working directory with bundle/ and encoder/, and a hub with the repository org/bundle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERXIT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(bundle, tmp_path / "bundle")
    shutil.copytree(backbone_folders["bert"], tmp_path / "encoder")
    hub = HubStandIn(tmp_path / "hub").install(monkeypatch)
    shutil.copytree(bundle, hub.repositories / "org" / "bundle")
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/runtime.md"])
def test_python_blocks_of_a_page_run(page: str, folder: Path) -> None:
    blocks = blocks_of(page)
    assert blocks
    for block in blocks:
        exec(block, {"texts": ["turn it down", "stop"]})


def test_python_blocks_of_the_api_page_run_one_after_another(folder: Path, quiet_machine: None) -> None:
    shutil.rmtree(folder / "bundle")
    for block in blocks_of("docs/api.md"):
        exec(block, {})
    assert (folder / "bench" / "bench.json").is_file()


def test_python_blocks_of_the_notebook_page_run_one_after_another(
    folder: Path, checkpoint: Path, data_folder: Path, own_registries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint, folder / "checkpoint")
    shutil.copytree(data_folder, folder / "data")
    notebook = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    for block in blocks_of("docs/notebook.md"):
        exec(block, vars(notebook))
    assert (folder / "another" / "config.json").is_file()
    with np.load(folder / "eval" / "predictions.npz") as file:
        named = first_cells("predictions.npz", "docs/notebook.md")
        assert set(file.files) <= named
    assert named - set(file.files) == {"unlabelled", "reference", "numbers"}


def test_api_page_lists_every_public_function() -> None:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    functions = [name for name in berxit.__all__ if inspect.isfunction(getattr(berxit, name))]
    assert len(functions) == 11
    for name in functions:
        if name.startswith("register_"):
            assert f"`berxit.{name}`" in text
            assert f".{name}\n" in text
            continue
        assert f"[`berxit.{name}`](#{name})" in text
        assert any(f"berxit.{name}(" in block for block in blocks_of("docs/api.md"))


def first_cells(section: str, page: str = "docs/runtime.md") -> set[str]:
    """The names in code in the first column of the tables below a heading of a page."""
    text = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {
        re.split(r"[=(]", name)[0].removeprefix("runner.") for cell in cells for name in re.findall("`(.+?)`", cell)
    }


def test_runtime_page_lists_every_field_of_a_prediction() -> None:
    assert first_cells("Predictions") == {field.name for field in dataclasses.fields(berxit.Prediction)}


def test_runtime_page_lists_every_argument_of_load() -> None:
    assert first_cells("Loading") == set(inspect.signature(berxit.EarlyExitRunner.load).parameters)


def test_runtime_page_lists_every_exception() -> None:
    defined: dict[str, Any] = {
        name: each for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, Exception)
    }
    assert first_cells("Errors") == set(defined) | {"BerxitError"}
    assert all(issubclass(each, berxit.BerxitError) for each in defined.values())


def test_runtime_page_lists_every_public_attribute_and_method() -> None:
    runner = berxit.EarlyExitRunner
    methods = {name for name, each in vars(runner).items() if inspect.isfunction(each) and not name.startswith("_")}
    assert first_cells("Calls") == methods
    assert first_cells("Manifest and policy") - {"backend.name", "backend.threads"} == {
        "manifest",
        "policy",
        "device",
        "backend",
    }
