"""Coverage-guided fuzzing of the readers of a bundle: no input may raise anything but BerxitError, or take long.

    pip install atheris
    python benchmarks/fuzz_readers.py manifest BUNDLE [--seconds 60] [--corpus FOLDER]

READER is ``manifest``, ``golden``, ``tokenizer`` or ``onnx``. The fuzzer starts from the files of BUNDLE and from
``benchmarks/fuzz_corpus/READER``, mutates them, and keeps the inputs that reach new code. It ends after ``--seconds``,
or at the first fault, whose input it writes to the current folder. ``fuzz_corpus`` contains inputs of earlier runs that
reached new code; a test reads them all.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FunctionType

import click

from berxit.runtime.errors import BerxitError

CORPUS = Path(__file__).parent / "fuzz_corpus"
READERS = ("manifest", "golden", "tokenizer", "onnx")
LONGEST_INPUT, LONGEST_S = 1 << 16, 10
TEXTS = ("the cat", "a" * 100, "\u00e9\u0301 \U0001f600 [SEP]")


class Bytes:
    """A file in memory, for TextTokenizer."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __str__(self) -> str:
        return "tokenizer.json"

    def read_bytes(self) -> bytes:
        return self._content


def reader_of(name: str, manifest: bytes) -> Callable[[bytes], object]:
    """A function that reads the content of a file. ``manifest``: that of the bundle, for golden.json."""
    from berxit.runtime.bundle import parse_manifest
    from berxit.runtime.golden import parse_golden
    from berxit.runtime.onnx_files import check_onnx
    from berxit.runtime.tokenization import TextTokenizer

    if name == "manifest":
        return lambda content: parse_manifest(content, Path("manifest.json"))
    if name == "golden":
        whole = parse_manifest(manifest, Path("manifest.json"))
        return lambda content: parse_golden(content, Path("golden.json"), whole)
    if name == "onnx":
        return lambda content: check_onnx(content, "layer.onnx")

    def tokenize(content: bytes) -> None:
        tokenizer = TextTokenizer(Bytes(content), 16, 0, 100)  # type: ignore[arg-type]
        for text in TEXTS:
            tokenizer([text])

    return tokenize


def survives(read: Callable[[bytes], object], content: bytes) -> bool:
    """True if the reader accepts the content, or refuses it by a BerxitError. Any other exception passes through."""
    with suppress(BerxitError):
        read(content)
    return True


def runtime_functions() -> list[FunctionType]:
    """The functions and methods of the imported modules of the runtime, whose coverage guides the fuzzer."""
    modules = [module for name, module in sys.modules.items() if name.startswith("berxit.runtime")]
    spaces = [vars(module) for module in modules]
    spaces += [vars(each) for space in list(spaces) for each in space.values() if isinstance(each, type)]
    found = {each for space in spaces for each in space.values() if isinstance(each, FunctionType)}
    return [each for each in found if each.__module__.startswith("berxit.runtime")]


@click.command(help=__doc__)
@click.argument("reader", type=click.Choice(READERS))
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seconds", default=60, show_default=True, type=click.IntRange(min=1))
@click.option("--corpus", type=click.Path(path_type=Path), help="Folder that keeps the inputs with new coverage.")
def command(reader: str, bundle: Path, seconds: int, corpus: Path | None) -> None:
    try:
        import atheris
    except ModuleNotFoundError:
        raise click.ClickException("atheris is not installed: pip install atheris") from None
    read = reader_of(reader, (bundle / "manifest.json").read_bytes())
    for function in runtime_functions():
        atheris.instrument_func(function)
    kept = corpus or Path(tempfile.mkdtemp())
    kept.mkdir(parents=True, exist_ok=True)
    names = {"manifest": ["manifest.json"], "golden": ["golden.json"], "tokenizer": ["tokenizer.json"]}
    seeds = [bundle / name for name in names.get(reader, [])] or sorted((bundle / "segments").glob("*.onnx"))
    for number, seed in enumerate([*seeds, *sorted((CORPUS / reader).glob("*"))]):
        shutil.copyfile(seed, kept / f"seed-{number}")
    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", f"-timeout={LONGEST_S}"]
    atheris.Setup([sys.argv[0], *limits, str(kept)], lambda content: survives(read, content))
    atheris.Fuzz()


if __name__ == "__main__":
    command()
