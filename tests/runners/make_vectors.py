"""Test vectors of all runners, computed by the Python runtime. README.md in this folder describes the format.

    PYTHONPATH=.:tests/runtime python tests/runners/make_vectors.py

Writes vectors/, using the tokenizers in that folder. --train trains new tokenizers, which differ each time.
test_vectors.py compares the committed files with newly computed ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rejected import errors
from small_models import MAX_LENGTH, MODELS, PAIRS, SINGLES, manifest_of, write_models
from small_tokenizers import SIZES, small_tokenizers

from berxit.runtime.backends.coreml import CoreMLBackend
from berxit.runtime.bundle import Manifest
from berxit.runtime.deadline import MISS_PROBABILITY, Deadline, StepEstimator, end_of
from berxit.runtime.errors import InputError
from berxit.runtime.json_data import to_json
from berxit.runtime.policies import CRITERIA, ExitPolicy, certainties, exit_layers
from berxit.runtime.policies.learned import feature_names
from berxit.runtime.tokenization import Text, TextTokenizer, TokenBatch, checked_text

ROOT = Path(__file__).resolve().parents[2]
VECTORS = Path(__file__).parent / "vectors"
MILLISECONDS = (4.0, 12.0, 25.0, 60.0, 25.0, 60.0, 60.0, 100.0, 25.0, 12.0)
"""Deadlines of successive calls that share one estimator."""
LONG = "what is the weather like tomorrow, and what was it like a week ago? " * 12
LONG_TEXTS: list[Text] = [
    LONG,
    LONG.replace(" ", ""),
    "turn" + " " * 700 + "the lights off" + " " * 700 + LONG,
    "天気はどうですか " * 60,
    "[SEP] <mask> " * 60,
    (LONG, LONG),
    (LONG + LONG, LONG),
    (LONG, "short"),
    ("short", LONG),
]
TEXTS: list[Text] = [
    *SINGLES,
    "  What's   the weather like tomorrow?\t",
    "\u00a0\u3000blanks of\u2003every kind\u2029\x85\n",
    "\x1cseparators\x1f",
    "\u200bno blank\ufeff",
    "Café au lait, s'il vous plaît — déjà vu!",
    "naïve coöperation (10:30 p.m.) costs $4.50, or 3,99 €",
    "日本語 and 中文 between words",
    "emoji 👩‍🚀🚀 and flags 🇫🇷",
    "Straße İstanbul ﬁne ½",
    "a\u00a0non-breaking\u200bzero-width\ufeffspace\u3000wide",
    "don't stop!!! ...really??",
    "``quoted'' the older way",
    "e\u0301te\u0301 q\u0308uiz か\u3099 ǅ ΣΊΣΥΦΟΣ",
    "हिन्दी नमस्ते 한국어 العَرَبِيَّة",
    "line\r\nbreak and a\x00null\x07bell",
    "one  two   three    spaces",
    "pneumonoultramicroscopicsilicovolcanoconiosis " * 2,
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
    "[CLS] inside [SEP] the text [MASK]",
    "<s> also </s> these <mask>, <pad>",
    *PAIRS,
    ("a very long first half that goes on and on and on without an end", "short"),
    ("short", "a very long second half that goes on and on and on without an end"),
]


def train_tokenizers(folder: Path) -> None:
    """Trains the tokenizers on the sample data, and saves them in ``folder``."""
    lines = (ROOT / "toolkit" / "sample" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    words = [line.split("\t")[0] for line in lines] + [text for text in TEXTS if isinstance(text, str)]
    for kind, tokenizer in small_tokenizers(words).items():
        tokenizer.save(str(folder / f"{kind}.json"))


def copy_tokenizers(source: Path, folder: Path) -> None:
    for kind in SIZES:
        shutil.copyfile(source / f"{kind}.json", folder / f"{kind}.json")


def write_vectors(folder: Path) -> None:
    """Writes all test vectors to ``folder``, which contains the tokenizers."""
    write_models(folder)
    manifest = manifest_of(MODELS[0], folder / "bundle", folder / "models" / MODELS[0].name)
    for name, cases in {
        "tokenization": tokenization(folder),
        "policies": policies(),
        "newer_policies": newer_policies(),
        "decisions": decisions(),
        "words": words(folder),
        "deadlines": deadlines(),
        "padding": padding(manifest),
        "errors": errors(),
    }.items():
        text = json.dumps(list(cases), ensure_ascii=False, indent=1)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def tokenization(folder: Path) -> Iterator[dict[str, Any]]:
    """Cases: tokenizer and texts -> ids, types, and truncation."""
    for kind in SIZES:
        tokenizer = TextTokenizer(folder / f"{kind}.json", MAX_LENGTH, 0)
        for text in [*TEXTS, *LONG_TEXTS]:
            batch = tokenizer([text])
            yield {
                "tokenizer": kind,
                "max_length": MAX_LENGTH,
                "texts": [text] if isinstance(text, str) else list(text),
                "input_ids": batch.input_ids[0].tolist(),
                "token_type_ids": batch.token_type_ids[0].tolist(),
                "truncated": batch.truncated[0],
            }


def words(folder: Path) -> Iterator[dict[str, Any]]:
    """Cases: tokenizer and text -> position of the first token of each word, and range of its characters."""
    for kind in SIZES:
        tokenizer = TextTokenizer(folder / f"{kind}.json", MAX_LENGTH, 0, words=True)
        for text in [*TEXTS, *LONG_TEXTS]:
            if isinstance(text, str):
                found = tokenizer([checked_text(text, "the text")]).words[0]  # words of the stripped text
                places = {name: column.tolist() for name, column in found._asdict().items()}
                yield {"tokenizer": kind, "max_length": MAX_LENGTH, "texts": [text], **places}


def policies() -> Iterator[dict[str, Any]]:
    """Cases for every criterion: policy and outputs of every layer -> certainty at every layer, and exit layer."""
    rng = np.random.default_rng(0)
    layers = 5
    warm, plain = (1.0, 0.5, 2.0, 1.5, 0.8), (1.0,) * layers
    for criterion in CRITERIA.values():
        if criterion.schema_version > 1:
            continue
        for outputs in (1, 2, 3) if criterion.for_regression else (2, 3):
            grid = criterion.grid(layers, max(outputs, 2))
            quarter, middle = grid[len(grid) // 4], grid[len(grid) // 2]
            for thresholds, temperatures in (
                ((middle,) * (layers - 1), plain),
                ((quarter, middle, quarter, middle), warm),
            ):
                policy = ExitPolicy(criterion.name, thresholds, temperatures, tolerance=0.75)
                yield from policy_cases(policy, outputs, rng)


def newer_policies() -> Iterator[dict[str, Any]]:
    """Cases of the features of schema version 2, as ``policies``."""
    rng = np.random.default_rng(5)
    layers = 5
    plain = ExitPolicy.uniform("confidence", 0.7, layers)
    per_class = tuple((0.6 + 0.05 * layer, 1.0) for layer in range(layers - 1))
    warm = (1.0, 0.5, 2.0, 1.5, 0.8)

    def learned(outputs: int) -> tuple[tuple[float, ...], ...]:
        scale = 0.1 if outputs == 1 else 0.4
        rows = scale * rng.normal(size=(layers - 1, len(feature_names(outputs)) + 1))
        return tuple(tuple(row) for row in np.round(rows, 3).tolist())

    for outputs in (2, 3):
        yield from policy_cases(ExitPolicy.uniform("agreement", 1.0, layers), outputs, rng)
        yield from policy_cases(replace(plain, patience=2), outputs, rng)
        yield from policy_cases(replace(plain, off=(1, 3)), outputs, rng)
        yield from policy_cases(ExitPolicy("agreement", (0.8,) * 4, warm, patience=2, off=(2,)), outputs, rng)
    yield from policy_cases(replace(plain, thresholds=per_class, temperatures=warm), 2, rng)
    yield from policy_cases(replace(ExitPolicy.uniform("entropy", 0.6, layers), patience=3), 3, rng)
    for outputs in (1, 2, 3):
        policy = ExitPolicy("learned", (0.5,) * 4, (1.0,) * layers, 0.75, weights=learned(outputs))
        yield from policy_cases(policy, outputs, rng)
        yield from policy_cases(replace(policy, off=(2,), patience=2, temperatures=warm), outputs, rng)
    yield from policy_cases(policy, 3, rng, lte=False)
    for outputs in (1, 2):
        yield from policy_cases(ExitPolicy.uniform("fixed", 3.0, layers), outputs, rng)
    yield from policy_cases(replace(ExitPolicy.uniform("fixed", 2.0, layers), off=(2,)), 2, rng)


def decisions() -> Iterator[dict[str, Any]]:
    """Cases of texts with several decisions, as ``policies``: words with four tags, and labels (absent, present)."""
    rng = np.random.default_rng(6)
    layers = 5
    for criterion in CRITERIA.values():
        if criterion.fitted:
            continue
        grid = criterion.grid(layers, 4)
        plain = ExitPolicy.uniform(criterion.name, grid[2 * len(grid) // 3], layers)
        warm = replace(plain, temperatures=(1.0, 0.5, 2.0, 1.5, 0.8), off=(2,))
        for policy, outputs, count in ((plain, 4, 3), (warm, 2, 5)):
            yield from policy_cases(policy, outputs, rng, decisions=count)
    yield from policy_cases(replace(ExitPolicy.uniform("confidence", 0.6, layers), patience=2), 3, rng, decisions=2)
    yield from policy_cases(replace(ExitPolicy.uniform("entropy", 0.8, layers), patience=2), 3, rng, decisions=2)


def policy_cases(
    policy: ExitPolicy, outputs: int, rng: np.random.Generator, *, lte: bool = True, decisions: int = 0
) -> Iterator[dict[str, Any]]:
    """Six cases of a policy with random outputs. ``decisions``: D, if a text has several."""
    for _ in range(6):
        sizes = (1, policy.layers, *(decisions,) * bool(decisions), outputs)
        logits = (rng.normal(size=sizes) * 2).astype(np.float32)
        learned = rng.uniform(size=(1, policy.layers)).astype(np.float32) if lte else None
        certainty = certainties(policy, logits, learned)
        yield {
            **to_json(policy),
            "logits": logits[0].tolist(),
            "lte": None if learned is None else learned[0].tolist(),
            "certainty": certainty[0].tolist(),
            "exit_layer": int(exit_layers(policy, certainty, logits)[0]),
        }


def deadlines() -> Iterator[dict[str, Any]]:
    """Cases of calls that share one estimator: deadline, seconds for loading each segment, and clock at the start and
    after each exit -> the exit decision at each computed exit, and the margin after the last call."""
    rng = np.random.default_rng(2)
    for exits in ((1, 2, 3, 4, 5, 6), (2, 3, 6), (1, 6), (6,)):
        for threshold, lazy in ((1.0, False), (0.6, False), (1.0, True)):
            for miss_probability in (MISS_PROBABILITY, 0.2):
                policy = ExitPolicy.uniform("confidence", threshold, exits[-1])
                estimator = StepEstimator(miss_probability)
                calls = [call(policy, exits, milliseconds, estimator, lazy, rng) for milliseconds in MILLISECONDS]
                yield {
                    "exits": exits,
                    "thresholds": policy.thresholds,
                    "miss_probability": miss_probability,
                    "calls": calls,
                    "margin": estimator.margin,
                }


def call(
    policy: ExitPolicy,
    exits: tuple[int, ...],
    milliseconds: float,
    estimator: StepEstimator,
    lazy: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """One call with a deadline; 20% of the layers stall. ``lazy``: 40% of the segments have to be loaded first."""
    took = rng.uniform(1e-3, 6e-3, size=len(exits)) * np.diff([0, *exits])
    took[rng.uniform(size=len(exits)) < 0.2] += 0.05
    opening = np.where(rng.uniform(size=len(exits)) < 0.4, 0.02, 0.0) if lazy else np.zeros(len(exits))
    times = (100 + np.cumsum([0.0, *(took + opening)])).tolist()
    seconds = dict(zip(exits, opening.tolist(), strict=True))
    end = end_of(milliseconds, times[0])
    deadline = Deadline(policy, exits, end, estimator, opening=seconds.__getitem__, clock=iter(times).__next__)
    certainty = rng.uniform(size=(len(exits), 1)).astype(np.float32)
    stops: list[bool] = []
    for layer, sure in zip(exits, certainty, strict=True):
        stops.append(bool(deadline.exits(layer, sure)[0]))
        if stops[-1]:
            break
    return {
        "milliseconds": milliseconds,
        "opening": opening.tolist(),
        "times": times,
        "certainty": certainty[:, 0].tolist(),
        "stops": stops,
    }


def padding(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Cases: lengths of the segments, and tokens -> inputs of the embeddings; None if there are too many tokens."""
    model = dataclasses.replace(manifest.model, pad_token_id=1)
    for lengths in ((), (16,), (16, 4, 8)):
        for tokens in (1, 3, 4, 5, 8, 16, 17):
            ids, types = list(range(2, tokens + 2)), [place % 2 for place in range(tokens)]
            yield {
                "lengths": lengths,
                "pad_token_id": model.pad_token_id,
                "input_ids": ids,
                "token_type_ids": types,
                "padded": padded(dataclasses.replace(manifest, model=model, lengths=lengths), ids, types),
            }


def padded(manifest: Manifest, ids: list[int], types: list[int]) -> dict[str, list[int]] | None:
    """Inputs that the CoreML backend passes to the embeddings segment; None if there are too many tokens."""
    fed: dict[str, list[int]] = {}

    def predict(feeds: dict[str, Any]) -> dict[str, Any]:
        fed.update({name: array[0].tolist() for name, array in feeds.items()})
        return {"hidden_out": 0.0, "attention_bias": 0.0}

    backend = CoreMLBackend(Path(), manifest, 1, lambda package, function: predict)
    try:
        backend.embed(TokenBatch.pad([ids], [types], manifest.model.pad_token_id))
    except InputError:
        return None
    return fed


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the test vectors of all runners.")
    parser.add_argument("--train", action="store_true", help="train new tokenizers")
    train = parser.parse_args().train
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "vectors"
        folder.mkdir()
        if train:
            train_tokenizers(folder)
        else:
            copy_tokenizers(VECTORS, folder)
        write_vectors(folder)
        shutil.rmtree(VECTORS, ignore_errors=True)
        shutil.copytree(folder, VECTORS, symlinks=True)
    print(f"written: {VECTORS}")


if __name__ == "__main__":
    main()
