"""Comparison of the Swift tokenizers with those of the Python runtime, on random texts.

    python -m benchmarks.swift_tokenizers [--texts 1000000] [--swift tools/swift_on_linux.sh] [--output REPORT.json]

Every difference must be due to the Unicode tables of the two sides: Swift's standard library and the tokenizers library
contain different versions. The program finds the characters that one table classifies or maps differently: it encodes
every character of the texts in a few contexts. It then removes them from the texts that differ, and compares again. A text
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

from benchmarks.swift_tokenizers.pipelines import ADDED, REVEALING, many_pieces, pipelines
from benchmarks.swift_tokenizers.texts import GRAPHEMES, MARKS, RANGES, WORDS, probe, random_text
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


class Comparison:
    """One tokenizer with one maximum length, on both sides."""

    def __init__(self, swift: Swift, file: Path, max_length: int) -> None:
        self._swift, self._file, self._max_length = swift, file, max_length
        self._python = TextTokenizer(file, max_length, 0)
        self.seconds = 0.0
        self.panics: list[Text] = []
        """Texts on which the tokenizers library panics."""

    def differing(self, texts: Sequence[Text]) -> list[tuple[Text, list[int], list[int]]]:
        """Texts whose ids, types or truncation differ, with Python's and Swift's ids."""
        cases = self._file.with_suffix(".cases")
        encoded: list[tuple[Text, list[int]]] = []
        with cases.open("wb") as stream:
            for start in range(0, len(texts), AT_ONCE):
                for part, batch in self._encode(texts[start : start + AT_ONCE]):
                    for row, (text, tokens) in enumerate(zip(part, batch.lengths.tolist(), strict=True)):
                        ids = batch.input_ids[row, :tokens].tolist()
                        types = batch.token_type_ids[row, :tokens].tolist()
                        encoded.append((text, ids))
                        stream.write(case(text, ids, types, batch.truncated[row]))
        *lines, last = map(json.loads, self._swift.run("compare", str(self._file), str(self._max_length), str(cases)))
        cases.unlink()
        if last["cases"] != len(encoded):
            raise RuntimeError(f"{self._file.name}: Swift read {last['cases']} of {len(encoded)} texts")
        self.seconds += last["seconds"]
        return [(*encoded[line["number"]], line["ids"]) for line in lines]

    def _encode(self, texts: Sequence[Text]) -> Iterator[tuple[Sequence[Text], TokenBatch]]:
        """Encodes texts in parts. Skips the texts on which the tokenizers library panics, and counts them."""
        try:
            yield texts, self._python(texts)
        except BaseException as error:  # the library's panics are no Exceptions
            if type(error).__name__ != "PanicException":
                raise
            if len(texts) == 1:
                self.panics.append(texts[0])
                return
            yield from self._encode(texts[: len(texts) // 2])
            yield from self._encode(texts[len(texts) // 2 :])


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


def characters() -> list[str]:
    """Every character that occurs in a random text, except blanks."""
    codes = {code for low, high in RANGES for code in range(low, high) if not 0xD800 <= code < 0xE000}
    codes.update(ord(character) for text in (*GRAPHEMES, *WORDS, *ADDED, *MARKS) for character in text)
    return [chr(code) for code in sorted(codes) if chr(code).strip()]


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
    tokenizers = dict(pipelines(VECTORS, rng))
    files = {name: folder / f"{name}.json" for name in tokenizers}
    for name, content in tokenizers.items():
        files[name].write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    tables: dict[str, set[str]] = {}
    for name in REVEALING:
        found = Comparison(swift, files[name], 512).differing([probe(character) for character in characters()])
        tables[name] = {str(text)[0] for text, _, _ in found}
        click.echo(f"{name}: {len(tables[name])} characters", err=True)
    differing_characters = set().union(*tables.values())

    report: dict[str, Any] = {"texts": 0, "differing": 0, "swift_seconds": 0.0, "panics": 0, "unexplained": []}
    for name, file in files.items():
        for max_length in LENGTHS:
            texts = random_texts(rng, -(-count // (len(files) * len(LENGTHS))))
            comparison = Comparison(swift, file, max_length)
            found = comparison.differing(texts)
            report["texts"] += len(texts)
            report["differing"] += len(found)
            report["swift_seconds"] += comparison.seconds
            report["panics"] += len(comparison.panics)
            cleaned = [text for text in (without(each, differing_characters) for each, _, _ in found) if text]
            report["unexplained"] += [
                {"tokenizer": name, "max_length": max_length, "text": text, "python": ids, "swift": other}
                for text, ids, other in comparison.differing(cleaned)
            ]
        click.echo(f"{name}: {report['texts']} texts, {len(report['unexplained'])} unexplained", err=True)
    return report | {"characters": {name: described(table) for name, table in tables.items()}}


def described(table: set[str]) -> dict[str, Any]:
    """Number of characters, and their ranges."""
    codes = {ord(character) for character in table}
    starts = sorted(code for code in codes if code - 1 not in codes)
    ends = sorted(code for code in codes if code + 1 not in codes)
    return {"count": len(codes), "ranges": [f"{a:04X}-{b:04X}" for a, b in zip(starts, ends, strict=True)]}


if __name__ == "__main__":
    command()
