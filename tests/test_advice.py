"""Every line that the product advises works: `next:` lines are executed, all others are resolved."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from berxit import devices
from berxit.runtime.backends import BACKENDS
from berxit.runtime.build import next_steps
from berxit.runtime.console import EXTRAS, status_of
from berxit.toolkit.cli import COMMANDS, load
from berxit.toolkit.commands.doctor import NEEDED_FOR
from berxit.toolkit.commands.export import next_step

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("berxit", "devices", "exporters", "runtime", "toolkit", "train")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {f"berxit-{name}": name for name in COMMANDS} | {"runtime.bench": "bench", "runtime.build": "build"}
FOREIGN = {
    *("--nproc-per-node", "--nnodes", "--no-python", "--rdzv-backend", "--rdzv-endpoint"),  # torchrun
    *("--num-processes", "--multi-gpu", "--multi", "--num"),  # accelerate launch
    *("--system-site-packages", "--package-path"),  # venv, swift
    *("--query-gpu", "--format"),  # nvidia-smi
    "--model-repository",  # tritonserver
    *("--samplers", "--sample-rate", "--buffer-size"),  # powermetrics
}
"""Options of other programs that pages and messages name."""


def extras() -> set[str]:
    """Of pyproject.toml, without a TOML reader, which Python 3.10 lacks."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^([a-z0-9-]+) = \[", table, re.MULTILINE))


def options_of(command: click.Command) -> set[str]:
    named = {opt for parameter in command.params for opt in (*parameter.opts, *parameter.secondary_opts)}
    return {*named, "--help"}


def every_option() -> set[str]:
    from berxit.toolkit.quickstart import command as quickstart

    return set().union(options_of(quickstart), {"--version"}, *(options_of(load(name)) for name in COMMANDS))


def resolve(line: str, *, whole: bool = True) -> None:
    """Raises for a command line of ours that the command would reject; of one that is not ``whole``, for an option that
    the command does not have. Other programs are left alone."""
    words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
    if words[:1] == ["make"]:
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), line
        return
    if words[:1] == ["python"] and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), line
        return
    if words[:2] == ["pip", "install"]:
        (given,) = re.findall(r"pip install -e '\.\[([a-z0-9,-]+)\]'", line)
        assert set(given.split(",")) <= extras(), line
        return
    for place, word in enumerate(words):
        name = PROGRAMS.get(word) or (words[place + 1] if word == "berxit" and place + 1 < len(words) else None)
        if name is None:
            continue
        command = load(name)  # KeyError: no such command
        arguments = words[place + 1 + (word == "berxit") :]
        unknown = {a for a in arguments if a.startswith("--")} - options_of(command)
        assert not unknown, f"{line}: {unknown}"
        if whole and "..." not in arguments:
            command.make_context(name, [a for a in arguments if a != "--help"])
        return


def code_lines() -> Iterator[tuple[str, str, bool]]:
    """(page, line, whether it is whole): every shell line in a code block, and every inline code that starts with a
    program of ours."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^ *```(?:|sh|bash|console|shell)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"(\w+=\S+ )*(berxit|python|pip|make|torchrun|accelerate)\b", line.strip()):
                    yield page.name, line.strip(), True
        for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            if re.match(r"(berxit(-\w+| (?!\.))|python -m runtime|pip install|make )", span):
                yield page.name, span, False


@pytest.mark.parametrize(("page", "line", "whole"), sorted(set(code_lines())))
def test_pages_advise_lines_that_resolve(page: str, line: str, whole: bool) -> None:
    if re.fullmatch(r"pip install [a-z-]+==[\d.]+", line):
        return  # another package, which tests/test_install_lines.py resolves
    if line.startswith("pip install") and not re.match(r"pip install -e '\.\[[a-z0-9,-]+\]'", line):
        pytest.fail(f"{page}: {line}: no index has berxit: give the checkout form")
    resolve(line, whole=whole)


def strings() -> Iterator[tuple[str, str]]:
    """(file, text) of every string that code may print: constants and f-strings, docstrings left out."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                skipped.add(id(node.value))
            if isinstance(node, ast.JoinedStr):
                skipped |= {id(part) for part in node.values}
                parts = [p.value if isinstance(p, ast.Constant) else "X" for p in node.values]
                yield str(path.relative_to(ROOT)), "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
                yield str(path.relative_to(ROOT)), node.value


