"""Token ids of the C runner and of the Python runtime, for many random texts.

    python -m benchmarks.c_tokenizers [--texts 200000] [--seed 0] --output c-tokenizers

The seven tokenizers of tests/runners/vectors encode the texts of benchmarks/swift_tokenizers, and pairs of them, with
maximum lengths of 16 and 128 tokens. Ids, types and truncation must be equal.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import click

from benchmarks.swift_tokenizers.pipelines import KINDS
from benchmarks.swift_tokenizers.texts import random_text
from berxit.runtime.console import debug_option, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.results import write_results
from berxit.runtime.tables import markdown_table
from berxit.runtime.tokenization import Text, TextTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "runners"))
VECTORS = ROOT / "tests" / "runners" / "vectors"
AT_ONCE = 2000


def random_texts(rng: random.Random, count: int) -> list[Text]:
    """Texts and pairs of benchmarks/swift_tokenizers. Texts that are empty after stripping are replaced."""
    texts = [random_text(rng) for _ in range(count)]
    texts = [text if text.strip() else "x" for text in texts]
    return [(text, rng.choice(texts)) if rng.random() < 0.2 else text for text in texts]


def expected(tokenizer: TextTokenizer, texts: list[Text]) -> list[tuple[list[int], list[int], bool] | None]:
    """Ids, types and truncation of each text; None if the tokenizers library fails on it."""
    try:
        batch = tokenizer(texts)
    except BerxitError:
        if len(texts) == 1:
            return [None]
        half = len(texts) // 2
        return expected(tokenizer, texts[:half]) + expected(tokenizer, texts[half:])
    rows = zip(batch.input_ids, batch.token_type_ids, batch.lengths, batch.truncated, strict=True)
    return [(ids[:n].tolist(), types[:n].tolist(), cut) for ids, types, n, cut in rows]


def differing(kind: str, max_length: int, texts: list[Text]) -> tuple[list[Text], int]:
    """Texts whose tokens differ, and the number of texts on which the library fails."""
    import native

    file = VECTORS / f"{kind}.json"
    lines = native.run(
        native.built("release") / "berxit-vectors", "tokenize", file, str(max_length), cases=texts
    ).splitlines()
    tokenizer = TextTokenizer(file, max_length, 0)
    wrong, failures = [], 0
    for start in range(0, len(texts), AT_ONCE):
        part = texts[start : start + AT_ONCE]
        for text, line, tokens in zip(part, lines[start : start + AT_ONCE], expected(tokenizer, part), strict=True):
            if tokens is None:
                failures += 1
                continue
            numbers, types = ([int(number) for number in half.split()] for half in line.split("|"))
            if (numbers[1:], types, bool(numbers[0])) != tokens:
                wrong.append(text)
    return wrong, failures


@click.command()
@click.option("--texts", "count", default=20_000, help="Texts per tokenizer and maximum length.")
@click.option("--seed", default=0)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(count: int, seed: int, output: Path) -> None:
    """Compare the tokenizers of the C runner with those of the Python runtime."""
    rows, examples = [], {}
    for kind in KINDS:
        for max_length in (16, 128):
            texts = random_texts(random.Random(f"{seed} {kind} {max_length}"), count)
            wrong, failures = differing(kind, max_length, texts)
            rows.append([kind, max_length, len(texts), len(wrong), failures])
            examples[f"{kind} {max_length}"] = [repr(text) for text in wrong[:20]]
            click.echo(rows[-1])
    header = ["tokenizer", "maximum length", "texts", "differ", "the library fails"]
    data = {"seed": seed, "rows": [dict(zip(header, row, strict=True)) for row in rows], "examples": examples}
    write_results(output, "c-tokenizers", data, markdown_table(header, rows))


if __name__ == "__main__":
    run(command)
