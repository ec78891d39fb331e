"""The wheel in an environment of its own, used from a folder whose modules have the names of the project's folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from berxit.toolkit.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("berxit", "devices", "exporters", "runtime", "toolkit", "train", "pyproject.toml", "README.md", "LICENSE")
PROGRAMS = (
    "berxit",
    *(f"berxit-{name}" for name in ("train", "eval", "calibrate", "export", "build", "bench", "study")),
)
USERS_FILES = ("train.py", "runtime.py", "toolkit.py", "devices/__init__.py", "exporters/__init__.py")
SAME_CLASS = "import berxit, runtime; print(runtime.EarlyExitRunner is berxit.EarlyExitRunner, berxit.__file__)"

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, status: int = 0) -> str:
    """Output and errors of a command that runs without this process's PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == status, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel and, through a .pth file, this environment's packages."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("berxit-*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "test_environment.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "venv" / "bin"


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A folder of an app whose own modules have the names of the project's folders."""
    for name in USERS_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("OWNER = 'user'\n", encoding="utf-8")
    return tmp_path


def test_wheel_does_not_collide_with_modules_of_an_app(installed: Path, users_folder: Path) -> None:
    code = """
import devices, exporters, runtime, toolkit, train
import berxit.devices, berxit.exporters.export, berxit.runtime.bench, berxit.toolkit.cli, berxit.train.fine_tuning
from berxit.exporters.coreml import graph
from berxit.train.backbones import ADAPTERS
assert {module.OWNER for module in (devices, exporters, runtime, toolkit, train)} == {"user"}
print(berxit.__file__, berxit.runtime.__file__)
"""
    environment = installed.parent
    locations = run(installed / "python", "-c", code, cwd=users_folder).split()[-2:]
    assert all(Path(location).is_relative_to(environment) for location in locations)


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_of_the_wheel_prints_its_help(program: str, installed: Path, users_folder: Path) -> None:
    assert "Usage:" in run(installed / program, "--help", cwd=users_folder)


def test_every_command_of_the_wheel_prints_its_help(installed: Path, users_folder: Path) -> None:
    for command in COMMANDS:
        assert "Usage:" in run(installed / "berxit", command, "--help", cwd=users_folder)


def test_runner_of_the_wheel_predicts(installed: Path, bundle: Path, users_folder: Path) -> None:
    code = f"from berxit import EarlyExitRunner; print(EarlyExitRunner.load({str(bundle)!r}).predict('the cat').label)"
    assert run(installed / "python", "-c", code, cwd=users_folder).split()[-1] == "cat"


def test_torchrun_starts_the_training_program_of_the_wheel(installed: Path, users_folder: Path) -> None:
    torchrun = shutil.which("torchrun", path=str(Path(sys.executable).parent))
    if torchrun is None:
        pytest.skip("no torchrun in this environment")
    command = [torchrun, "--standalone", "--no-python", installed / "berxit-train", "--help"]
    assert "Usage:" in run(*command, cwd=users_folder)


def test_runtime_bench_beside_a_users_runtime_ends_in_one_line(installed: Path, users_folder: Path) -> None:
    (line,) = run(installed / "python", "-m", "runtime.bench", cwd=users_folder, status=1).splitlines()
    assert "'runtime.bench'" in line
    assert "Usage:" in run(installed / "python", "-m", "berxit.runtime.bench", "--help", cwd=users_folder)


def test_runtime_is_berxit_runtime_in_the_wheel_and_in_the_checkout(installed: Path, tmp_path: Path) -> None:
    same, location = run(installed / "python", "-c", SAME_CLASS, cwd=tmp_path).split()
    assert same == "True"
    assert Path(location).is_relative_to(installed.parent)
    assert "Usage:" in run(installed / "python", "-m", "runtime.bench", "--help", cwd=tmp_path)
    same, location = run(sys.executable, "-c", SAME_CLASS, cwd=ROOT).split()
    assert (same, Path(location)) == ("True", ROOT / "berxit" / "__init__.py")