def test_only_one_function_writes_an_install_command() -> None:
    found = [(file, text) for file, text in strings() if "pip install" in text or re.search(r"\bpip3? ", text)]
    assert [pair for pair in found if pair[0] != "devices/installation.py"] == []


def test_every_advised_extra_exists() -> None:
    asked = {info.extra for known in BACKENDS.values() for info in known} | set(EXTRAS.values()) | set(NEEDED_FOR)
    for path in SOURCES:
        asked |= set(re.findall(r"install_command\(['\"]([a-z-]+)['\"]\)", path.read_text(encoding="utf-8")))
    assert set().union(*map(extras_for, asked)) <= extras()


def extras_for(advised: str) -> set[str]:
    """The extras of pyproject.toml that ``install_command(advised)`` may name."""
    return set(devices.TENSORRT_EXTRAS) if advised == "tensorrt" else {advised} - {""}


def test_every_package_is_in_the_extra_that_is_advised_for_it() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package, advised in EXTRAS.items():
        for extra in extras_for(advised) or {""}:
            start = rf"^{extra} = \[" if extra else r"^dependencies = \["
            (listed,) = re.findall(start + r"(.*?)\]$", text, re.DOTALL | re.MULTILINE)
            name = extra if package == "tensorrt" else package  # The package tensorrt-cu12 contains the module.
            from_jetpack = package == "tensorrt" and "jetson" in extra
            assert bool(re.search(rf'"{name}(\[\w+\])?[>=<]', listed)) != from_jetpack, (package, extra)


def test_every_option_that_a_message_names_exists() -> None:
    known = every_option() | FOREIGN
    wrong = [
        (file, flag)
        for file, text in strings()
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)
        if flag not in known and not file.startswith("berxit/runtime_alias")
    ]
    assert wrong == []


def test_every_command_that_a_message_names_exists_and_takes_its_options() -> None:
    for _, text in strings():
        for name, rest in re.findall(r"berxit-([a-z]+)((?: (?:--[a-z-]+|[\w./-]+))*)", text):
            flags = {word for word in rest.split() if word.startswith("--")}
            assert name in COMMANDS, text
            assert flags <= options_of(load(name)), text


QUICK = {
    "train": ["--quiet"],
    "calibrate": ["--quiet"],
    "export": ["--quiet"],
    "bench": ["--quiet", "--seconds", "0", "--queries", "1", "--thresholds", "2", "--threads", "1"],
}
"""Command -> what is added to a printed line, so that the test is brief."""


def follow(line: str, capsys: pytest.CaptureFixture[str]) -> str | None:
    """Runs the command behind ``next: `` as it is printed; returns the next such line, or None."""
    words = shlex.split(line.removeprefix("next: "))
    name = PROGRAMS[words[2] if words[:2] == ["python", "-m"] else words[0]]
    arguments = words[3:] if words[0] == "python" else words[1:]
    assert status_of(load(name), [*arguments, *QUICK[name]]) == 0, capsys.readouterr().err
    return next_line(capsys)


def next_line(capsys: pytest.CaptureFixture[str]) -> str | None:
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert len(lines) <= 1
    return lines[0] if lines else None


@pytest.mark.parametrize(
    ("data", "options", "programs"),
    [
        ("folder", [], ["calibrate", "export", "runtime.bench"]),
        ("file", ["--dev-fraction", "0"], ["train", "calibrate", "export", "runtime.bench"]),
        ("folder without dev", ["--seed", "7", "--no-lte"], ["calibrate", "export", "runtime.bench"]),
        ("bad rows", ["--skip-bad-rows"], ["calibrate", "export", "runtime.bench"]),
    ],
)
def test_next_lines_lead_from_training_to_bench(
    data: str,
    options: list[str],
    programs: list[str],
    backbone_folders: dict[str, Path],
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(data_folder, tmp_path / "my data"))
    if data == "bad rows":
        for split in ("train", "dev"):
            with (folder / f"{split}.tsv").open("a", encoding="utf-8") as stream:
                stream.write("a\tb\tc\n")
    elif data != "folder":
        (folder / "dev.tsv").unlink()
    given = folder / "train.tsv" if data == "file" else folder
    sizes = [
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--learning-rate",
        "3e-3",
        "--max-length",
        "16",
        "--pooling",
        "mean",
    ]
    places = ["--model", backbone_folders["bert"], "--data", given, "--output", tmp_path / "my checkpoint"]
    train = ["berxit-train", "--task", "custom", *map(str, places), *sizes, *options]
    line: str | None = f"next: {shlex.join(train)}"
    followed = []
    while line := follow(line, capsys):
        followed.append(next(word for word in programs if word in line))
    assert followed == programs


