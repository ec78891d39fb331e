"""Comparison of the tokenizers of another runner (Swift, JavaScript) with those of the Python runtime, on random texts.

    python -m benchmarks.swift_tokenizers [--texts 1000000] [--swift tools/swift_on_linux.sh] [--output REPORT.json]
    python -m benchmarks.swift_tokenizers --javascript

Every difference must be due to the Unicode tables of the two sides, which have different versions (``properties.py``).
For each text that differs:

1. The characters whose properties differ, and for which a version of Unicode explains that, are replaced by characters
   that no version assigns. A text that still differs shows a rule that differs: it is reported with its shortest part
   that differs, and the exit status is 1.
2. The smallest set of these characters that is sufficient for a difference is determined. The report counts the texts
   per version that explains these characters.

Random texts are encoded by the tokenizers of the model families, and by variants with other added tokens and with byte
tokens, which hide nothing. `--read` measures the reading of a tokenizer.json with 250,000 pieces instead.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.swift_tokenizers.comparison import ROOT, Encoder, JavaScript, Program, Swift, differing
from benchmarks.swift_tokenizers.pipelines import many_pieces, pipelines
from benchmarks.swift_tokenizers.properties import STAND_INS, compare_properties, summary
from benchmarks.swift_tokenizers.texts import characters, random_text
from berxit.runtime.console import run
from berxit.runtime.provenance import provenance
from berxit.runtime.tokenization import Text

VECTORS = ROOT / "tests" / "runners" / "vectors"
LENGTHS = (6, 16, 33, 128)
"""Maximum numbers of tokens; most texts are truncated at the shorter ones."""
PAIRS = 0.2
"""Share of pairs."""
PART = 250_000
"""Texts that are compared at once, in tokenizers with other added tokens than those of the part before."""
SHOWN = 5
"""Largest number of unexplained texts in the report."""

Failure = tuple[Encoder, Text]


def random_texts(rng: random.Random, count: int) -> list[Text]:
    """Texts and pairs that the runtime accepts: with a character that is not whitespace."""
    texts: list[Text] = []
    while len(texts) < count:
        parts = [random_text(rng) for _ in range(2 if rng.random() < PAIRS else 1)]
        if all(part.strip() for part in parts):
            texts.append((parts[0], parts[1]) if len(parts) == 2 else parts[0])
    return texts


def replaced(text: Text, unwanted: set[str]) -> Text:
    """The text with stand-ins of the same number of bytes for these characters."""
    table = {ord(character): STAND_INS[len(character.encode())] for character in unwanted}
    return (text[0].translate(table), text[1].translate(table)) if isinstance(text, tuple) else text.translate(table)


@click.command()
@click.option("--texts", default=1_000_000, show_default=True, help="Number of random texts, over all tokenizers.")
@click.option("--seed", default=0, show_default=True)
@click.option("--swift", default=os.environ.get("SWIFT", "swift"), show_default=True, help="The Swift compiler.")
@click.option("--javascript", is_flag=True, help="Compare the runner for JavaScript instead.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON report.")
@click.option("--read", is_flag=True, help="Only measure the reading of a tokenizer.json.")
@click.option("--pieces", default=250_000, show_default=True, help="With --read: size of the vocabulary.")
def command(texts: int, seed: int, swift: str, javascript: bool, output: Path | None, read: bool, pieces: int) -> None:
    """Compare the tokenizers of another runner with the Python runtime's."""
    program: Program = JavaScript() if javascript else Swift(str(ROOT / swift) if (ROOT / swift).exists() else swift)
    with tempfile.TemporaryDirectory() as folder:
        report = measure_read(program, Path(folder), pieces) if read else compare(program, Path(folder), texts, seed)
    click.echo(json.dumps(report, indent=1, ensure_ascii=True))
    if output:
        made = {**report, "made_by": provenance()}
        output.write_text(json.dumps(made, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    sys.exit(1 if report.get("unexplained") or report.get("unexplained_characters") else 0)


def measure_read(program: Program, folder: Path, pieces: int) -> dict[str, Any]:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(many_pieces(pieces), ensure_ascii=False), encoding="utf-8")
    milliseconds = [float(line) for line in program.run("read", str(file))]
    return {"pieces": pieces, "mib": file.stat().st_size / 2**20, "median_ms": statistics.median(milliseconds)}


def compare(program: Program, folder: Path, count: int, seed: int) -> dict[str, Any]:
    tables = compare_properties(program, folder, VECTORS, characters())
    reasons: dict[str, set[str]] = {}
    for explained in tables.explained.values():
        for character, reason in explained.items():
            reasons.setdefault(character, set()).add(reason)
    click.echo(f"{len(characters())} characters, {len(reasons)} differ in a Unicode table", err=True)

    rng = random.Random(seed)
    texts, seconds, failed, failures, tokenizers = 0, 0.0, 0, list[Failure](), 0
    while texts < count:
        part = folder / str(texts)
        part.mkdir()
        encoders = list[Encoder]()
        for name, content in pipelines(VECTORS, rng):
            file = part / f"{name}.json"
            file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            encoders += [Encoder(file, max_length) for max_length in LENGTHS]
        each = -(-min(PART, count - texts) // len(encoders))
        found, compared, time = differing(program, part, [(encoder, random_texts(rng, each)) for encoder in encoders])
        failures += [(encoder, text) for encoder, job in zip(encoders, found, strict=True) for text, _ in job]
        texts, seconds, tokenizers = texts + compared, seconds + time, tokenizers + len(encoders) // len(LENGTHS)
        failed += sum(encoder.failures for encoder in encoders)
        for file in part.glob("*.cases"):
            file.unlink()
        click.echo(f"{texts} of {count} texts, {len(failures)} differ", err=True)

    click.echo("looking for the cause of each difference", err=True)
    unexplained = still_differing(
        program, folder, [(encoder, replaced(text, {*reasons})) for encoder, text in failures]
    )
    rules = [failure for failure, still in zip(failures, unexplained, strict=True) if still]
    click.echo(f"{len(rules)} differences are not explained by a Unicode version", err=True)
    version, name = tables.version, program.name.lower()
    return {
        "seed": seed,
        "texts": texts,
        "tokenizers": tokenizers,
        "differing": len(failures),
        "library_failures": failed,
        f"{name}_microseconds_per_text": seconds / texts * 1e6,
        f"{name}_tables": f"{version[0]}.{version[1]}",
        "explained_by": causes(
            program, folder, [f for f, still in zip(failures, unexplained, strict=True) if not still], reasons
        ),
        "unexplained": len(rules),
        "unexplained_texts": [
            {"tokenizer": encoder.file.stem, "max_length": encoder.max_length, "text": text}
            for encoder, text in shortest(
                program, folder, [(e, replaced(text, {*reasons})) for e, text in rules[:SHOWN]]
            )
        ],
        "unexplained_characters": sum(map(len, tables.unexplained.values())),
        "properties": summary(tables, VECTORS),
    }


def still_differing(program: Program, folder: Path, failures: Sequence[Failure]) -> list[bool]:
    """True for each of these texts that differs."""
    jobs: dict[Encoder, list[Text]] = {}
    for encoder, text in failures:
        jobs.setdefault(encoder, []).append(text)
    found, _, _ = differing(program, folder, list(jobs.items()))
    different = {(encoder, text) for encoder, texts in zip(jobs, found, strict=True) for text, _ in texts}
    return [failure in different for failure in failures]


def causes(
    program: Program, folder: Path, failures: Sequence[Failure], reasons: Mapping[str, set[str]]
) -> dict[str, dict[str, int]]:
    """Texts that differ because of one character, and because of several only, by the version that explains these.

    Of the explained characters of a text, one after the other is replaced for good if the text still differs.
    """
    sets = [sorted({*"".join(text)} & reasons.keys()) for _, text in failures]
    needed = [set(found) for found in sets]
    for place in range(max(map(len, sets), default=0)):
        tried = [number for number, found in enumerate(sets) if place < len(found) and len(needed[number]) > 1]
        without = [
            (
                failures[number][0],
                replaced(failures[number][1], {*sets[number]} - needed[number] | {sets[number][place]}),
            )
            for number in tried
        ]
        for number, differs in zip(tried, still_differing(program, folder, without), strict=True):
            if differs:
                needed[number].discard(sets[number][place])
    one: Counter[str] = Counter()
    several: Counter[str] = Counter()
    for found in needed:
        (one if len(found) == 1 else several)[
            " and ".join(sorted({reason for c in found for reason in reasons[c]}))
        ] += 1
    return {"one character": dict(one.most_common()), "several characters": dict(several.most_common())}


def shortest(program: Program, folder: Path, failures: Sequence[Failure]) -> list[Failure]:
    """Removes characters from these texts, as many at once as possible, as long as the rest differs."""
    found = list[Failure]()
    for encoder, text in failures:
        parts = list(text) if isinstance(text, tuple) else [text]
        size = max(map(len, parts))
        while size:
            tried = [
                [*parts[:part], parts[part][:at] + parts[part][at + size :], *parts[part + 1 :]]
                for part in range(len(parts))
                for at in range(0, len(parts[part]), size)
            ]
            tried = [each for each in tried if all(part.strip() for part in each)]
            texts: list[Text] = [(each[0], each[1]) if len(each) == 2 else each[0] for each in tried]
            differ = still_differing(program, folder, [(encoder, each) for each in texts])
            if any(differ):
                parts = tried[differ.index(True)]
            else:
                size //= 2
        found.append((encoder, (parts[0], parts[1]) if len(parts) == 2 else parts[0]))
    return found


if __name__ == "__main__":
    run(command)
