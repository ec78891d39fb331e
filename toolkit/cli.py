"""``berxit`` and its subcommands, each also a program of its own: ``berxit train`` is ``berxit-train``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

import click

from berxit.runtime.console import debug_option, run

COMMANDS = {
    "train": "berxit.toolkit.commands.train",
    "eval": "berxit.toolkit.commands.evaluate",
    "calibrate": "berxit.toolkit.commands.calibrate",
    "export": "berxit.toolkit.commands.export",
    "build": "berxit.runtime.build",
    "bench": "berxit.runtime.bench",
    "predict": "berxit.toolkit.commands.predict",
    "score": "berxit.toolkit.commands.score",
    "sweep": "berxit.toolkit.commands.sweep",
    "study": "berxit.toolkit.commands.study",
    "compare": "berxit.toolkit.commands.compare",
    "report": "berxit.toolkit.commands.report",
    "inspect": "berxit.toolkit.commands.inspect",
    "devices": "berxit.toolkit.commands.devices",
    "doctor": "berxit.toolkit.commands.doctor",
    "push": "berxit.toolkit.commands.push",
    "serve": "berxit.toolkit.commands.serve",
    "demo": "berxit.toolkit.commands.demo",
    "triton": "berxit.toolkit.commands.triton",
}
"""Name -> the module that defines ``command``. A new command is one module, and one line here and in pyproject.toml."""


def load(name: str) -> click.Command:
    command: click.Command = import_module(COMMANDS[name]).command
    return command


class Commands(click.Group):
    """Imports a subcommand on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the first sentence of every command's help. click would cut it off at the end of the line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, load(name).get_short_help_str(limit=1000)) for name in COMMANDS])


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("berxit"), prog_name="berxit")
@debug_option
def berxit() -> None:
    """Early-exiting BERT-family models on edge devices.

    train a checkpoint -> eval it -> calibrate its exit threshold -> export a bundle -> bench it on the device.
    """


def main() -> None:
    run(berxit)


def _program(name: str) -> Callable[[], None]:
    """The function behind the program ``berxit-NAME``."""
    return lambda: run(load(name))


train = _program("train")
evaluate = _program("eval")
calibrate = _program("calibrate")
export = _program("export")
build = _program("build")
bench = _program("bench")
predict = _program("predict")
score = _program("score")
sweep = _program("sweep")
study = _program("study")
compare = _program("compare")
report = _program("report")
inspect = _program("inspect")
devices = _program("devices")
doctor = _program("doctor")
push = _program("push")
serve = _program("serve")
demo = _program("demo")
triton = _program("triton")