def test_second_calibration_advises_export_that_works(
    checkpoint: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    line = f"next: berxit-calibrate {copy} --data {data_folder} --keep 0.9"
    for forced in (False, True):
        export = follow(line, capsys)
        assert export is not None
        assert export.endswith(" --force") == forced
        assert follow(export, capsys) is not None


@pytest.mark.parametrize(
    ("builder", "output", "elsewhere", "command"),
    [
        ("tensorrt", None, False, "next: python -m runtime.bench bundle"),
        ("tensorrt-rtx", None, False, "next: python -m runtime.bench --backend tensorrt-rtx bundle"),
        ("tensorrt", Path("my engines"), False, "next: BERXIT_CACHE='my engines' python -m runtime.bench bundle"),
        (
            "tensorrt-rtx",
            Path("engines"),
            True,
            "next, on that machine: BERXIT_CACHE=engines python -m runtime.bench --backend tensorrt-rtx bundle",
        ),
    ],
)
def test_after_a_build_the_bench_finds_its_engines(
    builder: str, output: Path | None, elsewhere: bool, command: str
) -> None:
    *before, last = next_steps(Path("bundle"), builder, output, elsewhere=elsewhere)
    assert last == command
    assert before == (["copy bundle and engines to a machine with such a GPU"] if elsewhere else [])
    resolve(last.partition(": ")[2])
    if "--backend" in last:
        assert builder in {info.name for info in BACKENDS["tensorrt"]}


@pytest.mark.parametrize("device", devices.DEVICES, ids=lambda device: device.name)
def test_after_an_export_the_next_step_is_for_the_device(device: devices.Device) -> None:
    line = next_step(Path("bundle"), device.targets[0], device)
    if device.in_an_app:
        assert "python" not in line
        page = re.search(r"docs/\w+\.md", line)
        assert page is not None
        assert "runner.verify()" in (ROOT / page[0]).read_text(encoding="utf-8")
    else:
        where, _, command = line.partition(": ")
        assert where == ("next" if device.matches(devices.this_machine()) else f"next, on {device.description}")
        resolve(command)


@pytest.mark.parametrize("target", ["coreml", "tensorrt"])
def test_without_a_device_the_next_step_names_the_target(target: str) -> None:
    if target in devices.recognise(devices.this_machine()).targets:
        pytest.skip("this machine runs it")
    where, _, command = next_step(Path("bundle"), target, None).partition(": ")
    assert where == f"next, on a device for {target} (berxit devices)"
    resolve(command)


@pytest.mark.usefixtures("no_fake_gpu")
def test_doctor_lists_only_backends_that_run_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(load("doctor"), []) == 0
    said = capsys.readouterr().out
    for target, known in BACKENDS.items():
        (line,) = [line for line in said.splitlines() if f"backends here for {target} bundles: " in line]
        listed = line.partition("bundles: ")[2].split(", ")
        usable = [info.name for info in known if info.problem() is None]
        assert [name.partition(" (options: ")[0] for name in listed] == usable or (
            not usable and line.partition("bundles: ")[2].startswith("none: ")
        )
        if target not in devices.recognise(devices.this_machine()).targets:
            assert usable == []


def test_onnxruntime_without_a_gpu_provider_is_no_gpu_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    info = next(info for info in BACKENDS["tensorrt"] if info.name == "onnxruntime-gpu")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert info.problem() == "the onnxruntime here has CPUExecutionProvider only"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert info.problem() is None
