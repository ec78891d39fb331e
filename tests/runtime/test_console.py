from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from berxit.devices import install_command
from berxit.runtime import console
from berxit.runtime.console import debug_option, progress_bar, run, status_of
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.progress import duration


def command_that(act: Callable[[], object]) -> click.Command:
    @click.command("try")
    @click.option("--threads", type=click.IntRange(min=1))
    @debug_option
    def command(threads: int | None) -> None:
        act()

    return command


def failing(error: BaseException) -> click.Command:
    def act() -> None:
        raise error

    return command_that(act)


def ends(command: click.Command, *arguments: str) -> int:
    return status_of(command, list(arguments))


def test_run_exits_with_0_and_without_output_on_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(command_that(lambda: None)) == 0
    assert capsys.readouterr() == ("", "")


def test_run_prints_help_to_stdout_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(command_that(lambda: None), "--help") == 0
    out, err = capsys.readouterr()
    assert "--threads" in out
    assert "--debug" in out
    assert err == ""


def test_run_uses_exit_status_of_command() -> None:
    assert ends(command_that(lambda: click.get_current_context().exit(3))) == 3


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BerxitError("no bundle at x: make one"), 1, "no bundle at x: make one"),
        (InputError("threshold 7 is out of range"), 2, "threshold 7 is out of range"),
        (BerxitError("two\nlines  in one"), 1, "two\\nlines in one"),
        (click.BadParameter("it is bad"), 2, "it is bad"),
        (click.FileError("a.txt", "not there"), 2, "a.txt"),
        (KeyboardInterrupt(), 130, "interrupted: no partial output was written"),
        (click.Abort(), 130, "interrupted"),
        (RuntimeError("first\nsecond"), 1, "RuntimeError: first. Rerun with --debug"),
        (RuntimeError(), 1, "RuntimeError: . Rerun with --debug"),
        (
            OSError(28, "No space left on device", "out/manifest.json"),
            1,
            "No space left on device: out/manifest.json. Free space",
        ),
        (PermissionError(13, "Permission denied", b"in.csv"), 1, "Permission denied: in.csv. Check the path"),
        (OSError("no such model"), 1, "OSError: no such model. Rerun with --debug"),
    ],
)
def test_run_prints_failure_as_one_line_to_stderr(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    assert ends(failing(error)) == status
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()  # click writes a newline after ^C
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in line


def test_run_ends_silently_if_the_reader_of_its_output_has_ended() -> None:
    code = (
        "import click; from berxit.runtime.console import run; run(click.command()(lambda: click.echo('x' * 1000000)))"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -c 1"
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (found.stdout, found.stderr) == ("x", "")


def test_run_exits_with_2_for_wrong_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(command_that(lambda: None), "--threads", "0") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "'--threads'" in line
    assert "--help" in line
    assert ends(command_that(lambda: None), "--treads", "1") == 2
    assert "--treads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("torch", f"this needs torch, which is not installed here: {install_command('train')}"),
        ("torch.nn", f"this needs torch, which is not installed here: {install_command('train')}"),
        ("onnx", f"this needs onnx, which is not installed here: {install_command('export')}"),
        ("matplotlib.pyplot", f"this needs matplotlib, which is not installed here: {install_command('report')}"),
        ("onnxruntime", f"this needs onnxruntime, which is not installed here: {install_command('onnxruntime')}"),
        ("numpy.linalg", f"this needs numpy, which is not installed here: {install_command()}"),
        (
            "something",
            "no module 'something': not a dependency of berxit. Rerun with --debug to see which module needs it",
        ),
    ],
)
def test_run_names_install_command_of_missing_package(
    capsys: pytest.CaptureFixture[str], module: str, line: str
) -> None:
    assert ends(failing(ModuleNotFoundError(f"No module named '{module}'", name=module))) == 1
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(
    "error",
    [
        BerxitError("bad"),
        RuntimeError("bad"),
        click.BadParameter("bad"),
        ModuleNotFoundError("No module named 'torch'", name="torch"),
    ],
)
def test_run_shows_traceback_only_with_debug(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    status = ends(failing(error))
    assert "Traceback" not in capsys.readouterr().err
    assert ends(failing(error), "--debug") == status
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.strip().splitlines()[-1].startswith("error: ")


def test_debug_is_accepted_before_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    @click.group()
    @debug_option
    def group() -> None: ...

    group.add_command(failing(BerxitError("bad")))
    assert ends(group, "--debug", "try") == 1
    assert "Traceback" in capsys.readouterr().err


def test_group_without_subcommand_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    @click.group()
    def group() -> None:
        """Many things."""

    group.add_command(command_that(lambda: None))
    assert ends(group) in (0, 2)
    out, err = capsys.readouterr()
    assert "Commands:\n" in out + err


def test_run_reads_arguments_of_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["try", "--threads", "2"])
    with pytest.raises(SystemExit) as end:
        run(failing(InputError("bad")))
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: bad\n"


def test_quiet_progress_bar_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("working", quiet=True)(4) as bar:
        bar.update(4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_shows_a_note_only_on_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    with progress_bar("training")(2) as bar:
        bar.update(1)
        bar.note("loss 0.500")
        bar.update(1)
    out = capsys.readouterr().out
    assert ("training  [" in out, "training, loss 0.500  [" in out) == (terminal, terminal)
    assert ("loss" in out) == terminal


def test_progress_bar_shows_notes_between_steps_ten_times_per_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    clock = iter([10.0, 10.05, 10.2])
    monkeypatch.setattr(console, "monotonic", lambda: next(clock))
    with progress_bar("building")(2) as bar:
        for text in ("step 1", "step 2", "step 3"):
            bar.note(text)
        shown = capsys.readouterr().out
    assert [text in shown for text in ("step 1", "step 2", "step 3")] == [True, False, True]


def test_progress_without_a_terminal_prints_a_line_after_2_seconds_and_every_10(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(console, "monotonic", lambda: now)
    with progress_bar("fine-tuning")(300) as bar:
        for second in range(1, 31):
            now = 100.0 + second
            bar.note(f"loss {second}")
            bar.update(10)
            if second == 15:
                bar.line("epoch 1")
    assert capsys.readouterr().err.splitlines() == [
        "fine-tuning: 10 of 300 (3%), 2 s, about 58 s left, loss 2",
        "fine-tuning: 110 of 300 (37%), 12 s, about 21 s left, loss 12",
        "epoch 1",
        "fine-tuning: 210 of 300 (70%), 22 s, about 9 s left, loss 22",
        "fine-tuning: 300 of 300 (100%), 30 s, loss 30",
    ]
    with progress_bar("exporting")(3) as bar:
        bar.update(3)
    with progress_bar("exporting", quiet=True)(3) as bar:
        now += 20
        bar.update(1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "1 min 0 s"), (42, "42 s"), (7505, "2 h 5 min")])
def test_duration_uses_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
