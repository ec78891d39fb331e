"""Comparison of the Swift tokenizers with those of the Python runtime, on random texts.

    python -m benchmarks.swift_tokenizers [--texts 1000000] [--swift tools/swift_on_linux.sh] [--output REPORT.json]

Every difference must be due to the Unicode tables of the two sides: Swift's standard library and the tokenizers library
contain different versions. The program encodes every character of the texts that differ in a few contexts, to find the
characters that one table classifies or maps differently. It removes them from these texts, and compares again. A text
that still differs shows a rule that differs, and the exit status is 1.

Random texts are encoded by the tokenizers of the model families, and by variants with other added tokens and with byte
tokens, which hide nothing. `--read` measures the reading of a tokenizer.json with 250,000 pieces instead.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.swift_tokenizers.pipelines import REVEALING, many_pieces, pipelines
from benchmarks.swift_tokenizers.texts import probe, random_text
from berxit.runtime.tokenization import Text, TextTokenizer, TokenBatch

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "runners" / "swift" / "Tests" / "EarlyExitTests" / "Vectors"
LENGTHS = (6, 16, 33, 128)
"""Maximum numbers of tokens; most texts are truncated at the shorter ones."""
PAIRS = 0.2
"""Share of pairs."""
AT_ONCE = 2000


class Swift:
    """The program TokenizerCheck, built with optimization."""

    def __init__(self, command: str) -> None:
        self._command = [command]
        self._package = ["-c", "release", "--package-path", "benchmarks/swift_tokenizers"]
        subprocess.run([command, "build", *self._package], cwd=ROOT, check=True, stdout=sys.stderr)

    def run(self, *arguments: str) -> list[str]:
        command = [*self._command, "run", "--skip-build", *self._package, "TokenizerCheck", *arguments]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        return done.stdout.splitlines()


class Encoder:
    """One tokenizer with one maximum length, on the side of Python."""

    def __init__(self, file: Path, max_length: int) -> None:
        self.file, self.max_length = file, max_length
        self._python = TextTokenizer(file, max_length, 0)
        self.panics = 0
        """Number of texts on which the tokenizers library panics."""

    def write(self, texts: Sequence[Text], cases: Path) -> list[Text]:
        """Writes the texts with their ids for TokenizerCheck. Returns those that are written."""
        written: list[Text] = []
        with cases.open("wb") as stream:
            for start in range(0, len(texts), AT_ONCE):
                for part, batch in self._encode(texts[start : start + AT_ONCE]):
                    written += part
                    for row, (text, tokens) in enumerate(zip(part, batch.lengths.tolist(), strict=True)):
                        ids, types = batch.input_ids[row, :tokens], batch.token_type_ids[row, :tokens]
                        stream.write(case(text, ids.tolist(), types.tolist(), batch.truncated[row]))
        return written

    def _encode(self, texts: Sequence[Text]) -> Iterator[tuple[Sequence[Text], TokenBatch]]:
        """Encodes texts in parts. Skips and counts the texts on which the tokenizers library panics."""
        try:
            yield texts, self._python(texts)
        except BaseException as error:  # the library's panics are no Exceptions
            if type(error).__name__ != "PanicException":
                raise
            if len(texts) == 1:
                self.panics += 1
                return
            yield from self._encode(texts[: len(texts) // 2])
            yield from self._encode(texts[len(texts) // 2 :])


def differing(
    swift: Swift, folder: Path, jobs: Sequence[tuple[Encoder, Sequence[Text]]]
) -> tuple[Differences, int, float]:
    """Per job, the texts whose ids, types or truncation differ; the number of all texts; seconds of the Swift side."""
    lines, written = [], []
    for number, (encoder, texts) in enumerate(jobs):
        cases = folder / f"{number}.cases"
        written.append(encoder.write(texts, cases))
        lines.append(f"{encoder.file}\t{encoder.max_length}\t{cases}\n")
    (folder / "jobs").write_text("".join(lines), encoding="utf-8")
    found: Differences = [[] for _ in jobs]
    *differences, last = map(json.loads, swift.run("compare", str(folder / "jobs")))
    count = sum(map(len, written))
    if last["cases"] != count:
        raise RuntimeError(f"Swift read {last['cases']} of {count} texts")
    for each in differences:
        found[each["job"]].append((written[each["job"]][each["number"]], each["ids"]))
    return found, count, last["seconds"]


Differences = list[list[tuple[Text, list[int]]]]
"""Per job: texts that differ, with Swift's ids."""


def case(text: Text, ids: list[int], types: list[int], truncated: bool) -> bytes:
    """Record for TokenizerCheck."""
    parts = [part.encode() for part in (text if isinstance(text, tuple) else (text,))]
    packed = b"".join(struct.pack("<i", len(part)) + part for part in parts)
    numbers = struct.pack(f"<{1 + 2 * len(ids)}i", len(ids), *ids, *types)
    return bytes([len(parts)]) + packed + numbers + bytes([truncated])


