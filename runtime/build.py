"""``berxit-build``: builds the engines of a TensorRT bundle, for this device or ahead of time."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from berxit import devices
from berxit.runtime.backends.tensorrt.cuda import Cuda, Gpu
from berxit.runtime.backends.tensorrt.engines import EngineCache, files_to_build, key_of, prepare_engines
from berxit.runtime.backends.tensorrt.versions import BUILDERS, load
from berxit.runtime.bundle import read_manifest
from berxit.runtime.cache import cache_folder
from berxit.runtime.console import debug_option, progress_bar, register_option, run
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.tables import plural


@click.command("build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--builder", type=click.Choice(list(BUILDERS)), default="tensorrt", show_default=True)
@click.option(
    "--sm",
    help="Comma-separated compute capabilities to build for, without such a GPU: 86,89. Needs --builder tensorrt-rtx.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the engine cache.  [default: $BERXIT_CACHE, ~/.cache/berxit]",
)
@click.option(
    "--workspace",
    type=click.IntRange(min=1),
    help="Workspace memory of the builder in MiB.  [default: depends on the device]",
)
@click.option("--force", is_flag=True, help="Rebuild engines that are in the cache.")
@click.option("--quiet", is_flag=True, help="Show no progress bar.")
@register_option
@debug_option
def command(
    bundle: Path, builder: str, sm: str | None, output: Path | None, workspace: int | None, force: bool, quiet: bool
) -> None:
    """Build the TensorRT engines of BUNDLE and store them in the engine cache.

    BUNDLE was exported with --target tensorrt. Loading a bundle builds missing engines, too; run this command to build
    them beforehand.
    """
    manifest = read_manifest(bundle)
    if manifest.target != "tensorrt":
        raise InputError(
            f"{bundle} was exported for '{manifest.target}' and has no engines: export it with --target tensorrt"
        )
    api, cache = load(builder), EngineCache(output or cache_folder())
    if sm and not api.ahead_of_time:
        raise InputError(f"--builder {builder} cannot build for another GPU (--sm): use --builder tensorrt-rtx")
    mib = workspace or devices.recognise(devices.this_machine()).workspace_mib
    for gpu in _named(sm) if sm else [_here(builder)]:
        if force:
            for segment in files_to_build(manifest).values():
                cache.forget(key_of(manifest, segment, api, gpu))
        bar = progress_bar(f"building for {gpu.name}", quiet)
        engines = prepare_engines(bundle, manifest, api, gpu, cache, workspace_mib=mib, progress=bar, report=click.echo)
        mebibytes = sum(path.stat().st_size for path in engines.values()) / 2**20
        click.echo(f"{gpu.name}: {plural(len(engines), 'engine')}, {mebibytes:.1f} MiB, in {cache.folder}")
    for line in next_steps(bundle, builder, output, elsewhere=sm is not None):
        click.echo(line)


def next_steps(bundle: Path, builder: str, output: Path | None, *, elsewhere: bool) -> list[str]:
    """Lines that show the command to run the bundle on these engines; ``elsewhere``: on another machine."""
    cache = output or (cache_folder() if elsewhere else None)
    variable = f"BERXIT_CACHE={shlex.quote(str(cache))} " if cache else ""
    backend = "" if builder == "tensorrt" else f" --backend {builder}"
    command = f"{variable}python -m runtime.bench{backend} {shlex.quote(str(bundle))}"
    if not elsewhere:
        return [f"next: {command}"]
    return [f"copy {bundle} and {cache} to a machine with such a GPU", f"next, on that machine: {command}"]


def _named(sm: str) -> list[Gpu]:
    """GPUs for compute capabilities such as ``86,89``. Raises InputError for other values."""
    parts = [part.strip() for part in sm.split(",")]
    if not all(part.isdigit() and len(part) >= 2 for part in parts):
        raise InputError(f"--sm {sm}: give compute capabilities without the dot, such as 86,89")
    return [Gpu(f"SM {part}", (int(part[:-1]), int(part[-1]))) for part in parts]


def _here(builder: str) -> Gpu:
    try:
        return Cuda.open().gpu()
    except BerxitError as error:
        other = (
            "to build for a GPU of another machine, add --sm with its compute capability, such as --sm 86"
            if builder == "tensorrt-rtx"
            else (
                "run this command on the device; for a desktop RTX GPU of another machine, use --builder tensorrt-rtx"
                " --sm 86"
            )
        )
        raise BerxitError(f"{error}; {other}") from error


if __name__ == "__main__":
    run(command)
