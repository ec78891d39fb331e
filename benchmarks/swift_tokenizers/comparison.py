"""Token ids of another runner's tokenizers and of the Python runtime, for many texts at once."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import click

from berxit.runtime.errors import BerxitError
from berxit.runtime.tokenization import Text, TextTokenizer, TokenBatch

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 2000

Differences = list[list[tuple[Text, list[int]]]]
"""Per job: texts that differ, with the other runner's ids."""


class Program(Protocol):
    """The tokenizers of another runner, as a program with the commands of TokenizerCheck."""

    name: str
    states_ages: bool
    """True if ``describe`` prints the version that assigned a character; False if it prints that of the tables."""

    def run(self, *arguments: str) -> list[str]:
        """Lines of the standard output."""


class JavaScript:
    """The program of runners/js, which must be built (npm ci, npm run build)."""

    name = "JavaScript"
    states_ages = False

    def run(self, *arguments: str) -> list[str]:
        return _lines(["node", "runners/js/tests/tokenizer_check.mjs", *arguments])


class Swift:
    """The program TokenizerCheck, built with optimization."""

    name = "Swift"
    states_ages = True

    def __init__(self, command: str) -> None:
        self._command = [command]
        self._package = ["-c", "release", "--package-path", "benchmarks/swift_tokenizers"]
        if subprocess.run([command, "build", *self._package], cwd=ROOT, stdout=sys.stderr, check=False).returncode:
            raise click.ClickException(f"{command} cannot build benchmarks/swift_tokenizers: see its messages above")

    def run(self, *arguments: str) -> list[str]:
        return _lines([*self._command, "run", "--skip-build", *self._package, "TokenizerCheck", *arguments])


def _lines(command: Sequence[str]) -> list[str]:
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    return done.stdout.splitlines()


class Encoder:
    """One tokenizer with one maximum length, on the side of Python."""

    def __init__(self, file: Path, max_length: int) -> None:
        self.file, self.max_length = file, max_length
        self._python = TextTokenizer(file, max_length, 0)
        self.failures = 0
        """Number of texts on which the tokenizers library fails."""

    def ids(self, text: Text) -> list[int]:
        batch = self._python([text])
        return [int(token) for token in batch.input_ids[0, : batch.lengths[0]]]

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
        """Encodes texts in parts. Skips and counts the texts on which the tokenizers library fails."""
        try:
            yield texts, self._python(texts)
        except BerxitError:
            if len(texts) == 1:
                self.failures += 1
                return
            yield from self._encode(texts[: len(texts) // 2])
            yield from self._encode(texts[len(texts) // 2 :])


def differing(
    program: Program, folder: Path, jobs: Sequence[tuple[Encoder, Sequence[Text]]]
) -> tuple[Differences, int, float]:
    """Per job, the texts whose ids, types or truncation differ; the number of all texts; seconds of the program."""
    lines, written = [], []
    for number, (encoder, texts) in enumerate(jobs):
        cases = folder / f"{number}.cases"
        written.append(encoder.write(texts, cases))
        lines.append(f"{encoder.file}\t{encoder.max_length}\t{cases}\n")
    (folder / "jobs").write_text("".join(lines), encoding="utf-8")
    found: Differences = [[] for _ in jobs]
    *differences, last = map(json.loads, program.run("compare", str(folder / "jobs")))
    count = sum(map(len, written))
    if last["cases"] != count:
        raise RuntimeError(f"{program.name} read {last['cases']} of {count} texts")
    for each in differences:
        found[each["job"]].append((written[each["job"]][each["number"]], each["ids"]))
    return found, count, last["seconds"]


def case(text: Text, ids: list[int], types: list[int], truncated: bool) -> bytes:
    """Record for TokenizerCheck."""
    parts = [part.encode() for part in (text if isinstance(text, tuple) else (text,))]
    packed = b"".join(struct.pack("<i", len(part)) + part for part in parts)
    numbers = struct.pack(f"<{1 + 2 * len(ids)}i", len(ids), *ids, *types)
    return bytes([len(parts)]) + packed + numbers + bytes([truncated])