def random_texts(rng: random.Random, count: int) -> list[Text]:
    """Texts and pairs that the runtime accepts: with a character that is not whitespace."""
    texts: list[Text] = []
    while len(texts) < count:
        parts = [random_text(rng) for _ in range(2 if rng.random() < PAIRS else 1)]
        if all(part.strip() for part in parts):
            texts.append((parts[0], parts[1]) if len(parts) == 2 else parts[0])
    return texts


def without(text: Text, unwanted: set[str]) -> Text | None:
    """The text without these characters; None if nothing is left of it."""
    parts = ["".join(c for c in part if c not in unwanted) for part in (text if isinstance(text, tuple) else (text,))]
    if not all(part.strip() for part in parts):
        return None
    return (parts[0], parts[1]) if len(parts) == 2 else parts[0]


@click.command()
@click.option("--texts", default=1_000_000, show_default=True, help="Number of random texts, over all tokenizers.")
@click.option("--seed", default=0, show_default=True)
@click.option("--swift", default=os.environ.get("SWIFT", "swift"), show_default=True, help="The Swift compiler.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON report.")
@click.option("--read", is_flag=True, help="Only measure the reading of a tokenizer.json.")
@click.option("--pieces", default=250_000, show_default=True, help="With --read: size of the vocabulary.")
def command(texts: int, seed: int, swift: str, output: Path | None, read: bool, pieces: int) -> None:
    """Compare the Swift tokenizers with the Python runtime's."""
    program = Swift(str(ROOT / swift) if (ROOT / swift).exists() else swift)
    with tempfile.TemporaryDirectory() as folder:
        report = measure_read(program, Path(folder), pieces) if read else compare(program, Path(folder), texts, seed)
    click.echo(json.dumps(report, indent=1, ensure_ascii=True))
    if output:
        output.write_text(json.dumps(report, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    sys.exit(1 if report.get("unexplained") else 0)


def measure_read(swift: Swift, folder: Path, pieces: int) -> dict[str, Any]:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(many_pieces(pieces), ensure_ascii=False), encoding="utf-8")
    milliseconds = [float(line) for line in swift.run("read", str(file))]
    return {"pieces": pieces, "mib": file.stat().st_size / 2**20, "median_ms": statistics.median(milliseconds)}


def compare(swift: Swift, folder: Path, count: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    files: dict[str, Path] = {}
    for name, content in pipelines(VECTORS, rng):
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    encoders = [Encoder(file, max_length) for file in files.values() for max_length in LENGTHS]
    found, texts, seconds = differing(
        swift, folder, [(encoder, random_texts(rng, -(-count // len(encoders)))) for encoder in encoders]
    )
    click.echo(f"{texts} texts, {sum(map(len, found))} differ", err=True)

    # Characters of the texts that differ, and of these those that a table classifies or maps differently.
    characters = sorted({c for each in found for text, _ in each for c in "".join(text) if c.strip()})
    probes: list[Text] = [probe(character) for character in characters]
    revealing = [Encoder(files[name], 512) for name in REVEALING]
    tables, _, _ = differing(swift, folder, [(encoder, probes) for encoder in revealing])
    table = {text[0] for each in tables for text, _ in each if isinstance(text, str)}
    click.echo(f"{len(characters)} characters in these texts, {len(table)} differ in a table", err=True)

    cleaned = [[text for text in (without(each, table) for each, _ in texts) if text] for texts in found]
    unexplained, _, _ = differing(swift, folder, list(zip(encoders, cleaned, strict=True)))
    return {
        "texts": texts,
        "differing": sum(map(len, found)),
        "panics": sum(encoder.panics for encoder in encoders),
        "swift_microseconds_per_text": seconds / texts * 1e6,
        "unexplained": [
            {"tokenizer": encoder.file.stem, "max_length": encoder.max_length, "text": text, "swift": ids}
            for encoder, each in zip(encoders, unexplained, strict=True)
            for text, ids in each
        ],
        "characters": {
            name: described({str(text)[0] for text, _ in each}) for name, each in zip(REVEALING, tables, strict=True)
        },
    }


def described(table: set[str]) -> dict[str, Any]:
    """Number of characters, and their ranges."""
    codes = {ord(character) for character in table}
    starts = sorted(code for code in codes if code - 1 not in codes)
    ends = sorted(code for code in codes if code + 1 not in codes)
    return {"count": len(codes), "ranges": [f"{a:04X}-{b:04X}" for a, b in zip(starts, ends, strict=True)]}


if __name__ == "__main__":
    command()
