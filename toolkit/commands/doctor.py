"""``berxit doctor``: the parts of berxit that are usable on this machine, and the commands that install the others."""

from __future__ import annotations

import platform
from importlib import metadata

import click

from berxit import devices
from berxit.runtime.backend_options import option_flags
from berxit.runtime.backends import BACKENDS, BackendInfo
from berxit.runtime.console import EXTRAS, debug_option
from berxit.runtime.tables import markdown_table

NEEDED_FOR = {
    "onnxruntime": "run bundles on a CPU",
    "openvino": "run the same bundles with OpenVINO",
    "train": "fine-tune, evaluate, calibrate",
    "export": "write bundles",
    "tensorrt": "run bundles on a Jetson or an NVIDIA GPU",
    "tensorrt-rtx": "build engines for desktop RTX GPUs, on any machine",
    "coreml": "write bundles for iPhone, iPad and Mac; run them on a Mac",
    "report": "draw figures",
    "study": "repeat the paper's experiments",
    "serve": "serve bundles over HTTP, and show the demo page",
    "parquet": "read and write Parquet files",
    "ray": "score a corpus on a Ray cluster",
    "spark": "score a corpus on a Spark cluster",
    "hub": "download and publish models on the Hugging Face hub",
}


@click.command("doctor")
@debug_option
def command() -> None:
    """Show the installed parts that are usable on this machine, and how to install the others."""
    rows = []
    for extra, purpose in NEEDED_FOR.items():
        found = {package: _version(package) for package, owner in EXTRAS.items() if owner == extra}
        there = all(found.values())
        packages = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
        rows.append([purpose, "yes" if there else "no", packages, "" if there else devices.install_command(extra)])
    machine = devices.with_cuda(devices.this_machine())
    click.echo(f"berxit {metadata.version('berxit')}, Python {platform.python_version()}, {machine}")
    click.echo(f"{machine.software or 'no NVIDIA driver'}\n")
    click.echo(markdown_table(["to", "usable", "packages", "get it"], rows))
    click.echo()
    here = devices.recognise(machine)
    for target, backends in BACKENDS.items():
        usable = [described for info in backends if (described := _usable(info))]
        why = backends[0].problem() if target in here.targets else f"the device {here.name} does not run them"
        click.echo(f"backends here for {target} bundles: {', '.join(usable) or f'none: {why}'}")
    if _version("torch"):
        import torch

        cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: training runs on the CPU"
        click.echo(f"\ntorch sees: {cuda}")


def _usable(info: BackendInfo) -> str | None:
    """The backend's name, with the options that work on this machine; None if it does not work."""
    if info.problem() is not None:
        return None
    settings = [setting for option in info.options for setting in option.settings if info.problem(setting) is None]
    flags = [flag for setting in settings for flag in option_flags(setting)]
    return f"{info.name} (options: {' '.join(flags)})" if flags else info.name


def _version(package: str) -> str | None:
    """Version of a package, or of one that contains the module of this name: tensorrt-cu12-bindings contains tensorrt.
    None if there is neither."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        others = metadata.packages_distributions().get(package)
        return metadata.version(others[0]) if others else None
